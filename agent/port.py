"""What this program asks of a hypervisor, and what it hears: the seam for libvirt and its fake.

A `Link` is one connection: it lists, reads and hears. A `Hand` is another one, and pins; a `Roster`
a third, and waits for guests that libvirt holds. Every call may raise HypervisorAway; those that
name a guest may raise any GuestError.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

from agent.errors import EmupoolError, unforeseen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agent.cpuset import CpuSet
    from agent.topology import ForeignCell


_T = TypeVar("_T")


class Topic(StrEnum):
    """What a hypervisor's event is about."""

    LIFECYCLE = "lifecycle"
    TUNABLE = "tunable"
    METADATA = "metadata"
    JOB = "job"
    READ = "read"  # a call that was given up has returned


@dataclass(frozen=True, slots=True)
class GuestEvent:
    """Look at this guest again; `tuned` are the tunables that changed, and their values."""

    uuid: str
    topic: Topic
    at: float  # monotonic seconds
    tuned: tuple[tuple[str, str], ...] = ()
    started: bool = False  # its start was announced
    resumed: bool = False  # its vCPUs run (again): comes before `started` when it boots
    id: int | None = None  # of the domain, as far as the event tells


@dataclass(frozen=True, slots=True)
class ListReturned:
    """A list that had been given up on has come."""


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The connection is gone; `why` is for the log."""

    why: str


class Hand(Protocol):
    """A connection that pins; one call at a time."""

    def look_up(self, uuid: str) -> None:
        """Do what can be done before a guest is pinned; waits while it is being started."""

    def pin_emulator(self, uuid: str, cpus: CpuSet) -> None:
        """Give the emulator threads of a running guest `cpus`, live only."""

    def pin_iothread(self, uuid: str, iothread: int, cpus: CpuSet) -> None:
        """Give one iothread of a running guest `cpus`, live only."""

    def close(self) -> None:
        """End the connection; never raises."""


class Reads(Protocol):
    """A connection that lists and reads; it waits for guests that libvirt holds."""

    def uuids(self) -> tuple[str, ...]:
        """Return all defined guests, running or not; Held if that cannot be had now."""

    def xml(self, uuid: str) -> str:
        """Return the live definition of a running guest, the persistent one of a stopped one."""

    def xmls(self, uuids: Sequence[str]) -> Iterator[tuple[str, str | EmupoolError]]:
        """Yield each guest with what `xml` returns, or raises, about it."""

    def persistent_xml(self, uuid: str) -> str | None:
        """Return the persistent definition, None if it has none."""

    def occupied(self, uuid: str) -> bool:
        """Tell whether a job is known to hold the guest now (it starts, migrates, is saved)."""

    def close(self) -> None:
        """End the connection; never raises."""


class Roster(Reads, Protocol):
    """A connection for what waits until guests are started or destroyed."""

    def active_ids(self) -> frozenset[int]:
        """Return the ids of all running guests: one call."""

    def definition(self, number: int) -> tuple[str, str]:
        """Return UUID and live definition of the guest with this domain id."""


class Link(Reads, Protocol):
    """A connection that lists, reads and hears, until it is closed."""


class Hypervisor(Protocol):
    """Where links and hands come from."""

    def link(self, hear: Callable[[GuestEvent | LinkLost], None]) -> Link:
        """Connect and subscribe; HypervisorAway or NotPermitted if that fails."""

    def hand(self) -> Hand:
        """Connect for pinning."""

    def roster(self) -> Roster:
        """Connect for what waits."""

    def keepalive(self, interval: int, count: int) -> None:
        """Probe connections to come at this interval (seconds), and give up after `count` probes.

        Those that are open stay as they are: a libvirt connection keeps its first keepalive.
        """

    def cells(self) -> tuple[ForeignCell, ...]:
        """Connect and ask for the host's NUMA cells as the hypervisor sees them; takes its time."""


def answered(call: Callable[[], _T]) -> _T | EmupoolError:
    """Return what a call returns, or raises: one guest's surprise must not end the others."""
    try:
        return call()
    except EmupoolError as error:
        return error
    except Exception as error:  # noqa: BLE001 - see above
        return unforeseen(error)
