"""What a cycle saw, decided and did, as one frozen value; and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from agent.cpuset import EMPTY, CpuSet, union
from agent.cpusets import NOTHING_MENDED, Mended
from agent.errors import GuestGone
from agent.pool import CellMemory
from agent.transition import Drift

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.cpuset import CellId
    from agent.errors import EmupoolError
    from agent.pinner import Outcome
    from agent.planner import Plan
    from agent.pool import Memory
    from agent.snapshot import Guest
    from agent.topology import Host
    from agent.transition import Step


class Cause(StrEnum):
    """What made a cycle run."""

    START = "start"
    EVENT = "event"
    RECONCILE = "reconcile"
    RELOAD = "reload"
    RECONNECT = "reconnect"
    DEADLINE = "deadline"
    CPU = "cpu"


PARTIAL: Final = frozenset({Cause.EVENT, Cause.DEADLINE, Cause.RELOAD})
"""Cycles that read only what was named: a reload acts at once, and a full one follows it."""


@dataclass(frozen=True, slots=True)
class CycleResult:
    """All that a cycle saw, decided and did."""

    cause: Cause
    seconds: float
    host: Host
    plan: Plan
    guests: tuple[Guest, ...]  # as they are after the steps
    steps: tuple[Step, ...]
    outcomes: tuple[Outcome, ...]  # also of earlier cycles' steps that returned only now
    memory: Memory
    stuck: Mapping[str, frozenset[int]]
    failures: tuple[tuple[str, EmupoolError], ...] = ()
    problems: tuple[str, ...] = ()  # of sysfs
    state_error: str | None = None
    mended: Mended = NOTHING_MENDED
    dry_run: bool = False
    partition: CpuSet | None = None  # effective cpuset of libvirt's machine partition

    @property
    def errors(self) -> tuple[tuple[str, EmupoolError], ...]:
        """What failed, by guest; a guest that is gone has not failed."""
        failed = ((outcome.step.uuid, outcome.error) for outcome in self.outcomes)
        pins = tuple((u, e) for u, e in failed if e is not None and not isinstance(e, GuestGone))
        return self.failures + pins


def misfits(guest: Guest, target: CpuSet | None) -> frozenset[int]:
    """Return the threads of `guest` that may run elsewhere than `target` says, by tid."""
    if guest.kernel is None or target is None:
        return frozenset()
    threads = [*guest.kernel.threads]
    for _, own in guest.kernel.iothreads:
        threads += own
    return frozenset(thread.tid for thread in threads if thread.cpus != target)


def drifts(result: CycleResult) -> list[Drift]:
    """Return what had drifted: one entry per step that repaired it, one per stuck thread."""
    done = [outcome.step.drift for outcome in result.outcomes if outcome.error is None]
    found = [drift for drift in done if drift is not None]
    stuck = sum(len(o.settled.stuck) for o in result.outcomes if o.settled is not None)
    return found + [Drift.STUCK] * stuck


def pending(result: CycleResult) -> tuple[Step, ...]:
    """Return the steps that are still to be taken after a cycle."""
    done = {(o.step.uuid, o.step.iothread, o.step.to) for o in result.outcomes if o.error is None}
    return tuple(s for s in result.steps if (s.uuid, s.iothread, s.to) not in done)


def undone(steps: Iterable[Step], outcomes: Iterable[Outcome]) -> frozenset[str]:
    """Return the guests of which a step has not succeeded."""
    done = {(o.step.uuid, o.step.iothread) for o in outcomes if o.error is None}
    return frozenset(s.uuid for s in steps if (s.uuid, s.iothread) not in done)


def spared(memory: Memory, before: Memory, failures: Iterable[tuple[str, object]]) -> Memory:
    """Return `memory`, the plan's, with what was known of guests that cannot be read now."""
    known = {uuid: before.guests[uuid] for uuid, _ in failures if uuid in before.guests}
    return replace(memory, guests={**known, **memory.guests})


def remember(
    memory: Memory, plan: Plan, before: Memory, guests: Iterable[Guest], left: frozenset[str]
) -> Memory:
    """Return `memory`, the plan's, with what really happened to guests and pools."""
    planned = {guest.uuid: guest for guest in plan.guests}
    kept = {uuid: one for uuid, one in memory.guests.items() if uuid not in planned}  # spared
    elsewhere: list[CpuSet] = []  # where guests are that are not where the plan wants them
    for guest in guests:
        known = memory.guests.get(guest.uuid)
        if known is None:
            continue
        if guest.busy and known.placed is None and before.guest(guest.uuid, guest.start) is None:
            continue  # not tried yet: an incoming guest's definition, which tells more, is to come
        wanted = planned[guest.uuid]
        target = wanted.emulator_pcpus
        if guest.uuid in left or guest.busy or (target is None and wanted.managed):
            kept[guest.uuid] = known
            elsewhere.append(known.placed or EMPTY)
        elif wanted.managed:
            as_it_was = known.placed == target
            kept[guest.uuid] = known if as_it_was else replace(known, placed=target)
    cells = _lingering(plan, before.cells, union(elsewhere))
    return replace(memory, cells=cells, guests=kept)


def _lingering(
    plan: Plan, before: Mapping[CellId, CellMemory], occupied: CpuSet
) -> dict[CellId, CellMemory]:
    """Return the pools with the pCPUs that left by decision but still carry a guest."""
    cells = {}
    for cell, memory in plan.memory.cells.items():
        was = before.get(cell, CellMemory())
        left = (was.cpus | was.lingering) - memory.cpus
        cells[cell] = replace(memory, lingering=left & occupied)
    return cells
