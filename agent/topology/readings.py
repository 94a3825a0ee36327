"""What the files of a tree under /sys say, as text, and what a single text means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.cpuset import EMPTY, CpuSet, CpuSetError, union
from agent.errors import SysfsError

if TYPE_CHECKING:
    from agent.cpuset import CellId

_LARGEST_ID: Final = 2**31 - 1  # ids are of C's type `int`: 4294967295 is a -1 in disguise
_NUMBER = re.compile(r"-?[0-9]{1,18}\Z")
_MEM_TOTAL = re.compile(r"MemTotal:\s+([0-9]{1,15}) kB")
_MASKS: Final = ("map", "core_cpus", "thread_siblings")  # files so named; the others are lists
_DATA_CACHES: Final = frozenset({"Unified", "Data"})


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


def is_l3(level: str, kind: str) -> bool:
    """Tell by the texts of its `level` and `type` whether a cache is the L3 of its pCPU."""
    return level == "3" and kind in _DATA_CACHES


def names_cpu(attribute: Attribute | None, cpu: int | None = None) -> bool:
    """Tell whether a set of pCPUs can be read that has `cpu` in it, or by default any."""
    cpus = Understanding(()).cpus(attribute) or EMPTY
    return bool(cpus) if cpu is None else cpu in cpus


def in_nodes(readings: Readings) -> CpuSet:
    """Return the pCPUs that the nodes list."""
    understood = map(Understanding(()).cpus, (node.cpus for node in readings.nodes))
    return union(cpus for cpus in understood if cpus is not None)


class Understanding:
    """Reads texts, and keeps a line about each that it could not make sense of."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        """Begin with the problems that are known already."""
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
