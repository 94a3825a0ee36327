"""What the rules of pools say, tried out over all possibilities: slow, and as short as the rules.

Nothing here is shared with the code that it judges but the values that go in and come out.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product
from math import ceil, inf
from typing import TYPE_CHECKING

from agent.cpuset import CellId, CpuSet
from agent.policy import Policy
from agent.pool import OnShortage, Placement, PoolSource, Smt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agent.choice import Request
    from agent.pool import CellSettings
    from agent.snapshot import Guest
    from agent.topology import Cell, Host
    from tests.worlds import World


# the choice of pCPUs


def least(request: Request) -> CpuSet:
    """Return the best of all sets of the size that is asked for."""
    size = min(request.size, len(request.candidates))
    sets = combinations(list(request.candidates), size)
    best = min(sets, key=lambda chosen: _order(request, chosen))
    return CpuSet(best)


def _order(request: Request, chosen: tuple[int, ...]) -> tuple[object, ...]:
    core_of = {cpu: core for core in request.groups.cores for cpu in core}
    runs_realtime = [cpu for cpu in chosen if set(core_of[cpu]) & set(request.realtime)]
    runs_claim = [cpu for cpu in chosen if set(core_of[cpu]) & set(request.claimed)]
    busy = set(request.claimed) | set(request.reserved) | set(request.present)
    fresh = [c for c in request.groups.cores if set(c) & set(chosen) and not set(c) & busy]
    touched = [l3 for l3 in request.groups.l3s if set(l3) & set(chosen)]
    carried = request.carried or {}
    given_up = sum(guests for cpu, guests in carried.items() if cpu not in chosen)
    minded = request.mind_siblings
    return (
        len(runs_realtime) if minded else 0,
        len(runs_claim) if minded else 0,
        len(set(chosen) - set(request.present)),
        len(fresh),
        len(touched),
        given_up,
        chosen,
    )


# what a pool may take, and what it takes


def claims(world: World, *, realtime: bool = False) -> set[int]:
    """Return the pCPUs that a vCPU is pinned to one-to-one, of guests that count."""
    return {
        vcpu.cpus.first()
        for one in world.guests
        if one.active or world.settings.count_inactive
        for vcpu in one.domain.vcpus
        if vcpu.cpus is not None and len(vcpu.cpus) == 1 and (vcpu.realtime or not realtime)
    }


def candidates(world: World, cell: Cell) -> set[int]:
    """Return what the pool of `cell` may take, on a host that nothing is remembered of."""
    own = world.settings.of(cell.id)
    nova = any(one.domain.nova is not None for one in world.guests)
    source = own.source
    if source is PoolSource.AUTO:
        source = PoolSource.RESERVED if nova else PoolSource.FREE
    found = set(cell.cpus) - set(own.reserved_cpus) - claims(world)
    if world.partition is not None:
        found &= set(world.partition)
    if own.cpus:
        found &= set(own.cpus)
    if source is PoolSource.RESERVED:
        found &= _set_aside(world)
    else:
        found -= _alone_in_a_foreign_pin(world)
    if source is PoolSource.FREE:
        found -= set(world.host.isolated) - set(own.cpus)
        if nova and not own.cpus:
            return set()
    if source is PoolSource.SET:
        found &= set(own.cpus)
    if own.smt is Smt.STRICT:
        found = {cpu for cpu in found if not _core(world.host, cpu) & claims(world)}
    return found


def _set_aside(world: World) -> set[int]:
    originals = {one.uuid: set(one.original.emulator or ()) for one in world.guests}
    return {
        cpu
        for one in managed(world)
        if one.verdict.policy is Policy.ISOLATE and len(originals[one.uuid]) == 1
        for cpu in originals[one.uuid]
        if not any(cpu in other for uuid, other in originals.items() if uuid != one.uuid)
    }


def _alone_in_a_foreign_pin(world: World) -> set[int]:
    pins = [
        pin
        for one in world.guests
        if one.verdict.policy not in world.manage
        if one.active or world.settings.count_inactive
        for pin in (one.domain.emulator, *(thread.cpus for thread in one.domain.iothreads))
    ]
    return {pin.first() for pin in pins if pin is not None and len(pin) == 1}


def managed(world: World) -> list[Guest]:
    """Return who is ours, from the oldest to the newest."""
    ours = [one for one in world.guests if one.active and one.verdict.policy in world.manage]
    return sorted(ours, key=lambda one: (one.age, one.uuid))


def need(own: CellSettings, weight: Fraction) -> int:
    if not weight:
        return 0
    unclamped = max(own.min_cpus, ceil(weight / own.emulator_overcommit_ratio))
    return min(unclamped, own.max_cpus) if own.max_cpus else unclamped


def pool(world: World) -> CpuSet:
    """Return the pool of a host of one cell, undamped; the cell's memory says what is present."""
    (cell,) = world.host.cells
    own = world.settings.of(cell.id)
    may = candidates(world, cell)
    present = set(world.memory.cells[cell.id].cpus) if cell.id in world.memory.cells else set()
    wanted = need(own, sum((one.verdict.weight for one in managed(world)), Fraction(0)))
    ratio, isolated = own.emulator_overcommit_ratio, set(world.host.isolated)
    single = own.placement is Placement.SINGLE or (
        own.placement is Placement.AUTO and ratio >= 1 and bool(may & isolated)
    )
    sets = combinations(sorted(may), min(wanted, len(may)))

    def order(chosen: Iterable[int]) -> tuple[object, ...]:
        chosen = tuple(chosen)
        cores = {_core(world.host, cpu) for cpu in chosen}
        beside = [_core(world.host, cpu) & claims(world) for cpu in chosen]
        realtime = [_core(world.host, cpu) & claims(world, realtime=True) for cpu in chosen]
        busy = claims(world) | set(own.reserved_cpus) | present
        held = [_only_pcpu(one) for one in managed(world)] if single else []
        minded = own.smt is not Smt.ANY
        return (
            sum(map(bool, realtime)) if minded else 0,
            sum(map(bool, beside)) if minded else 0,
            len(set(chosen) - present),
            sum(not core & busy for core in cores),
            len({world.host.cpus[cpu].l3 for cpu in chosen} - {None}),
            sum(cpu not in chosen for cpu in held if cpu is not None),
            chosen,
        )

    return CpuSet(min(sets, key=order))


def _core(host: Host, cpu: int) -> frozenset[int]:
    return frozenset(host.cpus[cpu].siblings or ())


def _only_pcpu(one: Guest) -> int | None:
    pin = one.domain.emulator
    return pin.first() if pin is not None and len(pin) == 1 else None


# who has which pCPU under `single` placement


def fewest_moves(held: Sequence[int | None], pool: Iterable[int]) -> tuple[int, ...]:
    """Return who is moved (1) and who is not (0), in order of age.

    Nobody carries more than its share, as few as possible are moved, and of those ways the one
    that leaves the oldest alone.
    """
    among = list(pool)
    limit = ceil(len(held) / len(among))
    ways = product(among, repeat=len(held))
    even = (way for way in ways if all(way.count(cpu) <= limit for cpu in among))
    moves = (tuple(int(to != was) for to, was in zip(way, held, strict=True)) for way in even)
    return min(moves, key=lambda moved: (sum(moved), moved))


# homes


def homes(world: World) -> dict[str, int]:
    """Return where each managed guest counts, on a host that nothing is remembered of."""
    room: dict[int, Fraction] = {cell.id: _capacity(world, cell) for cell in world.host.cells}
    load: dict[int, Fraction] = {cell.id: Fraction(0) for cell in world.host.cells}
    natural: dict[str, int] = {}
    for one in sorted(managed(world), key=lambda one: one.busy):  # who still arrives comes last
        tied = _tied(world.host, one)
        natural[one.uuid] = _emptiest(world.host, one, load, room) if tied is None else tied
        load[natural[one.uuid]] += one.verdict.weight
    return _spilled(world, natural, room)


def _capacity(world: World, cell: Cell) -> Fraction:
    own = world.settings.of(cell.id)
    cpus = len(candidates(world, cell))
    return (min(cpus, own.max_cpus) if own.max_cpus else cpus) * own.emulator_overcommit_ratio


def _tied(host: Host, one: Guest) -> int | None:
    cells = {int(cell.id) for cell in host.cells}
    if one.verdict.cell in cells:
        return one.verdict.cell
    for nodes in (one.domain.memnode, one.domain.memory_nodes):
        if nodes is not None and len(nodes) == 1 and set(nodes) <= cells:
            return min(nodes)
    pinned = [vcpu.cpus.first() for vcpu in one.domain.vcpus if vcpu.cpus and len(vcpu.cpus) == 1]
    counts = {cell.id: sum(cpu in cell.cpus for cpu in pinned) for cell in host.cells}
    best = min(counts, key=lambda cell: (-counts[cell], cell))
    return best if counts[best] else None


def _emptiest(
    host: Host, one: Guest, load: Mapping[int, Fraction], room: Mapping[int, Fraction]
) -> int:
    masks = [vcpu.cpus for vcpu in one.domain.vcpus]
    reached = [
        int(cell.id)
        for cell in host.cells
        if any(mask is None or set(mask) & set(cell.cpus) for mask in masks)
    ] or [int(cell.id) for cell in host.cells]
    with_room = [cell for cell in reached if room[cell]]
    if with_room:
        return min(with_room, key=lambda cell: (load[cell] / room[cell], cell))
    return min(reached, key=lambda cell: (load[cell], cell))


def _spilled(
    world: World, natural: Mapping[str, int], capacity: Mapping[int, Fraction]
) -> dict[str, int]:
    room = dict(capacity)
    found: dict[str, int] = {}
    overflow = []
    for one in managed(world):
        home, weight = natural[one.uuid], one.verdict.weight
        spills = world.settings.of(CellId(home)).on_shortage is OnShortage.SPILL
        if spills and weight > room[home]:
            overflow.append(one)
        else:
            found[one.uuid] = home
            room[home] -= weight
    full = {natural[one.uuid] for one in overflow}
    for one in overflow:
        home, weight = natural[one.uuid], one.verdict.weight
        row = dict(next(cell for cell in world.host.cells if cell.id == home).distances)
        others = [cell for cell in room if cell not in full and weight <= room[cell]]
        nearest = min(others, key=lambda cell: (row.get(CellId(cell), inf), cell), default=home)
        found[one.uuid] = nearest
        room[nearest] -= weight
    return found
