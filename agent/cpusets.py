"""Version 1 cpusets that the kernel cut, and mending them.

When a pCPU goes off line the kernel takes it out of every version 1 cpuset, for ever: when it is
back, libvirt can neither pin to it nor start a guest there. (Version 2 keeps what was asked for.)
`Mender` gives it back to libvirt's partitions and to the guests in them. What somebody took out
while the pCPU was on line stays out; what was lost before the first look nobody knows.

The cpusets of emulator threads and iothreads are the business of pins. Those of vCPUs are left to
whoever pins vCPUs; where one ran empty, it is told of.

A cpuset that runs empty also loses its threads, to the guest's own cgroup, and a pin that fills it
again does not bring them back: `bring_back` does. Which thread belongs where, the trees of the
other controllers tell, which keep them. Never by the thread's name: that is QEMU's to choose.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent import cgroups
from agent.cpuset import EMPTY, CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_GUESTS: Final = ("qemu-", "machine-qemu\\x2d")
_OURS: Final = re.compile(r"emulator|iothread[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class Cut:
    """A partition that lost pCPUs which are on line again, and why it has not got them back."""

    directory: str
    cpus: CpuSet
    wanted: CpuSet  # what its cpuset should be
    why: str


@dataclass(frozen=True, slots=True)
class Mended:
    """What one look found: partitions that got pCPUs back, and those that did not."""

    given: tuple[tuple[str, CpuSet], ...] = ()
    empty: tuple[str, ...] = ()  # cgroups of vCPUs in them that have no pCPU any more
    left: tuple[Cut, ...] = ()


NOTHING_MENDED: Final = Mended()


class Mender:
    """Remembers what partitions had; one thread calls it."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Look below `root`; SysfsError if mountinfo cannot be understood."""
        self._trees = cgroups.Trees(root)
        self._had: dict[str, CpuSet] = {}
        self._cut: dict[str, CpuSet] = {}

    def mend(
        self, partitions: Iterable[str], online: CpuSet, *, plugged: bool, act: bool
    ) -> Mended:
        """Look at libvirt's `partitions`; give back what the kernel took, if it is to `act`.

        `plugged`: a pCPU went on or off line since the last look, or both. SysfsError, NotPermitted
        if a cpuset cannot be understood or read.
        """
        given: list[tuple[str, CpuSet]] = []
        empty: list[str] = []
        left: list[Cut] = []
        for directory in self._directories(partitions):
            now = cgroups.asked(directory)
            back = self._lost(directory, now, online, plugged) & online
            if now is None or not back:
                continue
            why = _give(directory, now | back) if act else "this is a dry run"
            if why is not None:
                left.append(Cut(directory, back, now | back, why))
                continue
            given.append((directory, back))
            for guest in _guests(directory):
                _give(guest, (cgroups.asked(guest) or EMPTY) | back)
                empty += _empty_vcpus(guest)
        return Mended(tuple(given), tuple(empty), tuple(left))

    def _lost(self, directory: str, now: CpuSet | None, online: CpuSet, plugged: bool) -> CpuSet:  # noqa: FBT001 - private
        """Return what the kernel took from a cpuset and has not been given back."""
        if now is None:
            self._had.pop(directory, None)
            self._cut.pop(directory, None)
            return EMPTY
        gone = self._had.get(directory, now) - now
        taken = gone if plugged else gone - online
        self._cut[directory] = (self._cut.get(directory, EMPTY) | taken) - now
        self._had[directory] = now
        return self._cut[directory]

    def _directories(self, partitions: Iterable[str]) -> Iterator[str]:
        """Yield the version 1 cgroups of partitions, and of those above them first."""
        seen = set()
        for path in sorted(partitions):
            tokens = [token for token in path.split("/") if token]
            for depth in range(1, len(tokens) + 1):
                for version, directory in self._trees.partitions("/".join(tokens[:depth])):
                    if version == 1 and directory not in seen:
                        seen.add(directory)
                        yield directory


def bring_back(root: str, guest: str) -> None:
    """Return emulator threads and iothreads that a version 1 cpuset lost when it ran empty.

    `guest` is the directory of the cgroup that got them. One whose cpuset is still empty stays.
    """
    strays = cgroups.members(1, guest) or ()
    for tid in strays:
        name = _belongs(root, guest, tid) or _by_exclusion(guest)
        if name is not None:
            with contextlib.suppress(OSError):  # it ended, or has no pCPU yet: reading back tells
                _write(f"{guest}/{name}/tasks", str(tid))


def _belongs(root: str, guest: str, tid: int) -> str | None:
    """Return the cgroup below `guest` in which another tree has a thread, if that is ours."""
    text = os.fsdecode(cgroups.read(f"{root}/proc/{tid}/cgroup") or b"")
    above = f"/{Path(guest).name}/"
    for line in text.split("\n"):
        _, _, place = line.partition(":/")
        if above in place and _OURS.fullmatch(name := place.rpartition(above)[2]):
            return name
    return None


def _by_exclusion(guest: str) -> str | None:
    """Return `emulator` if all others are where they belong."""
    others = cgroups.names(guest, ("vcpu", "iothread"))
    return "emulator" if all(cgroups.members(1, f"{guest}/{one}") for one in others) else None


def _guests(partition: str) -> Iterator[str]:
    """Yield the cgroups of guests, the outer first."""
    for name in cgroups.names(partition, _GUESTS):
        for directory in (f"{partition}/{name}", f"{partition}/{name}/libvirt"):
            if cgroups.asked(directory) is not None:
                yield directory


def _empty_vcpus(guest: str) -> Iterator[str]:
    for name in cgroups.names(guest, ("vcpu",)):
        if cgroups.asked(f"{guest}/{name}") == EMPTY:
            yield f"{guest}/{name}"


def _give(directory: str, cpus: CpuSet) -> str | None:
    """Set a cpuset; return why that failed."""
    try:
        _write(f"{directory}/cpuset.cpus", str(cpus))
    except OSError as error:
        return error.strerror or str(error)
    return None


def _write(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)
