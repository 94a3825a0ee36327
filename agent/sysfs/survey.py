"""One pass over the files of a host: which are read, and in which order until one makes sense.

Where the same fact stands in several files (list and mask, new and deprecated name), they are read
until one has it. Most pCPUs are in the list of a node, and then their links are not looked for.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agent import topology
from agent.cpuset import LIMIT, CellId
from agent.errors import SysfsError
from agent.sysfs.folder import DIRECTORY, Folder, open_resolved
from agent.topology import Attribute, CpuReading, NodeReading, Readings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from agent.cpuset import CpuSet

CPUS: Final = "sys/devices/system/cpu"
_SYSTEM: Final = ("sys", "devices", "system")

_CPU = re.compile(r"cpu(0|[1-9][0-9]{0,4})\Z")
_NODE = re.compile(r"node(0|[1-9][0-9]{0,4})\Z")
_INDEX = re.compile(r"index(0|[1-9][0-9]{0,4})\Z")
_USUAL_L3: Final = 3

# Lists before masks, documented names before deprecated ones. The list of a pCPU's core got its
# present name with Linux 5.3; the oldest kernels had masks only.
_SIBLINGS: Final = ("core_cpus_list", "thread_siblings_list", "core_cpus", "thread_siblings")
_SHARERS: Final = ("shared_cpu_list", "shared_cpu_map")
_NODE_CPUS: Final = ("cpulist", "cpumap")


class Survey:
    """One pass over a tree: what cannot be read is left out, and noted."""

    def __init__(self) -> None:
        """Begin with no problem."""
        self.problems: list[str] = []

    def system(self, root: Path) -> Folder:
        """Open the directory of `cpu` and `node` below `root`, which alone may itself be a link."""
        top = os.path.realpath(root)
        try:
            folder = Folder(top, top.rstrip("/"), open_resolved(top, DIRECTORY))
        except SysfsError as error:
            self.problems.append(str(error))
            return Folder(top, top, None)
        for name in _SYSTEM:
            with folder:
                folder = self.folder(folder, name)
        return folder

    def folder(self, parent: Folder, name: str) -> Folder:
        """Open a directory, an absent one if it cannot be."""
        try:
            return parent.enter(name)
        except SysfsError as error:
            self.problems.append(str(error))
            return Folder("", f"{parent.path}/{name}", None)

    def numbered(self, parent: Folder, pattern: re.Pattern[str]) -> tuple[int, ...]:
        """Return the numbers of the directories whose names fit, ascending."""
        try:
            matches = (pattern.match(name) for name in parent.folders())
            return tuple(sorted(int(m[1]) for m in matches if m and int(m[1]) < LIMIT))
        except SysfsError as error:
            self.problems.append(str(error))
            return ()

    def attribute(self, parent: Folder, name: str) -> Attribute | None:
        """Read a file, None if there is none that can be read."""
        try:
            text = parent.text(name)
        except SysfsError as error:
            self.problems.append(str(error))
            return None
        return None if text is None else Attribute(f"{parent.path}/{name}", text)

    def cpu_set(
        self, parent: Folder, names: tuple[str, ...], cpu: int | None = None
    ) -> Attribute | None:
        """Read the first of some files that has a set with `cpu` in it, else the last there is.

        Kernels have got the list wrong while the mask was right.
        """
        found = None
        for name in names:
            found = self.attribute(parent, name) or found
            if topology.names_cpu(found, cpu):
                break
        return found

    def switch(self, cpu: Folder) -> Attribute | None:
        """Read a pCPU's own `online`; one that cannot be read does not say that it is."""
        try:
            text = cpu.text("online")
        except SysfsError as error:
            self.problems.append(str(error))
            text = ""
        return None if text is None else Attribute(f"{cpu.path}/online", text)

    def switches(self, parent: Folder) -> tuple[CpuReading, ...]:
        """Read which pCPUs are online from their own directories, and nothing else."""
        readings = []
        for number in self.numbered(parent, _CPU):
            with self.folder(parent, f"cpu{number}") as cpu:
                readings.append(CpuReading(number, online=self.switch(cpu)))
        return tuple(readings)

    def numbers(self, parent: Folder) -> tuple[int, ...]:
        """Return the ids of the pCPUs that have a directory, ascending."""
        return self.numbered(parent, _CPU)

    def cpu(self, parent: Folder, number: int, homed: CpuSet, *, ask: bool) -> CpuReading:
        """Read the directory of one pCPU; `ask`: also whether it is online.

        For those that are `homed`, which a node lists, links to nodes are not looked for.
        """
        with (
            self.folder(parent, f"cpu{number}") as cpu,
            self.folder(cpu, "topology") as told,
            self.folder(cpu, "cache") as caches,
        ):
            links = () if number in homed else self.numbered(cpu, _NODE)
            return CpuReading(
                id=number,
                linked=tuple(CellId(node) for node in links),
                online=self.switch(cpu) if ask else None,
                package=self.attribute(told, "physical_package_id"),
                die=self.attribute(told, "die_id"),
                core=self.attribute(told, "core_id"),
                siblings=self.cpu_set(told, _SIBLINGS, number),
                l3=self.l3(caches, number),
            )

    def l3(self, caches: Folder, cpu: int) -> Attribute | None:
        """Read who shares the L3 cache."""
        for number in self._indexes(caches):
            with self.folder(caches, f"index{number}") as cache:
                level = self.attribute(cache, "level")
                # Most caches are not of level 3: do not open what their type is.
                kind = self.attribute(cache, "type") if level and level.text == "3" else None
                if level and kind and topology.is_l3(level.text, kind.text):
                    return self.cpu_set(cache, _SHARERS, cpu)
        return None

    def _indexes(self, caches: Folder) -> Iterator[int]:
        """Yield where to look for the L3: its usual place, then the others from the last."""
        yield _USUAL_L3
        yield from (n for n in reversed(self.numbered(caches, _INDEX)) if n != _USUAL_L3)

    def nodes(self, parent: Folder) -> tuple[NodeReading, ...]:
        """Read the directories of all nodes."""
        readings = []
        for number in self.numbered(parent, _NODE):
            with self.folder(parent, f"node{number}") as node:
                readings.append(
                    NodeReading(
                        id=CellId(number),
                        cpus=self.cpu_set(node, _NODE_CPUS),
                        meminfo=self.attribute(node, "meminfo"),
                        distance=self.attribute(node, "distance"),
                    )
                )
        return tuple(readings)

    def overview(self, cpus: Folder, nodes: Folder) -> Readings:
        """Read all but the directories of the pCPUs."""
        return Readings(
            online=self.attribute(cpus, "online"),
            present=self.attribute(cpus, "present"),
            isolated=self.attribute(cpus, "isolated"),
            nodes_online=self.attribute(nodes, "online"),
            nodes_possible=self.attribute(nodes, "possible"),
            nodes=self.nodes(nodes),
        )

    def complete(self, told: Readings, cpus: Iterable[CpuReading]) -> Readings:
        """Return an overview with the pCPUs, and with what was wrong so far."""
        return replace(told, cpus=tuple(cpus), problems=tuple(self.problems))
