"""Reads what the kernel tells about the host, the only module that opens files under /sys.

`Sysfs` walks the tree below a root, a live `/` or a copy, and hands its texts to `topology`,
which says what they mean. A file gives its text, None if this kernel has no such file, or a
`SysfsError`. What could not be read is unknown in the host and told as a problem: one bad file
does not cost the daemon its view of the host. Only a tree with no online pCPU raises.

- A name is opened relative to its directory, and no link is followed by the system call. Where a
  copy has a link, it is resolved first and must stay below the root. The kernel's own links are
  not needed: that `cpu3/node1` exists says where pCPU 3 is.
- Each file is opened at most once per discovery, and only what the answer needs: about eight for
  a pCPU. Where the same fact stands in several (list and mask, new and deprecated name), they are
  read until one makes sense. An open of what is not there costs less than to look for it.
- Nothing is kept from one call to the next.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, Final, Self

from agent import topology
from agent.cpuset import LIMIT, CellId
from agent.errors import SysfsError
from agent.topology import Attribute, CpuReading, NodeReading, Readings

if TYPE_CHECKING:
    from pathlib import Path

    from agent.cpuset import CpuSet
    from agent.topology import Discovery

_CPUS: Final = ("sys", "devices", "system", "cpu")
_NODES: Final = ("sys", "devices", "system", "node")

_CPU = re.compile(r"cpu(0|[1-9][0-9]{0,4})\Z")
_NODE = re.compile(r"node(0|[1-9][0-9]{0,4})\Z")
_INDEX = re.compile(r"index(0|[1-9][0-9]{0,4})\Z")

# Lists before masks, documented names before deprecated ones. The list of a pCPU's core got its
# present name with Linux 5.3; the oldest kernels had masks only.
_SIBLINGS: Final = ("core_cpus_list", "thread_siblings_list", "core_cpus", "thread_siblings")
_SHARERS: Final = ("shared_cpu_list", "shared_cpu_map")
_NODE_CPUS: Final = ("cpulist", "cpumap")

# An attribute is a page at most (64 KiB on some kernels), and the longest list of pCPUs that the
# kernel can print, each second of 8192, is 20 KiB.
_MAX_BYTES: Final = 1 << 18

_GLANCE: Final = 1 << 12

# A named pipe in a copy must not block; on files the flag means nothing.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY: Final = _FILE | os.O_DIRECTORY

# What the kernel says of an attribute whose pCPU or node went away after the open.
_GONE: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
# What an open says of a link: the second if a directory was asked for.
_MAYBE_LINK: Final = frozenset({errno.ELOOP, errno.ENOTDIR})


class Sysfs:
    """The files of one host."""

    def __init__(self, root: Path) -> None:
        """Read below `root`: `/`, or where a copy of a host's /sys lies in `sys`."""
        self._root = root
        self._listed: tuple[bytes, CpuSet] | None = None  # text of `online`, and what it says

    def discover(self) -> Discovery:
        """Return the host, and a line for each file that is wrong.

        SysfsError if no pCPU is online there: `root` is no host, nor the copy of one.
        """
        found = topology.interpret(self.read())
        if not found.host.online:
            raise self._no_cpu()
        return found

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

    def _glance(self) -> bytes | None:
        """Return the text of `online` if one plain read gives all of it."""
        try:
            fd = os.open(f"{self._root}/sys/devices/system/cpu/online", _FILE)
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
        survey = _Survey()
        with survey.root(self._root, *_CPUS) as cpus:
            listed = survey.attribute(cpus, "online")
            switches = () if topology.names_cpu(listed) else survey.switches(cpus)
        online = topology.online_cpus(Readings(cpus=switches, online=listed))
        if not online:
            raise self._no_cpu()
        return online

    def read(self) -> Readings:
        """Return the texts of all files that `discover` looks at."""
        survey = _Survey()
        with (
            survey.root(self._root, *_CPUS) as cpus,
            survey.root(self._root, *_NODES) as nodes,
        ):
            online = survey.attribute(cpus, "online")
            return Readings(
                online=online,
                present=survey.attribute(cpus, "present"),
                isolated=survey.attribute(cpus, "isolated"),
                nodes_online=survey.attribute(nodes, "online"),
                nodes_possible=survey.attribute(nodes, "possible"),
                cpus=survey.cpus(cpus, ask_each=not topology.names_cpu(online)),
                nodes=survey.nodes(nodes),
                problems=tuple(survey.problems),
            )

    def _no_cpu(self) -> SysfsError:
        where = os.path.join(self._root, *_CPUS)  # noqa: PTH118 - one spelling for all paths here
        return SysfsError(where, "", "no pCPU is online there; a root holds the host's /sys as sys")


class _Folder:
    """An open directory. Names below it are opened relative to it; one without a file is absent."""

    __slots__ = ("_fd", "_top", "path")

    def __init__(self, top: str, path: str, fd: int | None) -> None:
        """Own `fd`. Both paths are free of links; nothing outside of `top` is read."""
        self._top = top
        self.path = path
        self._fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def enter(self, name: str) -> _Folder:
        """Open the directory `name`, an absent one if there is none; SysfsError if it is wrong."""
        path, fd = self._open(name, _DIRECTORY)
        return _Folder(self._top, path, fd)

    def text(self, name: str) -> str | None:
        """Return the text of the file `name`, None if there is none; SysfsError if it is wrong."""
        path, fd = self._open(name, _FILE)
        if fd is None:
            return None
        try:
            raw = _read(fd)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise SysfsError(path, "", _reason(error)) from error
        finally:
            os.close(fd)
        if len(raw) > _MAX_BYTES:
            raise SysfsError(path, _decode(raw[:80]), f"longer than {_MAX_BYTES} bytes")
        return _decode(raw)

    def folders(self) -> tuple[str, ...]:
        """Return the names of its directories, and of its links, wherever they lead."""
        if self._fd is None:
            return ()
        try:
            with os.scandir(self._fd) as entries:
                return tuple(
                    entry.name
                    for entry in entries
                    if entry.is_symlink() or entry.is_dir(follow_symlinks=False)
                )
        except OSError as error:
            raise SysfsError(self.path, "", _reason(error)) from error

    def _open(self, name: str, flags: int) -> tuple[str, int | None]:
        """Return the path and the descriptor of `name`, None for it if there is no such thing."""
        path = f"{self.path}/{name}"
        if self._fd is None:
            return path, None
        try:
            return path, os.open(name, flags, dir_fd=self._fd)
        except OSError as error:
            if error.errno in _GONE:
                return path, None
            target = self._target(path) if error.errno in _MAYBE_LINK else path
            if target == path:
                raise SysfsError(path, "", _reason(error)) from error
        return target, _open_resolved(target, flags)

    def _target(self, path: str) -> str:
        """Return what a link leads to, `path` itself if it is none; SysfsError if it is outside."""
        target = os.path.realpath(path)
        if target != self._top and not target.startswith(self._top.rstrip("/") + "/"):
            raise SysfsError(path, target, "a link that leads out of the root is not followed")
        return target


class _Survey:
    """One pass over a tree: what cannot be read is left out, and noted."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def root(self, root: Path, *names: str) -> _Folder:
        """Open the directory `names` below `root`, which alone may itself be a link."""
        top = os.path.realpath(root)
        try:
            folder = _Folder(top, top.rstrip("/"), _open_resolved(top, _DIRECTORY))
        except SysfsError as error:
            self.problems.append(str(error))
            return _Folder(top, top, None)
        for name in names:
            with folder:
                folder = self.folder(folder, name)
        return folder

    def folder(self, parent: _Folder, name: str) -> _Folder:
        """Open a directory, an absent one if it cannot be."""
        try:
            return parent.enter(name)
        except SysfsError as error:
            self.problems.append(str(error))
            return _Folder("", f"{parent.path}/{name}", None)

    def numbered(self, parent: _Folder, pattern: re.Pattern[str]) -> tuple[int, ...]:
        """Return the numbers of the directories whose names fit, ascending."""
        try:
            matches = (pattern.match(name) for name in parent.folders())
            return tuple(sorted(int(m[1]) for m in matches if m and int(m[1]) < LIMIT))
        except SysfsError as error:
            self.problems.append(str(error))
            return ()

    def attribute(self, parent: _Folder, name: str) -> Attribute | None:
        """Read a file, None if there is none that can be read."""
        try:
            text = parent.text(name)
        except SysfsError as error:
            self.problems.append(str(error))
            return None
        return None if text is None else Attribute(f"{parent.path}/{name}", text)

    def cpu_set(
        self, parent: _Folder, names: tuple[str, ...], cpu: int | None = None
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

    def switch(self, cpu: _Folder) -> Attribute | None:
        """Read a pCPU's own `online`; one that cannot be read does not say that it is."""
        try:
            text = cpu.text("online")
        except SysfsError as error:
            self.problems.append(str(error))
            text = ""
        return None if text is None else Attribute(f"{cpu.path}/online", text)

    def switches(self, parent: _Folder) -> tuple[CpuReading, ...]:
        """Read which pCPUs are online from their own directories, and nothing else."""
        readings = []
        for number in self.numbered(parent, _CPU):
            with self.folder(parent, f"cpu{number}") as cpu:
                readings.append(CpuReading(number, online=self.switch(cpu)))
        return tuple(readings)

    def cpus(self, parent: _Folder, *, ask_each: bool) -> tuple[CpuReading, ...]:
        """Read the directories of all pCPUs; `ask_each`: also whether each is online."""
        return tuple(
            self.cpu(parent, number, ask=ask_each) for number in self.numbered(parent, _CPU)
        )

    def cpu(self, parent: _Folder, number: int, *, ask: bool) -> CpuReading:
        """Read the directory of one pCPU."""
        with (
            self.folder(parent, f"cpu{number}") as cpu,
            self.folder(cpu, "topology") as told,
            self.folder(cpu, "cache") as caches,
        ):
            return CpuReading(
                id=number,
                linked=tuple(CellId(node) for node in self.numbered(cpu, _NODE)),
                online=self.switch(cpu) if ask else None,
                package=self.attribute(told, "physical_package_id"),
                die=self.attribute(told, "die_id"),
                core=self.attribute(told, "core_id"),
                siblings=self.cpu_set(told, _SIBLINGS, number),
                l3=self.l3(caches, number),
            )

    def l3(self, caches: _Folder, cpu: int) -> Attribute | None:
        """Read who shares the L3 cache; it is among the last, so the search starts there."""
        for number in reversed(self.numbered(caches, _INDEX)):
            with self.folder(caches, f"index{number}") as cache:
                level = self.attribute(cache, "level")
                # Most caches are not of level 3: do not open what their type is.
                kind = self.attribute(cache, "type") if level and level.text == "3" else None
                if level and kind and topology.is_l3(level.text, kind.text):
                    return self.cpu_set(cache, _SHARERS, cpu)
        return None

    def nodes(self, parent: _Folder) -> tuple[NodeReading, ...]:
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


def _open_resolved(path: str, flags: int) -> int | None:
    """Open a path that has no links in it, None if there is nothing."""
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise SysfsError(path, "", _reason(error)) from error


def _read(fd: int) -> bytes:
    """Read to the end, or a little over the limit; the kernel gives a page at a time."""
    parts = []
    left = _MAX_BYTES + 1
    while left > 0 and (part := os.read(fd, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _decode(raw: bytes) -> str:
    # Linux 5.15-rc ended its list files with a NUL; others have read "\0\n" when empty.
    return raw.decode("ascii", "replace").strip("\0\t\n ")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
