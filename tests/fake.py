"""A hypervisor in memory, with the kernel below it and faults on demand.

A `Fake` is all that the daemon sees of a host: what `agent.port` asks for (`link`, `hand`), threads
as `agent.threads.Threads` tells of them (`locate`, `read`, `settle` and so on), and the machine as
`agent.sysfs.Sysfs` does (`discover`, `refresh`, `online`). test_hypervisor_contract.py holds its
first part against libvirt. Its other methods are what operators, guests and faults do.

It emits what libvirt does: RESUMED before STARTED, TUNABLE for each live pin that succeeds, by
whomever and even if it changes nothing. Like cgroup version 1 it refuses a mask that is not wholly
on line and inside the parent. What masks then do is told in tests/fakeguest.py.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from agent.cpuset import EMPTY, CpuSet
from agent.cpusets import NOTHING_MENDED
from agent.errors import (
    EmupoolError,
    GuestBusy,
    GuestGone,
    HypervisorAway,
    TargetRefused,
)
from agent.port import GuestEvent, LinkLost, Topic, answered
from agent.threads import Times
from agent.topology import Discovery, ForeignCell
from tests.fakeguest import FakeGuest, Hold, definition, pin_of, role
from tests.hosts import TWO_CELLS_EIGHT_CPUS, Machine, host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from agent.cpusets import Mended
    from agent.snapshot import Kernel, Settled
    from agent.threads import Place
    from tests.fakeguest import Definition, Process

    Hear = Callable[[GuestEvent | LinkLost], None]


class Clock:
    """Stands still but for `now += seconds`, or leaps whenever it is read."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.leap = 0.0

    def __call__(self) -> float:
        self.now += self.leap
        return self.now


class Call(NamedTuple):
    """One call that was made."""

    name: str
    uuid: str = ""
    cpus: CpuSet | None = None
    iothread: int | None = None


class Connection:
    """A `Link`, a `Hand` and a `Roster`."""

    def __init__(self, fake: Fake, hear: Hear | None) -> None:
        self._fake = fake
        self.hear = hear
        self.probes = fake.probes

    def uuids(self) -> tuple[str, ...]:
        with self._fake.called(self, Call("uuids")) as guests:
            return tuple(guests)

    def active_ids(self) -> frozenset[int]:
        with self._fake.called(self, Call("active_ids")) as guests:
            return frozenset(guest.process.id for guest in guests.values() if guest.process)

    def definition(self, number: int) -> tuple[str, str]:
        with self._fake.called(self, Call("definition")) as guests:
            for uuid, guest in guests.items():
                if guest.process is not None and guest.process.id == number:
                    return uuid, guest.xml()
        raise GuestGone(f"no domain with id {number}")

    def xml(self, uuid: str) -> str:
        with self._fake.called(self, Call("xml", uuid)) as guests:
            return guests[uuid].xml()

    def xmls(self, uuids: Sequence[str]) -> Iterator[tuple[str, str | EmupoolError]]:
        return ((uuid, answered(partial(self.xml, uuid))) for uuid in uuids)

    def persistent_xml(self, uuid: str) -> str | None:
        with self._fake.called(self, Call("persistent_xml", uuid)) as guests:
            guest = guests[uuid]
            return None if guest.persistent is None else guest.xml(inactive=True)

    def occupied(self, uuid: str) -> bool:
        with self._fake.called(self, Call("occupied", uuid)) as guests:
            return guests[uuid].occupied

    def look_up(self, uuid: str) -> None:
        with self._fake.called(self, Call("look_up", uuid)) as guests:
            guests[uuid].xml()

    def pin_emulator(self, uuid: str, cpus: CpuSet) -> None:
        self._fake.carry_out(self, Call("pin_emulator", uuid, cpus))

    def pin_iothread(self, uuid: str, iothread: int, cpus: CpuSet) -> None:
        self._fake.carry_out(self, Call("pin_iothread", uuid, cpus, iothread))

    def close(self) -> None:
        self._fake.connections.discard(self)


class Guests(dict[str, FakeGuest]):
    """Guests by UUID."""

    def __missing__(self, uuid: str) -> FakeGuest:
        raise GuestGone(f"no domain with matching uuid {uuid!r}")


class Fake:
    """One host with its hypervisor; guests go by their UUIDs. Any thread may use it."""

    def __init__(self, machine: Machine = TWO_CELLS_EIGHT_CPUS, *, cpusets: bool = True) -> None:
        """Without `cpusets`, libvirt has no cpuset controller: it moves the main thread only."""
        self.machine = machine
        self.present = CpuSet(pcpu.id for pcpu in host(machine).cpus)
        self.slice = self.present  # the cpuset of libvirt's partition
        self.guests = Guests()
        self.connections: set[Connection] = set()
        self.log: list[Call] = []  # of calls; those that failed as well
        self.pins: list[Call] = []  # that succeeded
        self.hook: Callable[[Call], None] = lambda _: None  # at each call; it may raise a fault
        self.reachable = True
        self.may_loosen = True
        self.problems: tuple[str, ...] = ()  # that a look at the host finds
        self.mended = NOTHING_MENDED  # what a look at the partitions' cpusets comes to
        self.copies = 1  # of each event
        self.probes = (5, 3)  # keepalive of connections to come: interval and count
        self._cpusets = cpusets
        self._lock = threading.RLock()
        self._faults: list[tuple[str, str | None, EmupoolError]] = []
        self._holds: dict[str, Hold] = {}
        self._withheld: list[GuestEvent] | None = None
        self._starts = 0

    # what the daemon calls: agent.port.Hypervisor

    def link(self, hear: Hear) -> Connection:
        return self._connect("link", hear)

    def hand(self) -> Connection:
        return self._connect("hand", None)

    def roster(self) -> Connection:
        return self._connect("roster", None)

    def keepalive(self, interval: int, count: int) -> None:
        self.probes = interval, count

    def cells(self) -> tuple[ForeignCell, ...]:
        self._connect("cells", None).close()
        seen = host(self.machine)
        told = {cpu.id: cpu.siblings for cpu in seen.cpus}
        return tuple(
            ForeignCell(one.id, one.cpus, tuple((n, told[n] or EMPTY) for n in one.cpus))
            for one in seen.cells
        )

    def _connect(self, name: str, hear: Hear | None) -> Connection:
        with self.called(None, Call(name)):
            if not self.reachable:
                raise HypervisorAway("Failed to connect socket")
            self.connections.add(made := Connection(self, hear))
            return made

    @contextmanager
    def called(self, connection: Connection | None, call: Call) -> Iterator[Guests]:
        """Note a call, and raise what is due; meanwhile nobody else changes a guest."""
        self.log.append(call)
        self.hook(call)
        with self._lock:
            due = (f for f in self._faults if f[0] == call.name and f[1] in {None, call.uuid})
            if (fault := next(due, None)) is not None:
                self._faults.remove(fault)
                raise fault[2]
            self._check(connection)
            yield self.guests

    def _check(self, connection: Connection | None) -> None:
        if connection is not None and connection not in self.connections:
            raise HypervisorAway("client socket is closed")

    def carry_out(self, connection: Connection, call: Call) -> None:
        """Pin, once no job holds the guest."""
        with self.called(connection, call):
            hold = self._holds.get(call.uuid)
        if hold is not None:
            hold.wait()
            if hold.refuses:
                raise GuestBusy("cannot acquire state change lock")
        with self._lock:
            self._check(connection)
            self.pin(*call[1:])
            self.pins.append(call)

    def pin(self, uuid: str, cpus: CpuSet | None, iothread: int | None = None) -> None:
        """Pin live as anybody may, and tell everybody."""
        guest = self.guests[uuid]
        cpus = (cpus or EMPTY) & self.present  # the binding drops what lies beyond
        process = guest.running
        if guest.occupied:
            raise GuestBusy("cannot acquire state change lock")
        if not cpus or role(iothread) not in process.cpusets:
            raise TargetRefused("Empty cpu list for pinning, or no such iothread")
        if not cpus <= process.ceiling():
            raise TargetRefused("failed to set cpuset.cpus in cgroup")
        process.pin(iothread, cpus)
        guest.record(iothread, cpus)
        name = "emulatorpin" if iothread is None else f"iothreadpin{iothread}"
        self._tell(uuid, Topic.TUNABLE, ((f"cputune.{name}", str(cpus)),))

    # agent.observer.Hosts

    def discover(self) -> Discovery:
        with self.called(None, Call("discover")):
            return Discovery(host(self.machine), self.problems)

    def refresh(self) -> Discovery:
        with self.called(None, Call("refresh")):
            return Discovery(host(self.machine), self.problems)

    def online(self) -> CpuSet:
        return self.present - self.machine.offline

    # agent.sight.Cpusets

    def mend(
        self, partitions: Iterable[str], online: CpuSet, *, plugged: bool, act: bool
    ) -> Mended:
        del partitions, online, plugged, act
        with self.called(None, Call("mend")):
            return self.mended

    # agent.observer.Kernels and agent.pinner.Settler

    def partition(self, path: str = "/machine") -> CpuSet | None:
        with self.called(None, Call("partition", path)):
            return self._limit()

    def partitions(self) -> list[str]:
        return []  # nothing to watch: cgroups appear in no directory

    def locate(self, uuid: str, domain_id: int, partition: str | None = None) -> Place | None:
        with self.called(None, Call("locate", uuid)) as guests:
            process = guests[uuid].process if partition is None and uuid in guests else None
            return process.place if process is not None and process.id == domain_id else None

    def read(self, place: Place, iothreads: Iterable[int] | None = None) -> Kernel:
        with self.called(None, Call("read", _uuid(place))):
            kernel = self._process(place).read()
            known = tuple(one for one in kernel.iothreads if iothreads and one[0] in iothreads)
            return kernel if iothreads is None else replace(kernel, iothreads=known)

    def settle(self, place: Place, target: CpuSet) -> Settled:
        return self._settle(place, None, target)

    def settle_iothread(self, place: Place, iothread: int, target: CpuSet) -> Settled:
        return self._settle(place, iothread, target)

    def times(self, kernel: Kernel) -> Times | None:
        tids = {thread.tid for thread in kernel.threads}
        with self.called(None, Call("times", self._owner(tids))):
            return Times(tuple((tid, tid, 0) for tid in tids), ())

    def _owner(self, tids: set[int]) -> str:
        """Return the guest that has one of these threads; nobody's uuid if none has."""
        started = {u: g.process for u, g in self.guests.items() if g.process is not None}
        return next((u for u, own in started.items() if own.threads.keys() & tids), "")

    def _settle(self, place: Place, iothread: int | None, target: CpuSet) -> Settled:
        with self.called(None, Call("settle", _uuid(place), target, iothread)):
            process, permitted = self._process(place), self.may_loosen
            return process.settle(role(iothread), target, self.present, permitted=permitted)

    def _process(self, place: Place) -> Process:
        process = self.guests[_uuid(place)].running
        if process.place != place:
            raise GuestGone(f"process {place.pid} has ended")
        return process

    def _limit(self) -> CpuSet:
        return self.slice & self.online()

    # what operators and guests do

    def define(self, name: str, **properties: object) -> str:
        """Define a guest by the arguments of `guest_xml`, or change its definition."""
        told = definition(name, properties)
        uuid = str(told["uuid"])
        self.guests.setdefault(uuid, FakeGuest()).persistent = told
        self._tell(uuid)
        return uuid

    def start(self, uuid: str) -> str:
        """Start a defined guest; return its UUID, for `start(define(...))`."""
        return self._boot(self.guests[uuid].persistent or {})

    def create(self, name: str, **properties: object) -> str:
        """Start a transient guest."""
        return self._boot(definition(name, properties))

    def migrate_in(self, name: str, **properties: object) -> str:
        """Begin to receive a guest, which is held until `finish`."""
        return self._boot(definition(name, properties), arrived=True)

    def finish(self, uuid: str, **persistent: object) -> None:
        """End an incoming migration; it may bring a definition that differs in `persistent`."""
        guest = self.guests[uuid]
        guest.occupied = False
        if persistent:
            guest.persistent = {**(guest.live or {}), **persistent}
        self._tell(uuid, resumed=True)

    def destroy(self, uuid: str) -> None:
        """Stop a guest; a transient one is gone then."""
        with self._lock:
            kept = FakeGuest(self.guests.pop(uuid).persistent)
            if kept.persistent is not None:
                self.guests[uuid] = kept
        self._tell(uuid)
        self._tell(uuid)

    def undefine(self, uuid: str) -> None:
        self.guests[uuid].persistent = None
        if self.guests[uuid].process is None:
            del self.guests[uuid]
        self._tell(uuid)

    def label(self, uuid: str, policy: str, **attributes: str) -> None:
        """Set emupool's metadata, live and persistent."""
        self.guests[uuid].label(policy, attributes)
        self._tell(uuid, Topic.METADATA)

    def unplug(self, cpus: CpuSet) -> None:
        """Have exactly `cpus` off line."""
        self.machine = replace(self.machine, offline=cpus)

    # what goes wrong

    def fail(self, name: str, error: EmupoolError, uuid: str | None = None, times: int = 1) -> None:
        """Let the next calls of a name fail, of one guest or of any."""
        self._faults += [(name, uuid, error)] * times

    def hold(self, uuid: str, entered: Callable[[], None] = lambda: None) -> Hold:
        """Let pins of a guest wait; each calls `entered` when it begins to."""
        self._holds[uuid] = Hold(entered)
        return self._holds[uuid]

    def free(self, uuid: str) -> None:
        """End the job that holds a guest: pins that wait go on."""
        hold = self._holds.pop(uuid)
        hold.over = True
        hold.wake()
        self._tell(uuid, Topic.JOB)

    def lose(self, why: str = "libvirt went away") -> None:
        """Break all connections, also under the calls that wait."""
        with self._lock:
            broken, self.connections = self.connections, set()
        for hold in self._holds.values():
            hold.wake()
        for connection in broken:
            if connection.hear is not None:
                connection.hear(LinkLost(why))

    @contextmanager
    def backwards(self) -> Iterator[None]:
        """Deliver the events of what is done meanwhile at the end, and the last one first."""
        self._withheld = late = list[GuestEvent]()
        yield
        self._withheld = None
        for event in reversed(late):
            self._deliver(event)

    # what tests ask

    def count(self, *names: str) -> int:
        """Return how many calls of these names were made."""
        return sum(call.name in names for call in self.log)

    def record(self, uuid: str, iothread: int | None = None) -> CpuSet | None:
        """Return the live pin that libvirt has on record."""
        return pin_of(self.guests[uuid].live, iothread)

    def persistent(self, uuid: str) -> CpuSet | None:
        """Return the emulator pin of the persistent definition."""
        return pin_of(self.guests[uuid].persistent)

    def masks(self, uuid: str, iothread: int | None = None) -> set[CpuSet]:
        """Return the different masks that the emulator threads, or an iothread's, have."""
        return {thread.cpus for thread in self.guests[uuid].running.members(role(iothread))}

    # inside

    def _boot(self, told: Definition, *, arrived: bool = False) -> str:
        uuid = str(told["uuid"])
        with self._lock:
            self._starts += 1
            guest = self.guests.setdefault(uuid, FakeGuest())
            guest.boot(
                told, self._starts, self.present, self._limit, self._cpusets, arrived=arrived
            )
        if not arrived:
            self._tell(uuid, resumed=True)
        self._tell(uuid, started=True)
        return uuid

    def _tell(
        self,
        uuid: str,
        topic: Topic = Topic.LIFECYCLE,
        tuned: tuple[tuple[str, str], ...] = (),
        *,
        started: bool = False,
        resumed: bool = False,
    ) -> None:
        process = self.guests[uuid].process if started or resumed else None
        number = process.id if process is not None else None
        event = GuestEvent(uuid, topic, time.monotonic(), tuned, started, resumed, number)
        for _ in range(self.copies):
            if self._withheld is None:
                self._deliver(event)
            else:
                self._withheld.append(event)

    def _deliver(self, event: GuestEvent) -> None:
        for connection in tuple(self.connections):
            if connection.hear is not None:
                connection.hear(event)


def _uuid(place: Place) -> str:
    return place.guest.removeprefix("/")
