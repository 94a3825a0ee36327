"""Where each guest of one NUMA cell goes: into the pool, or where it does least harm.

A guest that no pool takes is left as it is. Only where it runs on claimed or offline pCPUs it is
moved to a refuge: what is left of its original pin, else the cell's pCPUs that are neither claimed
nor reserved. If there is no refuge either, that is a collision, and reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from agent.cpuset import EMPTY, CpuSet, union
from agent.pool import OnShortage, Placement, total
from agent.sizing import held
from agent.snapshot import followers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from fractions import Fraction

    from agent.candidates import Candidates
    from agent.cpuset import CellId
    from agent.domainxml import Pins
    from agent.homes import Home
    from agent.policy import Policy, Source
    from agent.pool import Memory, NUMACell
    from agent.question import Question
    from agent.snapshot import Guest


class State(StrEnum):
    """How a managed guest stands; of several the first that holds."""

    BUSY = "busy"
    LEFT = "left"
    COLLISION = "collision"
    REMOTE = "remote"
    OVERCOMMITTED = "overcommitted"
    PLACED = "placed"


@dataclass(frozen=True, slots=True)
class InstanceNUMACell:
    """What one guest gets; `emulator_pcpus` is None for a guest that is left alone."""

    uuid: str
    name: str
    policy: Policy
    source: Source
    managed: bool
    weight: Fraction
    cell: CellId | None
    original: Pins
    emulator_pcpus: CpuSet | None
    placement: Placement | None
    state: State | None
    reason: str
    evacuated: bool = False  # its target is a fallback outside any pool


class Placer:
    """Places the guests of one plan, cell by cell."""

    def __init__(
        self,
        question: Question,
        memory: Memory,
        candidates: Candidates,
        homes: Mapping[str, Home],
    ) -> None:
        """Take what was decided before the first guest."""
        self._q = question
        self._memory = memory
        self._candidates = candidates
        self._homes = homes

    def place(self, cell: NUMACell, guests: Sequence[Guest]) -> Iterator[InstanceNUMACell]:
        """Yield what each of `guests` gets; they are at home in `cell`, in order of age."""
        if not cell.emulator_cpus:
            for guest in guests:
                yield self._homeless(guest, cell, "its cell has no candidate")
            return
        fitting = self._fitting(guests, cell)
        placed = self._assignments(fitting, cell)
        whole = fitting is guests
        weight = cell.weight if whole else total(one.verdict.weight for one in fitting)
        state = State.OVERCOMMITTED if weight > cell.capacity else State.PLACED
        reason = (
            f"{len(fitting)} {'guest' if len(fitting) == 1 else 'guests'} of weight {weight}"
            f" on {cell.emulator_cpus} at ratio {cell.ratio} in cell {cell.id}"
        )
        for guest in guests:
            if guest.uuid in placed:
                yield self._placed(guest, cell, placed[guest.uuid], state, reason)
            else:
                yield self._homeless(guest, cell, "the pool is full at the ratio")

    def _fitting(self, guests: Sequence[Guest], cell: NUMACell) -> Sequence[Guest]:
        """Return the guests that the pool takes: all, but under `leave` only those that fit."""
        if not cell.over or self._q.settings.of(cell.id).on_shortage is not OnShortage.LEAVE:
            return guests
        room = cell.capacity
        fitting = []
        for guest in guests:
            if guest.verdict.weight <= room:
                room -= guest.verdict.weight
                fitting.append(guest)
        return fitting

    def _assignments(self, guests: Sequence[Guest], cell: NUMACell) -> dict[str, CpuSet]:
        if cell.placement is Placement.SHARED:
            return dict.fromkeys((guest.uuid for guest in guests), cell.emulator_cpus)
        reach = {guest.uuid: _reach(guest, cell.emulator_cpus) for guest in guests}
        places = {guest.uuid: held(guest, self._memory) for guest in guests if reach[guest.uuid]}
        narrow = {uuid: cpus for uuid, cpus in reach.items() if cpus != cell.emulator_cpus}
        singles = spread(places, cell.emulator_cpus, narrow)
        # Who reaches none of the pool is told so, with the whole of it, where it is placed.
        return {
            uuid: CpuSet.of(singles[uuid]) if uuid in singles else cell.emulator_cpus
            for uuid in reach
        }

    def _placed(
        self, guest: Guest, cell: NUMACell, cpus: CpuSet, state: State, reason: str
    ) -> InstanceNUMACell:
        if guest.kernel is not None and guest.kernel.parent is not None:
            cpus &= guest.kernel.parent
            if not cpus:
                why = f"its own cgroup is narrowed to {guest.kernel.parent}"
                return self._homeless(guest, cell, why)
        home = self._homes[guest.uuid]
        if home.cell != home.natural:
            state = State.REMOTE
            reason = f"{reason}, for want of room in cell {home.natural}"
        return _answer(guest, cell, cpus, state, reason)

    def _homeless(self, guest: Guest, cell: NUMACell, why: str) -> InstanceNUMACell:
        """Decide for a guest that no pool takes: leave it, or get it off what is not ours."""
        if not self._is_harmful(guest):
            return _answer(guest, cell, None, State.LEFT, f"left where it is: {why}")
        refuge = self._refuge(guest, cell)
        if refuge:
            reason = f"moved to {refuge}, off claimed or offline pCPUs: {why}"
            return _answer(guest, cell, refuge, State.LEFT, reason, evacuated=True)
        reason = f"runs on claimed or offline pCPUs and has nowhere to go: {why}"
        return _answer(guest, cell, None, State.COLLISION, reason)

    def _is_harmful(self, guest: Guest) -> bool:
        """Tell whether emulator threads, or iothreads that follow, run on what is not ours."""
        online = self._q.host.online
        pins = [guest.domain.resting(online)]
        if self._q.settings.iothreads:
            pins += [one.cpus for one in followers(guest, guest.original) if one.cpus is not None]
        current = union(pins)
        return not current <= online or not current.isdisjoint(self._candidates.claims.all)

    def _refuge(self, guest: Guest, cell: NUMACell) -> CpuSet:
        """Return where a guest without a pool may go; empty if nowhere."""
        if cell.id in self._candidates.hands_off:
            return EMPTY
        usable = self._q.host.online - self._candidates.claims.all
        for limit in (self._q.partition, guest.kernel.parent if guest.kernel else None):
            usable = usable & limit if limit is not None else usable
        own = (guest.original.emulator or EMPTY) & usable
        here = next(one for one in self._q.host.cells if one.id == cell.id)
        return own or here.cpus & usable - self._q.settings.of(cell.id).reserved_cpus


def _reach(guest: Guest, pool: CpuSet) -> CpuSet:
    """Return what of `pool` the guest's own cgroup allows."""
    parent = guest.kernel.parent if guest.kernel is not None else None
    return pool if parent is None else pool & parent


def spread(
    held: Mapping[str, int | None], pool: CpuSet, narrow: Mapping[str, CpuSet] | None = None
) -> dict[str, int]:
    """Give each guest one pCPU of `pool`, none carrying more than its share, with fewest moves.

    `held` says where each guest is, in order of age. With n guests on k pCPUs nobody carries more
    than ceil(n / k); the oldest keep their places, the others fill the emptiest. Those that may
    use a part of the pool only (`narrow`) go first, for they have less to choose from.
    """
    limit = -(-len(held) // len(pool))
    may = narrow or {}
    load = dict.fromkeys(pool, 0)
    assigned: dict[str, int] = {}
    for turn in ([u for u in held if u in may], [u for u in held if u not in may]):
        for uuid in turn:
            cpu = held[uuid]
            if cpu in may.get(uuid, pool) and cpu is not None and load[cpu] < limit:
                assigned[uuid] = cpu
                load[cpu] += 1
        for uuid in turn:
            if uuid not in assigned:
                cpu = min(may.get(uuid, pool), key=lambda cpu: (load[cpu], cpu))
                assigned[uuid] = cpu
                load[cpu] += 1
    return assigned


def unmanaged(guest: Guest, why: str) -> InstanceNUMACell:
    """Return the answer for a guest that is none of ours."""
    verdict = guest.verdict
    return InstanceNUMACell(
        uuid=guest.uuid,
        name=guest.domain.name,
        policy=verdict.policy,
        source=verdict.source,
        managed=False,
        weight=verdict.weight,
        cell=None,
        original=guest.original,
        emulator_pcpus=None,
        placement=None,
        state=None,
        reason=f"left alone: {why}",
    )


def _answer(
    guest: Guest,
    cell: NUMACell,
    target: CpuSet | None,
    state: State,
    reason: str,
    *,
    evacuated: bool = False,
) -> InstanceNUMACell:
    # By position: names would cost half as much again, for each guest of each plan.
    domain, verdict = guest.domain, guest.verdict
    return InstanceNUMACell(
        domain.uuid,
        domain.name,
        verdict.policy,
        verdict.source,
        True,  # noqa: FBT003 - managed
        verdict.weight,
        cell.id,
        guest.original,
        target,
        None if target is None or evacuated else cell.placement,
        State.BUSY if guest.busy else state,
        reason,
        evacuated,
    )
