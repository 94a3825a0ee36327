"""Which pCPUs: the exact lexicographic minimum, in polynomial time.

Of all sets of a given size within the candidates, the one is chosen whose tuple of counts is
smallest (real-time neighbours, claimed neighbours, newcomers, wholly free cores, L3
domains, guests given up, ids).

The first three counts are sums over pCPUs, so the pCPUs fall into eight levels, best first, and
whole levels are taken until one is too large. Most choices end there: a pool that stays what it
is fills its level. Only the last level taken from has *ties*, which the other criteria decide.

Those are a knapsack: a fixed charge per core and L3 domain that the set touches, and sums over
pCPUs. Ids fit in, because of two sets of one size the one with the smaller sorted ids is the one
that has the lowest id in which they differ: giving the pCPU of rank r the bit 2^(n-1-r) turns the
criterion into a sum (the largest is best). The tuple packs into one integer, in which minimum and
addition are those of the tuples, because no field can overflow. Cores lie in L3 domains, or (one
L3 per thread, as in virtual machines) the other way round: either way the groups form a tree.
Each node answers "the cheapest j of my pCPUs, for each j up to the size"; children merge by
min-plus convolution. Groups that overlap without nesting exist on no real host; the smaller
one's charge is then dropped.

Cost: O(ties x size) additions of integers with one bit per tie and a few words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.cpuset import EMPTY, CpuSet
from agent.groups import beside

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agent.groups import CellGroups

_FIELD: Final = 24  # bits per count: more than any host has pCPUs or guests
_FRESH_CORE, _L3, _GIVEN_UP = 2, 1, 0  # places of the counts above the bits of ids


@dataclass(frozen=True, slots=True)
class Request:
    """One choice to make, in one NUMA cell.

    `claimed`, `realtime` (a part of it) and `reserved` may hold any pCPUs, `present` those of the
    pool now. `carried` says how many guests a pCPU carries alone under `single` placement.
    """

    size: int
    candidates: CpuSet
    groups: CellGroups
    claimed: CpuSet = EMPTY
    realtime: CpuSet = EMPTY
    reserved: CpuSet = EMPTY
    present: CpuSet = EMPTY
    carried: Mapping[int, int] | None = None
    mind_siblings: bool = True  # False: criteria 1 and 2 are dropped (`smt = any`)


def choose(request: Request) -> CpuSet:
    """Return the best set of `request.size` candidates, or all of them if there are fewer."""
    if request.size >= len(request.candidates):
        return request.candidates
    chosen = ties = EMPTY
    for ties in _levels(request):
        if len(chosen) + len(ties) > request.size:
            break
        chosen |= ties
    return chosen | _break_ties(request, chosen, ties)


def _levels(request: Request) -> Iterator[CpuSet]:
    """Yield the candidates by the first three criteria, best first; some levels are empty."""
    minded = request.groups.cores if request.mind_siblings else ()
    realtime = beside(minded, request.realtime)
    claimed = beside(minded, request.claimed)
    cpus = request.candidates
    for calm in (cpus - realtime, cpus & realtime):
        for quiet in (calm - claimed, calm & claimed):
            yield quiet & request.present
            yield quiet - request.present


def _break_ties(request: Request, chosen: CpuSet, ties: CpuSet) -> CpuSet:
    """Return the best of `ties` that fill the set up to its size beside `chosen`."""
    missing = request.size - len(chosen)
    if not missing:
        return EMPTY
    ranked = list(ties)
    tree = _Tree(_charges(request, chosen, ties), _unit_costs(request, ranked), missing)
    bits = -tree.cheapest(ties)[missing] & ((1 << len(ranked)) - 1)
    return CpuSet(cpu for rank, cpu in enumerate(reversed(ranked)) if bits >> rank & 1)


def _unit_costs(request: Request, ranked: Sequence[int]) -> dict[int, int]:
    """Return the packed cost of each pCPU by itself; the lowest id has the highest bit."""
    carried = request.carried or {}
    kept = _charge(_GIVEN_UP, len(ranked))
    last = len(ranked) - 1
    return {
        cpu: -carried.get(cpu, 0) * kept - (1 << last - rank) for rank, cpu in enumerate(ranked)
    }


def _charge(place: int, ids: int) -> int:
    """Return one unit of the count at `place`, above `ids` bits."""
    return 1 << ids + _FIELD * place


def _charges(request: Request, chosen: CpuSet, ties: CpuSet) -> dict[CpuSet, int]:
    """Return the groups within `ties` and what touching each costs, unless `chosen` does."""
    taken = request.claimed | request.reserved | request.present
    groups = request.groups
    fresh = (core for core in groups.cores if core.isdisjoint(taken))
    charges: dict[CpuSet, int] = {}
    for place, members in ((_FRESH_CORE, fresh), (_L3, groups.l3s)):
        for cpus in members:
            within = cpus & ties
            if within and cpus.isdisjoint(chosen):
                charges[within] = charges.get(within, 0) + _charge(place, len(ties))
    return charges


class _Tree:
    """Nested groups, and the cheapest j pCPUs of each."""

    def __init__(self, charges: dict[CpuSet, int], costs: Mapping[int, int], size: int) -> None:
        self._charges = charges
        self._costs = costs
        self._size = size
        self._nodes = sorted(charges, key=lambda cpus: (-len(cpus), cpus.bits))

    def cheapest(self, cpus: CpuSet) -> list[int]:
        """Return, for j = 0..size, the packed cost of the cheapest j of `cpus`."""
        return self._best(cpus, self._outermost(cpus, self._nodes), charge=0)

    def _outermost(
        self, within: CpuSet, nodes: Sequence[CpuSet]
    ) -> list[tuple[CpuSet, list[CpuSet]]]:
        """Return the outermost groups in `within`, each with the groups inside it."""
        outermost: list[tuple[CpuSet, list[CpuSet]]] = []
        owner: dict[int, tuple[CpuSet, list[CpuSet]]] = {}
        covered = EMPTY
        for node in nodes:  # from the largest to the smallest
            outer = owner.get(node.first())
            if outer is not None and node <= outer[0]:
                outer[1].append(node)
            elif node <= within and node.isdisjoint(covered):
                outermost.append((node, []))
                owner.update(dict.fromkeys(node, outermost[-1]))
                covered |= node
        return outermost

    def _best(
        self, members: CpuSet, children: Sequence[tuple[CpuSet, list[CpuSet]]], charge: int
    ) -> list[int]:
        table = [0]
        loose = members
        for child, inside in children:
            nested = self._outermost(child, inside)
            table = self._merge(table, self._best(child, nested, self._charges[child]))
            loose -= child
        table = self._merge(table, self._prefixes(loose))
        return [table[0]] + [cost + charge for cost in table[1:]]

    def _prefixes(self, cpus: CpuSet) -> list[int]:
        """Return the cheapest j of pCPUs that share no group: the j cheapest of them."""
        table = [0]
        for cost in sorted(self._costs[cpu] for cpu in cpus)[: self._size]:
            table.append(table[-1] + cost)
        return table

    def _merge(self, left: list[int], right: list[int]) -> list[int]:
        """Return the cheapest j of two disjoint tables, for each j up to the size."""
        if len(left) == 1 or len(right) == 1:
            return left if len(right) == 1 else right
        top = min(self._size, len(left) + len(right) - 2)
        return [
            min(
                left[i] + right[j - i]
                for i in range(max(0, j - len(right) + 1), min(j, len(left) - 1) + 1)
            )
            for j in range(top + 1)
        ]
