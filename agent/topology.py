"""The host as its kernel describes it: pCPUs, cores, L3 domains, NUMA cells.

Terms. `Readings` is what the files of one tree under /sys say, as text; `sysfs` collects it.
`interpret` turns it into a `Host` and the problems met, and `to_json` a host into the answer of
`emupool topology`. The kernel calls a NUMA cell a node.

Invariants of what `interpret` returns:
- pCPUs and cells are sorted by id. Each cell has online pCPUs, and exactly those whose `cell` it
  is: no pCPU is in two.
- `siblings` and `l3` hold online pCPUs only, the pCPU itself among them, and each member of such a
  set that knows its own has the same one.
- What is missing, malformed or contradicted is None (`distances`: no entry), never a guess. All
  but the missing is told in `problems`, a line each. Nothing raises, whatever the files say.

Facts that the rules rest on (Documentation/admin-guide/cputopology.rst, ABI/stable and testing):
- An id of -1 is the default of an architecture that has none. Any other is "hardware's, and
  platform dependent": offsets into a firmware table on arm64, so no upper bound means "none".
- The masks of siblings and caches speak of online pCPUs. What an offline pCPU left behind in its
  own directory is stale, so only its ids are taken.
- The lists of nodes do not keep to online pCPUs, nor to present ones (ppc64).
- A kernel without NUMA has no node, and all memory is equally near to all pCPUs: one cell, 0. With
  nodes, a pCPU in none of them is in no cell: its node is offline.
- A row of `distance` has one column per online node, in order of id.

It costs one pass over the pCPUs with a few set operations each: some milliseconds for 512.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.cpuset import EMPTY, CellId, CpuSet, CpuSetError
from agent.errors import SysfsError

if TYPE_CHECKING:
    from collections.abc import Mapping

_UMA: Final = CellId(0)
_LARGEST_ID: Final = 2**31 - 1  # ids are of C's type `int`: 4294967295 is a -1 in disguise
_NUMBER = re.compile(r"-?[0-9]{1,18}\Z")
_MEM_TOTAL = re.compile(r"MemTotal:\s+([0-9]{1,15}) kB")
_MASKS: Final = ("map", "core_cpus", "thread_siblings")  # files so named; the others are lists
_DATA_CACHES: Final = frozenset({"Unified", "Data"})


@dataclass(frozen=True, slots=True)
class Pcpu:
    """One logical CPU that is present; None is what this kernel does not tell."""

    id: int
    online: bool
    isolated: bool
    cell: CellId | None
    package: int | None
    die: int | None
    core: int | None
    siblings: CpuSet | None  # the hardware threads of its physical core, itself included
    l3: CpuSet | None  # the pCPUs it shares its last-level (L3) cache with, itself included


@dataclass(frozen=True, slots=True)
class Cell:
    """A NUMA cell that has online pCPUs."""

    id: CellId
    cpus: CpuSet  # online ones only
    memory_bytes: int | None
    distances: tuple[tuple[CellId, int], ...]  # to each cell of the host, by id


@dataclass(frozen=True, slots=True)
class Host:
    """Cells and pCPUs, each sorted by id."""

    cells: tuple[Cell, ...]
    cpus: tuple[Pcpu, ...]  # present ones
    online: CpuSet
    isolated: CpuSet


@dataclass(frozen=True, slots=True)
class Attribute:
    """One file as it was read; the name says what form its text has."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class CpuReading:
    """The directory of one pCPU; None where it has no such file, or none that can be read."""

    id: int
    linked: tuple[CellId, ...] = ()  # the nodes that it has links to
    online: Attribute | None = None
    package: Attribute | None = None
    die: Attribute | None = None
    core: Attribute | None = None
    siblings: Attribute | None = None
    l3: Attribute | None = None  # the sharers of the cache that `is_l3` says is the one


@dataclass(frozen=True, slots=True)
class NodeReading:
    """The directory of one NUMA node."""

    id: CellId
    cpus: Attribute | None = None
    meminfo: Attribute | None = None
    distance: Attribute | None = None


@dataclass(frozen=True, slots=True)
class Readings:
    """What the files of a host say."""

    cpus: tuple[CpuReading, ...] = ()  # a directory each, whether present or not
    nodes: tuple[NodeReading, ...] = ()
    online: Attribute | None = None
    present: Attribute | None = None
    isolated: Attribute | None = None
    nodes_online: Attribute | None = None
    nodes_possible: Attribute | None = None
    problems: tuple[str, ...] = ()  # what could not be read, a line each


@dataclass(frozen=True, slots=True)
class Discovery:
    """A host, and what kept more of it from being known: a line per file that is wrong."""

    host: Host
    problems: tuple[str, ...] = ()


def is_l3(level: str, kind: str) -> bool:
    """Tell by the texts of its `level` and `type` whether a cache is the L3 of its pCPU."""
    return level == "3" and kind in _DATA_CACHES


def names_cpu(attribute: Attribute | None, cpu: int | None = None) -> bool:
    """Tell whether a set of pCPUs can be read that has `cpu` in it, or by default any."""
    cpus = _Understanding(()).cpus(attribute) or EMPTY
    return bool(cpus) if cpu is None else cpu in cpus


def online_cpus(readings: Readings) -> CpuSet:
    """Return the pCPUs that are online; of the readings, only those about that are needed."""
    return _online(_Understanding(()), readings)


def interpret(readings: Readings) -> Discovery:
    """Turn what the files say into values; what they do not say becomes unknown."""
    reader = _Understanding(readings.problems)
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


def to_json(host: Host) -> dict[str, object]:
    """Return the answer of `emupool topology --json`; None is what the kernel does not tell."""
    return {
        "schema": 1,
        "cells": [
            {
                "id": cell.id,
                "cpus": str(cell.cpus),
                "memory_bytes": cell.memory_bytes,
                "distances": {str(other): distance for other, distance in cell.distances},
            }
            for cell in host.cells
        ],
        "cpus": [
            {
                "id": cpu.id,
                "online": cpu.online,
                "isolated": cpu.isolated,
                "cell": cpu.cell,
                "package": cpu.package,
                "die": cpu.die,
                "core": cpu.core,
                "siblings": None if cpu.siblings is None else str(cpu.siblings),
                "l3": None if cpu.l3 is None else str(cpu.l3),
            }
            for cpu in host.cpus
        ],
    }


class _Understanding:
    """Reads texts, and keeps a line about each that it could not make sense of."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = list(problems)

    def doubt(self, attribute: Attribute, why: str) -> None:
        """Note that a file is wrong."""
        self.problems.append(str(SysfsError(attribute.path, attribute.text, why)))

    def cpus(self, attribute: Attribute | None) -> CpuSet | None:
        """Read a set of pCPUs, or of nodes, which has the same forms."""
        if attribute is None:
            return None
        parse = CpuSet.parse_mask if attribute.path.endswith(_MASKS) else CpuSet.parse
        try:
            return parse(attribute.text)
        except CpuSetError as error:
            self.doubt(attribute, str(error))
            return None

    def sharers(self, attribute: Attribute | None, cpu: int, online: CpuSet) -> CpuSet | None:
        """Read the online pCPUs that share something with `cpu`, which is one of them."""
        told = self.cpus(attribute)
        if attribute is None or told is None:
            return None
        if cpu not in told:
            self.doubt(attribute, f"pCPU {cpu} is not in its own set")
            return None
        return told & online

    def identity(self, attribute: Attribute | None) -> int | None:
        """Read the id of a package, die or core; a negative one is the kernel's "none"."""
        if attribute is None:
            return None
        if _NUMBER.match(attribute.text) is None:
            self.doubt(attribute, "not an id")
            return None
        number = int(attribute.text)
        return number if 0 <= number <= _LARGEST_ID else None

    def is_on(self, switch: Attribute | None) -> bool:
        """Read a pCPU's own `online`. One without has no switch: it cannot be taken offline."""
        if switch is not None and switch.text not in {"0", "1"}:
            self.doubt(switch, "neither 0 nor 1")
        return switch is None or switch.text == "1"

    def memory(self, meminfo: Attribute | None) -> int | None:
        """Read the size of a node's memory in bytes."""
        if meminfo is None:
            return None
        match = _MEM_TOTAL.search(meminfo.text)
        if match is None:
            self.doubt(meminfo, "has no MemTotal in kB")
            return None
        return int(match[1]) * 1024


def _online(reader: _Understanding, readings: Readings) -> CpuSet:
    # An empty list is no answer: whoever reads it runs on a pCPU.
    told = reader.cpus(readings.online)
    return told or CpuSet(cpu.id for cpu in readings.cpus if reader.is_on(cpu.online))


def _isolated(reader: _Understanding, isolated: Attribute | None) -> CpuSet:
    # A list that was never allocated, because no boot option filled it, is printed as `(null)`.
    unset = isolated is None or isolated.text == "(null)"
    return EMPTY if unset else reader.cpus(isolated) or EMPTY


def _homes(
    reader: _Understanding, readings: Readings, present: CpuSet, online: CpuSet
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
    reader: _Understanding, readings: Readings, homes: Mapping[int, CellId]
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


def _columns(reader: _Understanding, readings: Readings) -> tuple[tuple[int, ...], ...]:
    """Return which nodes the columns of a distance row can stand for.

    They are the online nodes. If a node came or went between two reads, the row has more or fewer
    columns than the list has nodes; with as many as there can be nodes, they are all of those.
    """
    online = reader.cpus(readings.nodes_online) or (node.id for node in readings.nodes)
    possible = reader.cpus(readings.nodes_possible) or EMPTY
    return tuple(online), tuple(possible)


def _row(
    reader: _Understanding, node: NodeReading, columns: tuple[tuple[int, ...], ...]
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
    reader: _Understanding,
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
    reader: _Understanding, what: str, told: Mapping[int, CpuSet | None]
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
