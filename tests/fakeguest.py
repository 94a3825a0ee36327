"""A guest of tests/fake.py: its definitions, and what the kernel holds for it while it runs.

A thread's own mask outlives a wider cpuset, as since Linux 6.2; it yields to a cpuset that is apart
from it. As in cgroup version 2, a cpuset of which nothing is left means all that the parent has.
"""

from __future__ import annotations

import threading
import uuid as uuids
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.cpuset import CpuSet
from agent.errors import GuestGone
from agent.snapshot import Kernel, Settled, Thread
from agent.threads import Place
from tests.guests import guest_xml

if TYPE_CHECKING:
    from collections.abc import Callable

    Definition = dict[str, object]  # the arguments of `guest_xml`

EMULATOR: Final = "emulator"
PATIENT: Final = 30.0  # seconds: a call that nobody lets go is a test that hangs


def role(iothread: int | None) -> str:
    """Return the name of a cgroup."""
    return EMULATOR if iothread is None else f"iothread{iothread}"


def definition(name: str, properties: Definition) -> Definition:
    """Return a definition; the UUID follows from the name unless it is given."""
    return {"name": name, "uuid": str(uuids.uuid5(uuids.NAMESPACE_DNS, name)), **properties}


def pin_of(told: Definition | None, iothread: int | None = None) -> CpuSet | None:
    """Return the pin of the emulator threads, or of one iothread, in a definition."""
    found = told or {}
    text = found.get("emulatorpin") if iothread is None else _iothread_pins(found).get(iothread)
    return None if text is None else CpuSet.parse(str(text))


def _iothread_pins(told: Definition) -> dict[int, str]:
    pins = told.get("iothreadpins") or {}
    assert isinstance(pins, dict)
    return pins


@dataclass
class Process:
    """One start of a guest."""

    id: int  # libvirt's number for it
    place: Place
    limit: Callable[[], CpuSet]  # on line, and in libvirt's partition
    controlled: bool  # False: there is no cpuset controller, masks are all there is
    parent: CpuSet  # the cpuset of the guest's own cgroup
    cpusets: dict[str, CpuSet]  # by cgroup, as asked for
    threads: dict[int, tuple[str, CpuSet]]  # by tid: cgroup, and the thread's own mask

    def pin(self, iothread: int | None, cpus: CpuSet) -> None:
        """Do what libvirt does: the cpuset, and the mask of one thread."""
        self.cpusets[role(iothread)] = cpus
        for tid, (own, _) in self.threads.items():
            if own == role(iothread) and (iothread is not None or tid == self.place.pid):
                self.threads[tid] = own, cpus

    def taskset(self, cpus: CpuSet, cgroup: str = EMULATOR) -> None:
        """Set the own masks of all threads of a cgroup."""
        members = [tid for tid, (own, _) in self.threads.items() if own == cgroup]
        self.threads |= dict.fromkeys(members, (cgroup, cpus))

    def spawn(self) -> int:
        """Let a worker be born, which inherits the main thread's own mask; return its id."""
        tid = max(self.threads) + 1
        self.threads[tid] = self.threads[self.place.pid]
        return tid

    def ceiling(self) -> CpuSet:
        """Return what any mask of the guest is cut to."""
        return self.parent & self.limit()

    def effective(self, cgroup: str) -> CpuSet:
        """Return the cpuset that is in force."""
        return self.cpusets[cgroup] & self.ceiling() or self.ceiling()

    def members(self, cgroup: str = EMULATOR) -> tuple[Thread, ...]:
        """Return the threads of a cgroup with the masks that are in force."""
        cpus = self.effective(cgroup) if self.controlled else self.limit()
        own = sorted((tid, mask) for tid, (name, mask) in self.threads.items() if name == cgroup)
        return tuple(Thread(tid, mask & cpus or cpus) for tid, mask in own)

    def read(self) -> Kernel:
        """Return what `agent.threads` would read."""
        inner = sorted(int(cgroup[8:]) for cgroup in self.cpusets if cgroup != EMULATOR)
        return Kernel(
            cpus=self.effective(EMULATOR) if self.controlled else None,
            parent=self.ceiling() if self.controlled else None,
            threads=self.members(),
            iothreads=tuple((n, self.members(role(n))) for n in inner),
        )

    def settle(
        self, cgroup: str, target: CpuSet, everywhere: CpuSet, *, permitted: bool
    ) -> Settled:
        """Loosen as `agent.threads` does, and read back."""
        in_force = self.controlled and self.effective(cgroup) == target
        if in_force and permitted:
            self.taskset(everywhere, cgroup)
        stuck = tuple(thread.tid for thread in self.members(cgroup) if thread.cpus != target)
        return Settled(self.read(), in_force, stuck, permitted)


class Hold:
    """A job that has a guest's lock: pins wait until it ends, or until they are refused."""

    def __init__(self, entered: Callable[[], None]) -> None:
        self._entered = entered
        self._turn = threading.Event()
        self.waiting = threading.Semaphore(0)  # one for each pin that began to wait
        self.refuses = self.over = False

    def wait(self) -> None:
        turn = self._turn
        if not (self.refuses or self.over):
            self._entered()
            self.waiting.release()
            assert turn.wait(PATIENT), "nobody let the call go"

    def refuse(self) -> None:
        """Fail the pins that wait, and all that follow: their 30 s are over."""
        self.refuses = True
        self.wake()

    def wake(self) -> None:
        """Have the pins that wait look again."""
        turn, self._turn = self._turn, threading.Event()
        turn.set()


@dataclass
class FakeGuest:
    """A guest that is defined, runs, or both."""

    persistent: Definition | None = None
    live: Definition | None = None
    process: Process | None = None
    occupied: bool = False
    spoil: Callable[[str], str] = str  # what a hostile tenant makes of its definition

    @property
    def running(self) -> Process:
        """Its process."""
        if self.process is None:
            raise GuestGone("domain is not running")
        return self.process

    def xml(self, *, inactive: bool = False) -> str:
        """Return its live definition if it runs, else or if `inactive` the persistent one."""
        told = self.persistent if inactive or self.live is None else self.live
        text = self.spoil(guest_xml(**(told or {})))  # type: ignore[arg-type]
        live = self.process is not None and not inactive
        return text.replace("<domain", f"<domain id='{self.running.id}'", 1) if live else text

    def record(self, iothread: int | None, cpus: CpuSet) -> None:
        """Write a pin into the live definition."""
        assert self.live is not None
        if iothread is None:
            self.live["emulatorpin"] = str(cpus)
        else:
            self.live["iothreadpins"] = {**_iothread_pins(self.live), iothread: str(cpus)}

    def label(self, policy: str, attributes: dict[str, str]) -> None:
        """Set emupool's metadata, live and persistent."""
        for told in (self.live, self.persistent):
            if told is not None:
                told |= {"metadata_policy": policy, "metadata_attributes": attributes}

    def boot(
        self,
        told: Definition,
        number: int,
        present: CpuSet,
        limit: Callable[[], CpuSet],
        controlled: bool,  # noqa: FBT001 - the next row of Process
        *,
        arrived: bool,
    ) -> None:
        """Start as `told`; without a pin, threads run anywhere in `<vcpu cpuset>` or `present`."""
        assert self.process is None, "it runs already"
        floor, count = told.get("vcpu_cpuset"), told.get("iothreads", 0)
        assert isinstance(count, int)
        widest = present if floor is None else CpuSet.parse(str(floor))
        cpusets = {role(one): pin_of(told, one) or widest for one in (None, *range(1, count + 1))}
        pid = 1000 * number
        threads = {pid + n: each for n, each in enumerate(cpusets.items())}
        threads[pid + 500] = EMULATOR, cpusets[EMULATOR]  # call_rcu
        directory = f"/{told['uuid']}"
        place = Place(f"{directory}/emulator", directory, pid, 10 * pid, 2, arrived)
        self.live, self.occupied = dict(told), arrived
        self.process = Process(number, place, limit, controlled, present, cpusets, threads)
