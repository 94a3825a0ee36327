r"""A guest's threads as the kernel holds them: found by cgroup, read, and given their masks.

A *place* is where one start of one guest lives in a tree (see `cgroups`)::

    <partition>/qemu-7-NAME.libvirt-qemu/emulator                  without systemd
    <partition>/machine-qemu\x2d7\x2dNAME.scope/libvirt/emulator   systemd; once without libvirt/

NAME is a tenant's text and no path is built from it: the partition is scanned, names are matched
up to the id, and the process found there has to say the UUID: several libvirtd may share it. A
thread is what its cgroup says. That of emulators also holds vhost workers, virtiofsd and swtpm.

Why loosen: `virDomainPinEmulator` sets the mask of the main thread only. Since Linux 6.2 the
kernel intersects the cpuset with the mask that a thread asked for or inherited, so one born while
the main thread was narrow stays narrow for life. A thread with the mask of all possible CPUs
follows its cpuset, and so do its children. Without a cpuset the mask is all that holds a thread,
and loosening would unpin it: `settle` looks first. For 4 threads it takes 140 us.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent import cgroups, cpusets
from agent.cpuset import EMPTY, CpuSet
from agent.errors import GuestGone, NotPermitted
from agent.snapshot import Kernel, Settled, Thread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ROUNDS: Final = 3  # readings of a list of threads: the later ones are for threads born meanwhile
_ARRIVED: Final = re.compile(rb"\0-(?:incoming|loadvm)\0")  # begins from what another QEMU left
_IOTHREAD: Final = re.compile(r"iothread([0-9]{1,10})\Z")


@dataclass(frozen=True, slots=True)
class Place:
    """Where one start of a guest lives: cgroup directories and QEMU's process."""

    emulator: str  # directory of the emulator cgroup
    guest: str  # directory of the cgroup above, which holds emulator, vcpuN and iothreadN
    pid: int  # of QEMU
    started: int  # when QEMU started, in clock ticks since boot
    version: int  # of the cgroup tree, 1 or 2
    arrived: bool = False  # by migration, restore or snapshot: its pins were made elsewhere


@dataclass(frozen=True, slots=True)
class Times:
    """What threads used so far, each (tid, ns on a CPU, ns runnable but waiting), by tid."""

    emulator: tuple[tuple[int, int, int], ...]
    iothreads: tuple[tuple[int, int, int], ...]  # of all iothread cgroups


class Threads:
    """The threads of guests, below one file system root."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Look once for what does not change: trees, possible CPUs, schedstat.

        Without a tree nothing will be found. SysfsError if a file cannot be understood.
        """
        self._root = str(root).rstrip("/")
        self._trees = cgroups.Trees(root)
        possible = cgroups.parsed(f"{self._root}/sys/devices/system/cpu/possible", CpuSet.parse)
        # Not SC_NPROCESSORS_CONF where it can be helped: it counts, and ids may have gaps.
        self._possible = tuple(possible or range(os.sysconf("SC_NPROCESSORS_CONF")))
        self._schedstat = cgroups.read(f"{self._root}/proc/self/schedstat") is not None

    def partition(self, path: str = "/machine") -> CpuSet | None:
        """Return the effective cpuset of libvirt's partition `path` (`resource/partition`).

        None: there is no such cgroup, or it has no cpuset. SysfsError if it is no CPU list.
        """
        found = (
            cgroups.effective(version, directory)
            for version, directory in self._trees.partitions(path)
        )
        return next((cpus for cpus in found if cpus is not None), None)

    def partitions(self) -> tuple[str, ...]:
        """Return the directories in which cgroups of guests of the default partition appear."""
        return tuple(directory for _, directory in self._trees.partitions("/machine"))

    def locate(self, uuid: str, domain_id: int, partition: str | None = None) -> Place | None:
        """Find the guest that libvirt numbers `domain_id`, and make sure of its `uuid`.

        `partition` is its `resource/partition`, None libvirt's default. None: it is not there.
        SysfsError, NotPermitted if a file cannot be understood or read.
        """
        wanted = b"\0-uuid\0%b\0" % uuid.encode()
        # systemd's names hold a literal \x2d for each dash of libvirt's.
        starts = (f"qemu-{domain_id}-", f"machine-qemu\\x2d{domain_id}\\x2d")
        for version, directory in self._trees.partitions(partition or "/machine"):
            for name in cgroups.names(directory, starts):
                if name.endswith((".libvirt-qemu", ".scope")):
                    place = self._place(version, f"{directory}/{name}", wanted)
                    if place is not None:
                        return place
        return None

    def read(self, place: Place, iothreads: Iterable[int] | None = None) -> Kernel:
        """Return what the kernel holds for the guest now; threads that end meanwhile are left out.

        `iothreads` has the ids of those that the guest has, which spares a look for them.
        GuestGone if this start of the guest has ended; SysfsError, NotPermitted as in `locate`.
        """
        return Kernel(
            threads=_threads(self._emulator(place)),
            cpus=cgroups.effective(place.version, place.emulator),
            parent=cgroups.effective(place.version, place.guest),
            iothreads=tuple(_iothreads(place, iothreads)),
        )

    def loosen(self, place: Place) -> None:
        """Let the threads of the emulator cgroup, the main one included, follow their cpuset.

        Does nothing where that cgroup has no cpuset of its own. NotPermitted without CAP_SYS_NICE,
        after all threads were tried; SysfsError if a file cannot be understood.
        """
        self._loosen(place, place.emulator)

    def loosen_iothread(self, place: Place, iothread: int) -> None:
        """Do as `loosen` for the cgroup of `iothread`, an id; nothing if it has none."""
        self._loosen(place, f"{place.guest}/iothread{iothread:d}")

    def settle(self, place: Place, target: CpuSet) -> Settled:
        """Make the emulator threads follow a pin to `target`, and read back whether they do.

        Not verified also if the main thread is not in the cgroup. GuestGone, SysfsError and
        NotPermitted as in `read`; a missing CAP_SYS_NICE is told in the answer.
        """
        return self._settle(place, place.emulator, target, None)

    def settle_iothread(self, place: Place, iothread: int, target: CpuSet) -> Settled:
        """Do as `settle` for the threads of `iothread`, an id; not verified if it has none."""
        return self._settle(place, f"{place.guest}/iothread{iothread:d}", target, iothread)

    def times(self, kernel: Kernel) -> Times | None:
        """Return run time and run-queue delay of the threads that were just read.

        In ns since each thread's birth; who has ended since is left out. None: this kernel has no
        schedstat. SysfsError, NotPermitted as in `read`.
        """
        if not self._schedstat:
            return None
        inner = sorted(thread.tid for _, threads in kernel.iothreads for thread in threads)
        return Times(self._spent(thread.tid for thread in kernel.threads), self._spent(inner))

    def _place(self, version: int, directory: str, wanted: bytes) -> Place | None:
        for guest in (f"{directory}/libvirt", directory):
            emulator = f"{guest}/emulator"
            if cgroups.members(version, emulator) is None:
                continue
            # Version 1 moves threads to the guest's own cgroup when their cpuset runs empty;
            # version 2 tells there the processes of its threaded cgroups.
            for holder in (emulator, guest) if version == 1 else (guest,):
                for pid in cgroups.parsed(f"{holder}/cgroup.procs", cgroups.ids) or ():
                    # A vhost worker of old kernels is a process without arguments.
                    argv = cgroups.read(f"{self._root}/proc/{pid}/cmdline") or b""
                    started = self._started(pid) if wanted in argv else None
                    if started is not None:
                        arrived = _ARRIVED.search(argv) is not None
                        return Place(emulator, guest, pid, started, version, arrived)
        return None

    def _started(self, pid: int) -> int | None:
        return cgroups.parsed(f"{self._root}/proc/{pid}/stat", _start)

    def _emulator(self, place: Place) -> tuple[int, ...]:
        """Return the ids of the emulator threads; GuestGone if this start of the guest is over.

        The main thread may live while it is not among them, so only then is its process looked at.
        """
        tids = cgroups.members(place.version, place.emulator)
        if tids is None or (place.pid not in tids and self._started(place.pid) != place.started):
            raise GuestGone(f"process {place.pid} of {place.guest} has ended")
        return tids

    def _settle(self, place: Place, cgroup: str, target: CpuSet, iothread: int | None) -> Settled:
        permitted = True
        if place.version == 1:
            cpusets.bring_back(self._root, place.guest)
        if self._in_force(place, cgroup, target):
            try:
                self._loosen(place, cgroup)
            except NotPermitted:
                permitted = False
        kernel = self.read(place)
        threads = kernel.threads if iothread is None else dict(kernel.iothreads).get(iothread, ())
        # A version 1 cpuset that lost its last CPU was emptied of its threads, and holds nobody.
        held = any(iothread is not None or thread.tid == place.pid for thread in threads)
        follow = self._in_force(place, cgroup, target) if held else None
        stuck = tuple(thread.tid for thread in threads if thread.cpus != (follow or target))
        return Settled(kernel, follow is not None, stuck, permitted)

    def _in_force(self, place: Place, directory: str, target: CpuSet) -> CpuSet | None:
        """Return the effective cpuset if it is the cgroup's own and `target`, or what is left.

        Less is left when a CPU went off line since the pin. In version 2 an empty cpuset, or one
        of which nothing is left, means all that the parent has.
        """
        asked, effective = cgroups.asked(directory), cgroups.effective(place.version, directory)
        if not asked or not effective:
            return None
        left = asked == target and effective <= target
        return effective if left or effective == target else None

    def _loosen(self, place: Place, directory: str) -> None:
        done, refused = set[int](), set[int]()
        for _ in range(_ROUNDS if cgroups.asked(directory) else 0):
            # A thread born of a narrow one since the list was read is narrow as well.
            fresh = set(cgroups.members(place.version, directory) or ()) - done
            refused |= {tid for tid in fresh if not self._widen(tid)}
            done |= fresh
            if not fresh:
                break
        if refused:
            raise NotPermitted(f"no CAP_SYS_NICE to set the mask of thread {min(refused)}")

    def _widen(self, tid: int) -> bool:
        """Give a thread the mask of all possible CPUs; False if that is not permitted."""
        try:
            os.sched_setaffinity(tid, self._possible)
        except OSError as error:
            # Else it ended, or the kernel bars this one (EINVAL, EBUSY): reading back will tell.
            return not isinstance(error, PermissionError)
        return True

    def _spent(self, tids: Iterable[int]) -> tuple[tuple[int, int, int], ...]:
        # /proc/<tid> answers for any thread, also for one that is no member of QEMU's process.
        found = (
            (tid, cgroups.parsed(f"{self._root}/proc/{tid}/schedstat", _slices, line=True))
            for tid in tids
        )
        return tuple((tid, *spent) for tid, spent in found if spent is not None)


def _iothreads(
    place: Place, known: Iterable[int] | None
) -> Iterator[tuple[int, tuple[Thread, ...]]]:
    """Yield (iothread id, its threads) by id, of those that have a cgroup."""
    if known is None:
        found = map(_IOTHREAD.match, cgroups.names(place.guest, ("iothread",)))
        known = (int(match[1]) for match in found if match)
    for iothread in sorted(known):
        tids = cgroups.members(place.version, f"{place.guest}/iothread{iothread}")
        if tids is not None:
            yield iothread, _threads(tids)


def _threads(tids: Iterable[int]) -> tuple[Thread, ...]:
    found: list[Thread] = []
    last, cpus = set[int](), EMPTY
    for tid in tids:
        try:
            mask = os.sched_getaffinity(tid)
        except ProcessLookupError:  # it ended; workers live for 10 s
            continue
        if mask != last:  # on a large host a set costs more than the system call
            last, cpus = mask, CpuSet(mask)
        found.append(Thread(tid, cpus))
    return tuple(found)


def _start(text: str) -> int:
    """Return field 22 of /proc/<pid>/stat: the start in clock ticks since boot."""
    # Field 2 is the name, in brackets, and may hold brackets and spaces: count from its end.
    return int(text[text.rfind(")") + 1 :].split()[19])


def _slices(text: str) -> tuple[int, int]:
    run, wait, _count = map(int, text.split())
    return run, wait
