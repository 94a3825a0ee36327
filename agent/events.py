"""What wakes the daemon: one inbox, filled from any thread, emptied by the one that decides.

Callbacks of libvirt, the watcher of CPU events and signal handlers put a small frozen value and
return; `SimpleQueue.put` is re-entrant, so a signal may interrupt a put. The reader drains all
that is there into one `Wake`: a burst of events costs one look at each guest, not one each.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol

from agent.port import GuestEvent, Link, LinkLost, ListReturned, Topic

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.topology import ForeignCell

_UDEVD: Final = Path("/run/udev/control")


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A connection is made; the receiver owns it from now on."""

    link: Link


@dataclass(frozen=True, slots=True)
class LinkFailed:
    """An attempt to connect failed; another one follows."""

    why: str


@dataclass(frozen=True, slots=True)
class Counted:
    """The ids of the guests that ran a moment ago."""

    ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Starting:
    """The definition of a guest that libvirt still starts."""

    uuid: str
    text: str


@dataclass(frozen=True, slots=True)
class CpusChanged:
    """A pCPU of the host went on or off line."""


@dataclass(frozen=True, slots=True)
class CpusUnwatched:
    """Nobody reports pCPUs any more: `online` is only read in each cycle from now on."""

    why: str


@dataclass(frozen=True, slots=True)
class HostTold:
    """The NUMA cells of the host as libvirt sees them."""

    cells: tuple[ForeignCell, ...]


@dataclass(frozen=True, slots=True)
class PinReturned:
    """A pin that had been given up on has returned."""


@dataclass(frozen=True, slots=True)
class Reload:
    """SIGHUP."""


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGTERM or SIGINT."""


Event = (
    GuestEvent
    | ListReturned
    | LinkUp
    | LinkLost
    | LinkFailed
    | Counted
    | Starting
    | CpusChanged
    | CpusUnwatched
    | HostTold
    | PinReturned
    | Reload
    | Stop
)

_LABELS: Final = {
    LinkUp: "connection",
    LinkLost: "connection",
    LinkFailed: "connection",
    Counted: "list",
    ListReturned: "list",
    Starting: "starting",
    CpusChanged: "cpu",
    CpusUnwatched: "cpu",
    HostTold: "connection",
    PinReturned: "step",
    Reload: "signal",
    Stop: "signal",
}


_FLAGS: Final = {
    CpusChanged: "cpus",
    ListReturned: "listed",
    PinReturned: "returned",
    Reload: "reload",
    Stop: "stop",
}


@dataclass(slots=True)
class Wake:
    """All that came in since the last one; no guests and no flags: only time has passed."""

    guests: dict[str, list[GuestEvent]] = field(default_factory=dict)
    link: LinkUp | None = None  # the last one
    outdated: list[Link] = field(default_factory=list)  # to be closed: it has a successor already
    failed: LinkFailed | None = None
    lost: LinkLost | None = None
    counted: Counted | None = None
    starting: dict[str, str] = field(default_factory=dict)  # definitions by UUID
    unwatched: CpusUnwatched | None = None
    told: HostTold | None = None
    cpus: bool = False
    returned: bool = False
    listed: bool = False
    reload: bool = False
    stop: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def answered(self) -> bool:
        """Whether something came that had been given up on."""
        topics = (event.topic for events in self.guests.values() for event in events)
        return self.listed or Topic.READ in topics

    def add(self, event: Event) -> None:
        """Take one event in."""
        match event:
            case GuestEvent():
                self.counts[event.topic] += 1
                self.guests.setdefault(event.uuid, []).append(event)
                return
            case LinkUp():
                if self.link is not None:
                    self.outdated.append(self.link.link)
                self.link, self.lost, self.counted, self.starting = event, None, None, {}
            case LinkLost():
                self.lost = event
            case LinkFailed():
                self.failed = event
            case Counted():
                self.counted = event
            case HostTold():
                self.told = event
            case Starting():
                self.starting[event.uuid] = event.text
            case CpusUnwatched():
                self.unwatched, self.cpus = event, True  # a last time: something may be untold
            case _:
                setattr(self, _FLAGS[type(event)], True)
        self.counts[_LABELS[type(event)]] += 1


FREES: Final = frozenset({Topic.LIFECYCLE, Topic.JOB, Topic.READ})
"""What may end the reason for which a guest could not be read or pinned."""


@dataclass(slots=True)
class Named:
    """What a wake means for the next cycle: which guests to look at, and what is known of them."""

    guests: set[str] = field(default_factory=set)
    freed: set[str] = field(default_factory=set)  # whose job may have ended
    fresh: dict[str, int | None] = field(default_factory=dict)  # started just now: domain ids
    early: dict[str, str] = field(default_factory=dict)  # being started: definitions
    counted: frozenset[int] | None = None  # ids of the running ones, if they have to agree

    @classmethod
    def of(cls, wake: Wake, is_echo: Callable[[GuestEvent], bool]) -> Named:
        """Return what `wake` means; an event that `is_echo` tells what is known already."""
        named = cls(set(wake.starting), early=wake.starting)
        for uuid, events in wake.guests.items():
            if not all(map(is_echo, events)):
                named.guests.add(uuid)
            for event in events:
                if event.topic in FREES:
                    named.freed.add(uuid)
                if event.started or event.resumed:
                    named.fresh[uuid] = event.id
        return named


class Waiter(Protocol):
    """Something to run while the inbox is empty: libvirt's event loop."""

    def wait(self, until: Callable[[], bool], timeout: float | None) -> None:
        """Run until `until` holds, or for `timeout` seconds; `wake` makes it look."""

    def wake(self) -> None:
        """Have `until` looked at; from any thread or signal handler."""


class Inbox:
    """The queue between those who notice and the one who decides."""

    def __init__(self, waiter: Waiter | None = None) -> None:
        """Start empty; with a `waiter`, its loop is run while there is nothing to do."""
        self._queue: SimpleQueue[Event] = SimpleQueue()
        self._waiter = waiter

    def put(self, event: Event) -> None:
        """Add an event; from any thread, callback or signal handler."""
        self._queue.put(event)
        if self._waiter is not None:
            self._waiter.wake()

    def depth(self) -> int:
        """Return how many events wait."""
        return self._queue.qsize()

    def wait(self, timeout: float | None) -> Wake:
        """Return what is there, waiting up to `timeout` seconds (None: for ever) for the first."""
        wake = Wake()
        limit = timeout if timeout is None else max(0.0, timeout)
        try:
            if self._waiter is None:
                wake.add(self._queue.get(timeout=limit))
            else:
                self._waiter.wait(lambda: not self._queue.empty(), limit)
            while True:
                wake.add(self._queue.get_nowait())
        except Empty:
            return wake


def watch_cpus(put: Callable[[Event], None], udevd: Path = _UDEVD) -> str | None:
    """Report host pCPUs going on or off line, from a thread of its own.

    The kernel's netlink source works where no udev daemon runs. Returns None, or why nothing is
    watched: then `online` is only read in each cycle.
    """
    try:
        import pyudev  # noqa: PLC0415 - absence of libudev must not keep the daemon from running

        monitor = pyudev.Monitor.from_netlink(
            pyudev.Context(), source="udev" if udevd.exists() else "kernel"
        )
        monitor.filter_by("cpu")
        monitor.start()
    except (ImportError, OSError) as error:
        return str(error)

    threading.Thread(
        target=follow_cpus, args=(monitor.poll, put), name="cpu-events", daemon=True
    ).start()
    return None


def follow_cpus(poll: Callable[[], object], put: Callable[[Event], None]) -> None:
    """Report what `poll` waits for, until it fails; then report that."""
    while True:
        try:
            changed = poll() is not None
        except OSError as error:
            changed = error.errno == errno.ENOBUFS  # the kernel had more to tell than we took
            if not changed:
                return put(CpusUnwatched(str(error)))
        if changed:
            put(CpusChanged())


class Timer:
    """When to look at everything again."""

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Be due at once, then `interval` seconds after each `done`."""
        self.interval = interval
        self._clock = clock
        self._next = clock()

    def remaining(self) -> float:
        """Return the seconds left, below 0 when overdue."""
        return self._next - self._clock()

    def expire(self, delay: float = 0.0) -> None:
        """Be due now, or `delay` seconds from now."""
        self._next = self._clock() + delay

    def done(self) -> None:
        """Start the next interval."""
        self._next = self._clock() + self.interval
