"""Files of cgroups, and of /proc: where they are, and what they say.

A *tree* is a mounted hierarchy: version 1 is the one of the cpuset controller, version 2 is
cgroup2. Hybrid hosts have both; libvirt pins through the one that has cpuset, so version 1 comes
first.
"""

from __future__ import annotations

import errno
import os
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar

from agent.cpuset import CpuSet
from agent.errors import NotPermitted, SysfsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_T = TypeVar("_T")
_LIMIT: Final = 1 << 24  # bytes read of one file; the longest is mountinfo of a container host
_MEMBERS: Final = {1: "tasks", 2: "cgroup.threads"}  # by version of the tree
_EFFECTIVE: Final = {1: "cpuset.effective_cpus", 2: "cpuset.cpus.effective"}
_GONE: Final = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENAMETOOLONG}
"""No such file. ENODEV: the cgroup was removed, ESRCH: the thread ended, after the open."""

_cpus = lru_cache(256)(CpuSet.parse)  # a host has few sets, and each is read for many guests
_IDS: Final = re.compile(r"(?:[0-9]{1,9}(?:\n|\Z))*\Z")
_MOUNT: Final = re.compile(r"\S+ \S+ \S+ (\S+) (\S+) \S.*? - (\S+) \S* (.*)\Z")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_NOT_IN_UNIT: Final = re.compile(rb"^\.|[^0-9A-Za-z:_.]")
_KERNELS: Final = re.compile(
    r"[._]|(?:cgroup|cpu|cpuacct|cpuset|memory|devices|freezer|blkio|io|pids|hugetlb|perf_event"
    r"|net_cls|net_prio|rdma|misc|debug)\."
)


class Trees:
    """The trees that are mounted below one file system root."""

    def __init__(self, root: Path) -> None:
        """Look once; SysfsError if mountinfo cannot be understood."""
        self.root = str(root).rstrip("/")
        self._mounts = _find_trees(f"{self.root}/proc/self/mountinfo")

    def partitions(self, path: str) -> Iterator[tuple[int, str]]:
        """Yield (version of the tree, directory) of each place where libvirt's partition may be."""
        for version, mount in self._mounts.items():
            for directory in _partition_directories(path):
                yield version, f"{self.root}{mount}/{directory}"


def names(directory: str, starts: tuple[str, ...]) -> list[str]:
    """Return the names in a directory that begin so; none if there is no such directory."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.name.startswith(starts)]
    except OSError as error:
        raise_unless_gone(directory, error)
        return []


def members(version: int, directory: str) -> tuple[int, ...] | None:
    """Return the ids of the threads in a cgroup, ascending; None if there is no such cgroup."""
    return parsed(f"{directory}/{_MEMBERS[version]}", ids)


def asked(directory: str) -> CpuSet | None:
    """Return the cpuset that a cgroup was given, None if it has none."""
    return parsed(f"{directory}/cpuset.cpus", _cpus, line=True)


def effective(version: int, directory: str) -> CpuSet | None:
    """Return the cpuset that is in force for a cgroup, None if it has none."""
    cpus = parsed(f"{directory}/{_EFFECTIVE[version]}", _cpus, line=True)
    if cpus is None and version == 1:  # before Linux 3.17; what was asked for was in force
        return asked(directory)
    return cpus


def ids(text: str) -> tuple[int, ...]:
    """Parse a list of processes or threads; ascending."""
    if not _IDS.match(text):
        raise ValueError("not a list of ids")
    # 0 is a thread of another pid namespace, and would name ourselves in a system call.
    return tuple(sorted({int(word) for word in text.split()} - {0}))


def parsed(path: str, parse: Callable[[str], _T], *, line: bool = False) -> _T | None:
    """Return what a file of the kernel says, None as `read`; SysfsError if `parse` cannot.

    `line` tells that it is one line, whose end ends the file.
    """
    text = read(path, line=line)
    if text is None:
        return None
    try:
        return parse(os.fsdecode(text))
    except (ValueError, IndexError) as error:
        raise SysfsError(path, os.fsdecode(text), str(error)) from error


def read(path: str, *, line: bool = False) -> bytes | None:
    """Return a file of the kernel; None if there is none, or what it told of is gone.

    Of one that is a `line` what comes after that is not asked for.
    """
    file = -1
    text = bytearray()
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # The kernel may answer in pieces, and only an empty one is the last.
        while (piece := os.read(file, 4096)) and len(text) <= _LIMIT:
            text += piece
            if line and piece.endswith(b"\n"):
                break
    except OSError as error:
        raise_unless_gone(path, error)
        return None
    finally:
        if file >= 0:
            os.close(file)
    if len(text) > _LIMIT:
        raise SysfsError(path, os.fsdecode(bytes(text[:60])), f"is longer than {_LIMIT} bytes")
    return bytes(text)


def raise_unless_gone(path: str, error: OSError) -> None:
    """Raise NotPermitted or SysfsError, unless what was asked for is gone."""
    if isinstance(error, PermissionError):
        raise NotPermitted(f"{path}: {error.strerror}") from error
    if error.errno not in _GONE:
        raise SysfsError(path, "", error.strerror or str(error)) from error


# where libvirt puts things


def _find_trees(path: str) -> dict[int, str]:
    """Return where the trees are mounted, by version; a mount of the whole tree is preferred."""
    best = {version: mount for version, _, _, mount in sorted(_mounts(path), reverse=True)}
    return {version: best[version].rstrip("/") for version in sorted(best)}


def _mounts(path: str) -> Iterator[tuple[int, bool, int, str]]:
    """Yield (version, shows only a part, line, mount point) of each mount of interest."""
    lines = os.fsdecode(read(path) or b"").split("\n")
    for number, line in enumerate(filter(None, lines)):
        match = _MOUNT.match(line)
        if match is None:
            raise SysfsError(path, line, "is no line of mountinfo")
        v1 = match[3] == "cgroup" and "cpuset" in match[4].split(",")
        if v1 or match[3] == "cgroup2":
            mount = _OCTAL.sub(lambda code: chr(int(code[1], 8)), match[2])
            yield 1 if v1 else 2, match[1] != "/", number, mount


def _partition_directories(path: str) -> tuple[str, ...]:
    """Return where libvirt puts a partition, relative to the mount: with systemd, and without."""
    if not path.isprintable():
        return ()
    tokens = [token for token in path.split("/") if token]
    units = [_unit(token) for token in tokens]
    slices = ("-".join(units[: n + 1]) + ".slice" for n in range(len(units)))
    return "/".join(slices), "/".join(_cgroup_name(n, token) for n, token in enumerate(tokens))


def _unit(token: str) -> str:
    r"""Write a part of a partition as systemd does: `my-vms` is `my\x2dvms`."""
    return _NOT_IN_UNIT.sub(lambda char: b"\\x%02x" % ord(char[0]), token.encode()).decode()


def _cgroup_name(depth: int, token: str) -> str:
    """Name a part of a partition as libvirt does by itself (virCgroupSetPartitionSuffix)."""
    if depth == 0 and token in {"machine", "system", "user"}:
        return token
    name = token if "." in token else f"{token}.partition"
    # An underscore keeps it apart from the kernel's files; it also makes `..` a plain name.
    return f"_{name}" if _KERNELS.match(name) else name
