"""From texts to values: `interpret`. The package's docstring has the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.cpuset import EMPTY, CellId, CpuSet
from agent.topology.host import Cell, Discovery, Host, Pcpu
from agent.topology.readings import CpuReading, NodeReading, Understanding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.topology.readings import Attribute, Readings

_UMA: Final = CellId(0)


def online_cpus(readings: Readings) -> CpuSet:
    """Return the pCPUs that are online; of the readings, only those about that are needed."""
    return _online(Understanding(()), readings)


def interpret(readings: Readings) -> Discovery:
    """Turn what the files say into values; what they do not say becomes unknown."""
    reader = Understanding(readings.problems)
    online = _online(reader, readings)
    isolated = _isolated(reader, readings.isolated)
    listed = reader.cpus(readings.present) or CpuSet(cpu.id for cpu in readings.cpus)
    present = listed | online
    homes = _homes(reader, readings, present, online)
    host = Host(
        cells=_cells(reader, readings, {cpu: homes[cpu] for cpu in online if cpu in homes}),
        cpus=_pcpus(reader, readings, present, online=online, isolated=isolated, homes=homes),
        online=online,
        isolated=isolated & present,
    )
    return Discovery(host, tuple(reader.problems))


def _online(reader: Understanding, readings: Readings) -> CpuSet:
    # An empty list is no answer: whoever reads it runs on a pCPU.
    told = reader.cpus(readings.online)
    return told or CpuSet(cpu.id for cpu in readings.cpus if reader.is_on(cpu.online))


def _isolated(reader: Understanding, isolated: Attribute | None) -> CpuSet:
    # A list that was never allocated, because no boot option filled it, is printed as `(null)`.
    unset = isolated is None or isolated.text == "(null)"
    return EMPTY if unset else reader.cpus(isolated) or EMPTY


def _homes(
    reader: Understanding, readings: Readings, present: CpuSet, online: CpuSet
) -> dict[int, CellId]:
    """Return the cell of each pCPU that is known to be in one."""
    linked = _linked(readings)
    if not readings.nodes and not linked:
        return dict.fromkeys(online, _UMA)
    homes: dict[int, CellId] = {}
    for node in readings.nodes:
        cpus = (reader.cpus(node.cpus) or EMPTY) & present
        again = cpus & CpuSet(homes)
        if node.cpus is not None and again:
            reader.doubt(node.cpus, f"pCPUs {again} are in a node of lower id already")
        # The kernel gives a pCPU one node. Where broken firmware made it print several, hwloc and
        # lscpu agree on the first.
        homes.update(dict.fromkeys(cpus - again, node.id))
    return linked | homes


def _linked(readings: Readings) -> dict[int, CellId]:
    """Return the node of each pCPU that has a link to just one.

    Where nodes are listed at all, a link to none of them dangles: that node went offline.
    """
    nodes = {node.id for node in readings.nodes}
    return {
        cpu.id: cpu.linked[0]
        for cpu in readings.cpus
        if len(cpu.linked) == 1 and (not nodes or cpu.linked[0] in nodes)
    }


def _cells(
    reader: Understanding, readings: Readings, homes: Mapping[int, CellId]
) -> tuple[Cell, ...]:
    """Return the cells of the online pCPUs, whose homes are given."""
    nodes = {node.id: node for node in readings.nodes}
    columns = _columns(reader, readings)
    ids = sorted(set(homes.values()))
    cells = []
    for cell in ids:
        node = nodes.get(cell, NodeReading(cell))
        row = _row(reader, node, columns)
        cells.append(
            Cell(
                id=cell,
                cpus=CpuSet(cpu for cpu, home in homes.items() if home == cell),
                memory_bytes=reader.memory(node.meminfo),
                distances=tuple((other, row[other]) for other in ids if other in row),
            )
        )
    return tuple(cells)


def _columns(reader: Understanding, readings: Readings) -> tuple[tuple[int, ...], ...]:
    """Return which nodes the columns of a distance row can stand for.

    They are the online nodes. If a node came or went between two reads, the row has more or fewer
    columns than the list has nodes; with as many as there can be nodes, they are all of those.
    """
    online = reader.cpus(readings.nodes_online) or (node.id for node in readings.nodes)
    possible = reader.cpus(readings.nodes_possible) or EMPTY
    return tuple(online), tuple(possible)


def _row(
    reader: Understanding, node: NodeReading, columns: tuple[tuple[int, ...], ...]
) -> dict[int, int]:
    """Return the distances of a node by node, none if it is not clear which column is whose."""
    if node.distance is None:
        return {}
    words = node.distance.text.split()
    for ids in columns:
        if len(ids) == len(words) and node.id in ids and all(map(str.isdecimal, words)):
            return dict(zip(ids, map(int, words), strict=True))
    reader.doubt(node.distance, "not one number for each online node")
    return {}


def _pcpus(
    reader: Understanding,
    readings: Readings,
    present: CpuSet,
    *,
    online: CpuSet,
    isolated: CpuSet,
    homes: Mapping[int, CellId],
) -> tuple[Pcpu, ...]:
    directories = {cpu.id: cpu for cpu in readings.cpus}
    live = [directories[cpu] for cpu in online if cpu in directories]
    siblings = _undisputed(
        reader, "core", {c.id: reader.sharers(c.siblings, c.id, online) for c in live}
    )
    l3 = _undisputed(reader, "L3 cache", {c.id: reader.sharers(c.l3, c.id, online) for c in live})
    told = (directories.get(cpu, CpuReading(cpu)) for cpu in present)
    return tuple(
        Pcpu(
            id=cpu.id,
            online=cpu.id in online,
            isolated=cpu.id in isolated,
            cell=homes.get(cpu.id),
            package=reader.identity(cpu.package),
            die=reader.identity(cpu.die),
            core=reader.identity(cpu.core),
            siblings=siblings.get(cpu.id),
            l3=l3.get(cpu.id),
        )
        for cpu in told
    )


def _undisputed(
    reader: Understanding, what: str, told: Mapping[int, CpuSet | None]
) -> dict[int, CpuSet]:
    """Keep the sets of which each member that says anything says the same set."""
    claims = {cpu: cpus for cpu, cpus in told.items() if cpus is not None}
    claimants: dict[CpuSet, int] = {}
    for cpu, cpus in claims.items():
        claimants[cpus] = claimants.get(cpus, 0) | 1 << cpu
    speaking = CpuSet(claims)
    disputed = {
        cpus: others
        for cpus, by in claimants.items()
        if (others := (cpus & speaking) - CpuSet.from_bits(by))
    }
    reader.problems.extend(
        f"pCPUs {CpuSet.from_bits(claimants[cpus])} say that {cpus} share a {what}, "
        f"pCPUs {others} of these say otherwise"
        for cpus, others in disputed.items()
    )
    return {cpu: cpus for cpu, cpus in claims.items() if cpus not in disputed}
