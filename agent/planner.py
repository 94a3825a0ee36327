"""What should be: pools and pins, decided from one snapshot and the memory of the last plan.

    guests -> candidates per cell -> homes -> size and choice of each pool -> a pin each

Everything is a function from values to values; time comes in as `now`. Too few pCPUs is a
result (a shortage, a state), never an error. The plan carries the memory for the next one, and
each assignment says why.

Invariants: nobody's target is empty, off line or outside libvirt's partition; no target holds a
claimed pCPU; the same snapshot and memory give the same plan, whatever the order of the guests.
A plan does not look at what the kernel holds, but for a guest's own cgroup being narrower than
the pool: comparing is the transition's business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.candidates import GRACE, Warned, discover
from agent.groups import group
from agent.homes import assign
from agent.placing import InstanceNUMACell, Placer, State, unmanaged
from agent.pool import GuestMemory, Memory, NUMACell
from agent.question import Question
from agent.recall import recall
from agent.sizing import Sizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from agent.cpuset import CellId, CpuSet
    from agent.groups import CellGroups
    from agent.homes import Home
    from agent.snapshot import Guest

__all__ = ["InstanceNUMACell", "NUMACell", "Plan", "Question", "State", "plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Cells by id, guests by UUID, and what the next plan wants to know of this one."""

    cells: tuple[NUMACell, ...]
    guests: tuple[InstanceNUMACell, ...]
    warnings: tuple[Warned, ...]
    memory: Memory
    claimed: CpuSet
    deadline: float | None  # when time alone will change the plan


def plan(question: Question, groups: Mapping[CellId, CellGroups] | None = None) -> Plan:
    """Decide pools and pins; `groups` are those of the host, if they are at hand."""
    managed = question.managed() if question.host.cells else []
    groups = group(question.host) if groups is None else groups
    candidates = discover(question, managed, groups)
    memory = recall(question.memory, managed, candidates.cells)
    homes = assign(question, candidates.cells, memory, managed)
    here, natives = _by_cell(question, managed, homes)
    sizer = Sizer(question, memory, candidates, groups)
    placer = Placer(question, memory, candidates, homes)
    cells, kept = [], {}
    guests: list[InstanceNUMACell] = []
    for cell in question.host.cells:
        pool, kept[cell.id] = sizer.pool(cell, here[cell.id], natives[cell.id])
        cells.append(pool)
        guests += placer.place(pool, here[cell.id])
    others = (guest for guest in question.guests if guest.uuid not in homes)
    guests += (unmanaged(guest, _why_unmanaged(question, guest)) for guest in others)
    after = Memory(kept, dict(_remember(question, memory, homes)), candidates.set_aside)
    return Plan(
        cells=tuple(cells),
        guests=tuple(sorted(guests, key=lambda guest: guest.uuid)),
        warnings=(*candidates.warnings, *_flaws(question)),
        memory=after,
        claimed=candidates.claims.all,
        deadline=min(_deadlines(question, after), default=None),
    )


def _by_cell(
    question: Question, managed: Sequence[Guest], homes: Mapping[str, Home]
) -> tuple[Mapping[CellId, list[Guest]], Mapping[CellId, list[Guest]]]:
    """Return the guests at home in each cell, and those that belong there."""
    here: dict[CellId, list[Guest]] = {cell.id: [] for cell in question.host.cells}
    natives: dict[CellId, list[Guest]] = {cell.id: [] for cell in question.host.cells}
    for guest in managed:
        home = homes[guest.uuid]
        here[home.cell].append(guest)
        natives[home.natural].append(guest)
    return here, natives


def _why_unmanaged(question: Question, guest: Guest) -> str:
    if not guest.active:
        return "it does not run"
    if guest.verdict.policy not in question.manage:
        return "its policy is not managed"
    return "no NUMA cell of this host has pCPUs on line"


def _remember(
    question: Question, memory: Memory, homes: Mapping[str, Home]
) -> Iterator[tuple[str, GuestMemory]]:
    """Yield what is known of each active guest that was ever ours in this start."""
    for guest in question.guests:
        known = memory.guest(guest.uuid, guest.start)
        home = homes.get(guest.uuid)
        if home is not None and (known is None or not _agree(known, home)):
            known = replace(
                known or GuestMemory(guest.start, guest.original),
                natural=home.natural,
                home=home.cell,
                room_since=home.room_since,
            )
        if known is not None and guest.active:
            yield guest.uuid, known


def _agree(known: GuestMemory, home: Home) -> bool:
    return (
        known.home == home.cell
        and known.natural == home.natural
        and known.room_since == home.room_since
    )


def _flaws(question: Question) -> Iterator[Warned]:
    cells = {cell.id for cell in question.host.cells}
    named = [
        guest for guest in question.guests if guest.verdict.flaws or guest.verdict.cell is not None
    ]
    for guest in sorted(named, key=lambda guest: guest.uuid):
        for flaw in guest.verdict.flaws:
            yield Warned(guest.label, flaw.field, flaw.text)
        cell = guest.verdict.cell
        if cell is not None and cell not in cells:
            text = f"{cell} is not a NUMA cell of this host that has pCPUs on line"
            yield Warned(guest.label, "metadata cell", text)


def _deadlines(question: Question, memory: Memory) -> Iterable[float]:
    """Yield the times at which a damping clock or a grace runs out."""
    for cell, kept in memory.cells.items():
        for since in (kept.oversize_since, kept.smt_since):
            if since is not None:
                yield since + question.settings.of(cell).shrink_delay
    for guest in memory.guests.values():
        if guest.room_since is not None and guest.natural is not None:
            yield guest.room_since + question.settings.of(guest.natural).shrink_delay
    for aside in memory.set_aside:
        if aside.stopped_since is not None:
            yield aside.stopped_since + GRACE
