"""The NUMA cell in whose pool each managed guest counts.

The *natural* home follows from the guest's metadata, NUMA tuning or claims, else it is the
emptiest cell that its vCPUs reach, where it stays while it runs. Under `on_shortage = spill` the
newest guests that do not fit at home are *remote*: in the nearest cell with room, until there
has been room at home for the shrink delay. Natives of a cell always go before remote guests.

Guests are taken from the oldest to the newest, so the order of input does not matter. Costs a few
microseconds for a guest whose home is named or kept, and one per cell more for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import inf
from typing import TYPE_CHECKING

from agent.cpuset import union
from agent.pool import OnShortage, largest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agent.cpuset import CellId, CpuSet
    from agent.pool import GuestMemory, Memory
    from agent.question import Question
    from agent.snapshot import Guest
    from agent.topology import Cell, Host


@dataclass(frozen=True, slots=True)
class Home:
    """Where a guest counts, where it belongs, and since when there is room there for it."""

    cell: CellId
    natural: CellId
    room_since: float | None = None


def assign(
    question: Question,
    candidates: Mapping[CellId, CpuSet],
    memory: Memory,
    managed: Sequence[Guest],
) -> dict[str, Home]:
    """Return the home of each of `managed`, which are in order of age, by UUID."""
    capacity = {
        cell.id: _capacity(question, cell.id, candidates[cell.id]) for cell in question.host.cells
    }
    natural = _Natural(question.host, memory, capacity).assign(managed)
    spilling = {
        cell.id
        for cell in question.host.cells
        if question.settings.of(cell.id).on_shortage is OnShortage.SPILL
    }
    if not spilling.intersection(natural.values()):
        at_home = {cell: Home(cell, cell) for cell in capacity}
        return {uuid: at_home[cell] for uuid, cell in natural.items()}
    return _Spill(question, memory, natural, spilling, capacity).assign(managed)


def _capacity(question: Question, cell: CellId, candidates: CpuSet) -> Fraction:
    """Return the weight that a cell's pool could carry at most."""
    settings = question.settings.of(cell)
    return largest(settings, len(candidates)) * settings.ratio


class _Natural:
    """Finds where each guest belongs."""

    def __init__(self, host: Host, memory: Memory, capacity: Mapping[CellId, Fraction]) -> None:
        self._host = host
        self._memory = memory
        self._cells = frozenset(capacity)
        self._cell_of: dict[int | None, CellId | None] = {
            pcpu.id: pcpu.cell for pcpu in host.cpus if pcpu.online
        }
        self._per_weight = {cell: 1 / room for cell, room in capacity.items() if room}
        self._load = dict.fromkeys(capacity, Fraction(0))

    def assign(self, managed: Sequence[Guest]) -> dict[str, CellId]:
        homes: dict[str, CellId] = {}
        kept: set[str] = set()
        for guest in managed:
            cell = self._fixed(guest)
            if cell is None:
                cell = self._kept(guest)
                kept.add(guest.uuid)
            if cell is not None:
                homes[guest.uuid] = cell
        if len(homes) < len(managed):
            self._settle_newcomers(managed, homes, kept)
        return homes

    def _settle_newcomers(
        self, managed: Sequence[Guest], homes: dict[str, CellId], kept: set[str]
    ) -> None:
        """Give those without a home the emptiest cell, in turn; who is `kept` was there before.

        Who is still arriving comes last: of him nothing is remembered yet, so that he is asked
        again when all others are settled, and is to get the same answer then.
        """
        kept &= homes.keys()
        for guest in managed:
            if guest.uuid in kept:
                self._load[homes[guest.uuid]] += guest.verdict.weight
        for guest in sorted(managed, key=self._arrives):
            if guest.uuid not in homes:
                homes[guest.uuid] = self._emptiest(_reach(self._host, guest))
            if guest.uuid not in kept:
                self._load[homes[guest.uuid]] += guest.verdict.weight

    def _arrives(self, guest: Guest) -> bool:
        return guest.busy and self._memory.guest(guest.uuid, guest.start) is None

    def _fixed(self, guest: Guest) -> CellId | None:
        """Return the cell that metadata, NUMA tuning or claims tie the guest to."""
        if guest.verdict.cell in self._cells:
            return guest.verdict.cell
        for nodes in (guest.domain.memnode, guest.domain.memory_nodes):
            if nodes is not None and len(nodes) == 1 and nodes <= self._cells:
                return next(iter(nodes))
        return self._most_claims(guest) if guest.domain.claims else None

    def _most_claims(self, guest: Guest) -> CellId | None:
        counts: dict[CellId, int] = {}
        for vcpu in guest.domain.vcpus:
            cell = self._cell_of.get(vcpu.claim)
            if cell is not None:
                counts[cell] = counts.get(cell, 0) + 1
        return min(counts, key=lambda cell: (-counts[cell], cell), default=None)

    def _kept(self, guest: Guest) -> CellId | None:
        """Return the home of a guest that nothing ties to a cell but that it is there already."""
        memory = self._memory.guest(guest.uuid, guest.start)
        return memory.natural if memory is not None and memory.natural in self._cells else None

    def _emptiest(self, cells: Iterable[Cell]) -> CellId:
        def occupancy(cell: Cell) -> tuple[bool, Fraction, CellId]:
            share = self._per_weight.get(cell.id)
            load = self._load[cell.id]
            return (share is None, load if share is None else load * share, cell.id)

        return min(cells, key=occupancy).id


def _reach(host: Host, guest: Guest) -> list[Cell]:
    """Return the cells that the guest's vCPU masks reach; all if they reach none."""
    masks = [vcpu.cpus for vcpu in guest.domain.vcpus]
    cpus = host.online if None in masks else union(mask for mask in masks if mask is not None)
    return [cell for cell in host.cells if not cell.cpus.isdisjoint(cpus)] or list(host.cells)


class _Spill:
    """Gives homes where guests may have to go to another cell."""

    def __init__(
        self,
        question: Question,
        memory: Memory,
        natural: Mapping[str, CellId],
        spilling: set[CellId],
        capacity: Mapping[CellId, Fraction],
    ) -> None:
        self._question = question
        self._memory = memory
        self._natural = natural
        self._spilling = spilling
        self._capacity = capacity
        self._room: dict[CellId, Fraction] = {}
        self._homes: dict[str, Home] = {}
        self._full: set[CellId] = set()  # whose own guests do not fit: for nobody else

    def assign(self, managed: Sequence[Guest]) -> dict[str, Home]:
        """Return all homes; who has to come home for want of room elsewhere is a native again."""
        away = {guest.uuid: memory for guest in managed if (memory := self._away(guest))}
        while driven_home := self._try(managed, away):
            for uuid in driven_home:
                del away[uuid]
        return self._homes

    def _try(self, managed: Sequence[Guest], away: Mapping[str, GuestMemory]) -> list[str]:
        """Give homes; return those of `away` that found no room anywhere."""
        self._room, self._homes = dict(self._capacity), {}
        overflow = [
            guest
            for guest in managed
            if guest.uuid not in away and not self._settle(guest, self._natural[guest.uuid])
        ]
        absent = [guest for guest in managed if guest.uuid in away]
        outside = [guest for guest in absent if not self._fits(guest, self._natural[guest.uuid])]
        self._full = {self._natural[guest.uuid] for guest in overflow + outside}
        absent = [guest for guest in absent if not self._returns(guest, away[guest.uuid])]
        absent = [guest for guest in absent if not self._stays(guest, away[guest.uuid])]
        elsewhere = sorted(absent + overflow, key=lambda guest: guest.seniority)
        homeless = [guest.uuid for guest in elsewhere if not self._spill(guest)]
        return [uuid for uuid in homeless if uuid in away]

    def _away(self, guest: Guest) -> GuestMemory | None:
        """Return the memory of a guest that is remote now."""
        memory = self._memory.guest(guest.uuid, guest.start)
        if memory is None or memory.home not in self._capacity or not self._may_spill(guest):
            return None
        return memory if memory.home != self._natural[guest.uuid] else None

    def _may_spill(self, guest: Guest) -> bool:
        return self._natural[guest.uuid] in self._spilling

    def _fits(self, guest: Guest, cell: CellId) -> bool:
        if cell in self._full and cell != self._natural[guest.uuid]:
            return False
        return guest.verdict.weight <= self._room[cell]

    def _settle(self, guest: Guest, cell: CellId, room_since: float | None = None) -> bool:
        """Give `guest` a place in `cell` if it fits, or if it may not spill."""
        if not self._fits(guest, cell) and self._may_spill(guest):
            return False
        self._room[cell] -= guest.verdict.weight
        self._homes[guest.uuid] = Home(cell, self._natural[guest.uuid], room_since)
        return True

    def _returns(self, guest: Guest, memory: GuestMemory) -> bool:
        """Bring a remote guest back if there has been room at home for long enough."""
        natural = self._natural[guest.uuid]
        due = self._room_since(memory) + self._question.settings.of(natural).shrink_delay
        if self._question.damped and self._question.now < due:
            return False
        return self._settle(guest, natural)

    def _room_since(self, memory: GuestMemory) -> float:
        return self._question.now if memory.room_since is None else memory.room_since

    def _stays(self, guest: Guest, memory: GuestMemory) -> bool:
        """Keep a remote guest where it is, if there is room for it still."""
        has_room = self._fits(guest, self._natural[guest.uuid])
        since = self._room_since(memory) if has_room else None
        return memory.home is not None and self._settle(guest, memory.home, since)

    def _spill(self, guest: Guest) -> bool:
        """Settle a guest in the nearest cell that has room; at home after all if none has."""
        natural = self._natural[guest.uuid]
        near = next(cell for cell in self._question.host.cells if cell.id == natural)
        far = dict(near.distances)
        others = sorted(self._room.keys() - {natural}, key=lambda cell: (far.get(cell, inf), cell))
        if any(self._settle(guest, cell) for cell in others):
            return True
        self._room[natural] -= guest.verdict.weight
        self._homes[guest.uuid] = Home(natural, natural)
        return False
