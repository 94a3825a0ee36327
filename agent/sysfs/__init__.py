"""Reads what the kernel tells about the host, the only package that opens files under /sys.

`Sysfs` walks the tree below a root, a live `/` or a copy, and hands its texts to `topology`,
which says what they mean. A file gives its text, None if this kernel has no such file, or a
`SysfsError`. What could not be read is unknown in the host and told as a problem: one bad file
does not cost the daemon its view of the host. Only a tree with no online pCPU raises.

- Nothing outside of the root is read, whatever its links say (`folder`). The kernel's own links
  are not needed: that `cpu3/node1` exists says where pCPU 3 is.
- Each file is opened at most once per discovery, and only what the answer needs (`survey`): about
  seven for a pCPU. An open of what is not there costs less than to look for it.
- `discover` reads everything. `refresh`, after a pCPU went on or off line, reads only what that can
  have changed, and keeps the texts of the other pCPUs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent import topology
from agent.errors import SysfsError
from agent.sysfs.folder import FILE
from agent.sysfs.survey import CPUS, Survey
from agent.topology import Readings

if TYPE_CHECKING:
    from agent.cpuset import CpuSet
    from agent.topology import Discovery

__all__ = ["Sysfs"]

_GLANCE: Final = 1 << 12
_LIVE: Final = Path("/")


class Sysfs:
    """The files of one host."""

    def __init__(self, root: Path) -> None:
        """Read below `root`: `/`, or where a copy of a host's /sys lies in `sys`."""
        self._root = root
        self._listed: tuple[bytes, CpuSet] | None = None  # text of `online`, and what it says
        self._last: tuple[Readings, Discovery] | None = None

    def discover(self) -> Discovery:
        """Return the host, and a line for each file that is wrong.

        SysfsError if no pCPU is online there: `root` is no host, nor the copy of one.
        """
        return self._understand(self.read())

    def refresh(self) -> Discovery:
        """Return what `discover` would, if since the last call pCPUs only went on or off line.

        Nodes and what is told of all pCPUs at once is read anew. Where a file was wrong, or there
        is no list of what is online, that is a discovery.
        """
        if self._last is None or self._last[1].problems:
            return self.discover()
        return self._understand(self._reread(*self._last) or self.read())

    def online(self) -> CpuSet:
        """Return the pCPUs that are online, which takes one file where the kernel has it.

        It is what `discover` would say. SysfsError if there is none. The same text says the same.
        """
        text = self._glance()
        if text and self._listed is not None and self._listed[0] == text:
            return self._listed[1]
        online = self._online()
        if text:
            self._listed = text, online
        return online

    def read(self) -> Readings:
        """Return the texts of all files that `discover` looks at."""
        survey = Survey()
        with (
            survey.system(self._root) as system,
            survey.folder(system, "cpu") as cpus,
            survey.folder(system, "node") as nodes,
        ):
            told = survey.overview(cpus, nodes)
            homed = topology.in_nodes(told)
            ask = not topology.names_cpu(told.online)
            each = (survey.cpu(cpus, n, homed, ask=ask) for n in survey.numbers(cpus))
            return survey.complete(told, each)

    def _reread(self, before: Readings, found: Discovery) -> Readings | None:
        """Return what `read` would, but with what cannot have changed from `before`.

        None if there is no telling what changed.
        """
        survey = Survey()
        with (
            survey.system(self._root) as system,
            survey.folder(system, "cpu") as cpus,
            survey.folder(system, "node") as nodes,
        ):
            told = survey.overview(cpus, nodes)
            if not topology.names_cpu(told.online):
                return None
            homed = topology.in_nodes(told)
            changed = topology.changed(found.host, told)
            known = {cpu.id: cpu for cpu in before.cpus if cpu.id not in changed}
            numbers = survey.numbers(cpus)
            new = {n: survey.cpu(cpus, n, homed, ask=False) for n in numbers if n not in known}
            touched = topology.touched(changed, new.values(), found.host)
            new |= {n: survey.cpu(cpus, n, homed, ask=False) for n in touched if n in known}
            return survey.complete(told, (new.get(n) or known[n] for n in numbers))

    def _understand(self, readings: Readings) -> Discovery:
        if self._last is not None and self._last[0] == readings:
            return self._last[1]  # the very object: a host that did not change is told by that
        found = topology.interpret(readings)
        if not found.host.online:
            raise self._no_cpu()
        self._last = readings, found
        return found

    def _glance(self) -> bytes | None:
        """Return the text of `online` if one plain read of the live host gives all of it.

        Where the root is all there is, no link can lead out of it.
        """
        if self._root != _LIVE:
            return None
        try:
            fd = os.open("/sys/devices/system/cpu/online", FILE)
        except OSError:
            return None
        try:
            text = os.read(fd, _GLANCE)
        except OSError:
            return None
        finally:
            os.close(fd)
        return text if len(text) < _GLANCE else None

    def _online(self) -> CpuSet:
        survey = Survey()
        with survey.system(self._root) as system, survey.folder(system, "cpu") as cpus:
            listed = survey.attribute(cpus, "online")
            switches = () if topology.names_cpu(listed) else survey.switches(cpus)
        online = topology.online_cpus(Readings(cpus=switches, online=listed))
        if not online:
            raise self._no_cpu()
        return online

    def _no_cpu(self) -> SysfsError:
        where = os.path.join(self._root, CPUS)  # noqa: PTH118 - one spelling for all paths here
        return SysfsError(where, "", "no pCPU is online there; a root holds the host's /sys as sys")
