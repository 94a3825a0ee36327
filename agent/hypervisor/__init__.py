"""libvirt: the only module that speaks to it.

Types and errors are translated at this border. What the rest of the program must not have to
know, measured on libvirt 9.0 and read in its source:

* Callbacks run in the thread of the event loop (`loop`), the close callback in whichever thread is
  in a call: they enqueue and return. Unregistering in a callback deadlocks.
* `close()` leaks the socket while callbacks are registered: they go first.
* A call that fails because the connection is gone says so by its error *domain* (RPC), not code.
* The binding takes a tuple of booleans; it silently drops what lies beyond the present pCPUs.
* Pins always say LIVE: with flags of 0 a pin of a stopped guest edits its persistent definition.
* Who asks for one guest while libvirt holds its lock (it starts, is destroyed, runs a hook) keeps
  everybody from defining another one until then, and so do `listDomainsID` and `lookupByID`;
  `listAllDomains` only waits.
* A `virDomain` names its guest by UUID in each call: one handle serves all starts of a guest.
* A second `setKeepAlive` on one connection says that all is well, and changes nothing.
"""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import libvirt

from agent.errors import GuestGone
from agent.hypervisor import capabilities
from agent.hypervisor.faults import connect, translated
from agent.hypervisor.loop import EventLoop, start_event_loop
from agent.port import GuestEvent, LinkLost, Topic, answered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agent.cpuset import CpuSet
    from agent.errors import EmupoolError
    from agent.topology import ForeignCell

    Hear = Callable[[GuestEvent | LinkLost], None]

__all__ = [
    "EventLoop",
    "Libvirt",
    "LibvirtHand",
    "LibvirtLink",
    "LibvirtReads",
    "LibvirtRoster",
    "start_event_loop",
]

# Its job is not told of: libvirt says that there is none.
_STARTING: Final = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
_OCCUPIED: Final = frozenset(
    {
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_SAVE),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_DUMP),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT),
        (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY),
    }
)
_UNTOLD: Final = frozenset(  # what may be said instead of a job; of one that arrives, the first
    {
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        libvirt.VIR_ERR_OPERATION_INVALID,
        libvirt.VIR_ERR_NO_SUPPORT,
    }
)
_HANDLES: Final = 1024  # kept by a hand
_LOST: Final = {
    libvirt.VIR_CONNECT_CLOSE_REASON_ERROR: "an I/O error",
    libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "libvirt went away",
    libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "libvirt does not answer keepalive",
    libvirt.VIR_CONNECT_CLOSE_REASON_CLIENT: "closed here",
}


class Libvirt:
    """A libvirt at `uri`; keepalive in seconds and unanswered probes."""

    def __init__(self, uri: str, keepalive_interval: int, keepalive_count: int) -> None:
        """Remember where; nothing is opened yet."""
        self._uri = uri
        self._keepalive = keepalive_interval, keepalive_count

    def link(self, hear: Hear) -> LibvirtLink:
        """Connect and subscribe to what concerns pins; `hear` is called in libvirt's threads."""
        return LibvirtLink(self._open(), hear)

    def hand(self) -> LibvirtHand:
        """Connect for pinning."""
        return LibvirtHand(self._open())

    def roster(self) -> LibvirtRoster:
        """Connect for what waits."""
        return LibvirtRoster(self._open())

    def keepalive(self, interval: int, count: int) -> None:
        """Have connections to come use these; of an open one libvirt changes nothing."""
        self._keepalive = interval, count

    def cells(self) -> tuple[ForeignCell, ...]:
        """Connect for one question: the NUMA cells of the host, from libvirt's capabilities."""
        connection = self._open()
        try:
            return capabilities.cells(connection.getCapabilities())
        except libvirt.libvirtError as error:
            raise translated(error, connection) from error
        finally:
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()

    def _open(self) -> libvirt.virConnect:
        return connect(self._uri, *self._keepalive)


class LibvirtReads:
    """A connection that lists and reads; used by one thread at a time."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        """Ask through `connection`."""
        self._connection = connection
        self._domains: dict[str, libvirt.virDomain] = {}

    def uuids(self) -> tuple[str, ...]:
        """Return all defined guests, running or not: one call."""
        try:
            listed = self._connection.listAllDomains(0)
        except libvirt.libvirtError as error:
            raise translated(error, self._connection) from error
        domains = {domain.UUIDString(): domain for domain in listed}
        self._domains = domains.copy()  # to which a callback may add one that is gone
        return tuple(domains)

    def xml(self, uuid: str) -> str:
        """Return the live definition of a running guest, the persistent one of a stopped one."""
        return str(self._ask(uuid, lambda domain: domain.XMLDesc(0)))

    def xmls(self, uuids: Sequence[str]) -> Iterator[tuple[str, str | EmupoolError]]:
        """Yield each guest with what `xml` returns, or raises, about it."""
        return ((uuid, answered(partial(self.xml, uuid))) for uuid in uuids)

    def persistent_xml(self, uuid: str) -> str | None:
        """Return the persistent definition, None if it has none."""

        def read(domain: libvirt.virDomain) -> str | None:
            # For a transient guest INACTIVE would format its live definition.
            if not domain.isPersistent():
                return None
            return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

        text: str | None = self._ask(uuid, read)
        return text

    def occupied(self, uuid: str) -> bool:
        """Tell whether a job holds the guest: its state says so, and it has one.

        A guest that was restored and left paused has the state of one that still arrives.
        """
        return bool(self._ask(uuid, _is_occupied))

    def close(self) -> None:
        """End the connection."""
        self._domains = {}
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.close()

    def _ask(self, uuid: str, call: Callable[[libvirt.virDomain], Any]) -> Any:  # noqa: ANN401 - the binding is untyped
        domain = None
        try:
            domain = self._domains.get(uuid)
            if domain is None:
                domain = self._domains[uuid] = self._connection.lookupByUUIDString(uuid)
            return call(domain)
        except libvirt.libvirtError as error:
            raise translated(error, self._connection, domain) from error


class LibvirtLink(LibvirtReads):
    """The connection for events, and for reading."""

    def __init__(self, connection: libvirt.virConnect, hear: Hear) -> None:
        """Subscribe `hear` on `connection`."""
        super().__init__(connection)
        self._hear = hear
        self._callbacks: list[int] = []
        try:
            connection.registerCloseCallback(self._closed, None)
            for event, callback in self._subscriptions():
                self._callbacks.append(
                    connection.domainEventRegisterAny(None, event, callback, None)
                )
        except libvirt.libvirtError as error:
            self.close()
            raise translated(error, connection) from error

    def close(self) -> None:
        """Unsubscribe and close; on a dead connection these fail, and then nothing is left."""
        for callback in self._callbacks:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.domainEventDeregisterAny(callback)
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.unregisterCloseCallback()
        self._callbacks = []
        super().close()

    # callbacks: in libvirt's threads; enqueue and return

    def _subscriptions(self) -> list[tuple[int, Callable[..., None]]]:
        return [
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle),
            (libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE, self._on_tunable),
            (libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, self._on_metadata),
            (libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, self._on_job),
        ]

    def _on_lifecycle(
        self,
        _connection: object,
        domain: libvirt.virDomain,
        event: int,
        _detail: int,
        _opaque: object,
    ) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN:
            return  # it runs until STOPPED says otherwise, and its lock is held until then
        uuid = domain.UUIDString()
        self._domains.setdefault(uuid, domain)  # spares the reader a look-up
        started = event == libvirt.VIR_DOMAIN_EVENT_STARTED
        resumed = event == libvirt.VIR_DOMAIN_EVENT_RESUMED
        number = domain.ID() if started or resumed else -1
        self._hear(
            GuestEvent(
                uuid,
                Topic.LIFECYCLE,
                time.monotonic(),
                started=started,
                resumed=resumed,
                id=number if number >= 0 else None,
            )
        )

    def _on_tunable(
        self,
        _connection: object,
        domain: libvirt.virDomain,
        values: dict[str, object],
        _opaque: object,
    ) -> None:
        tuned = tuple((name, str(value)) for name, value in values.items())
        self._hear(GuestEvent(domain.UUIDString(), Topic.TUNABLE, time.monotonic(), tuned))

    def _on_metadata(self, _connection: object, domain: libvirt.virDomain, *_: object) -> None:
        self._hear(GuestEvent(domain.UUIDString(), Topic.METADATA, time.monotonic()))

    def _on_job(self, _connection: object, domain: libvirt.virDomain, *_: object) -> None:
        self._hear(GuestEvent(domain.UUIDString(), Topic.JOB, time.monotonic()))

    def _closed(self, _connection: object, reason: int, _opaque: object) -> None:
        self._hear(LinkLost(_LOST.get(reason, f"close reason {reason}")))


class LibvirtRoster(LibvirtReads):
    """A connection for what waits until libvirt lets go of guests."""

    def active_ids(self) -> frozenset[int]:
        """Return the ids of all running guests; libvirt takes each guest's lock for it."""
        return frozenset(self._running())

    def definition(self, number: int) -> tuple[str, str]:
        """Return UUID and live definition of the guest with this domain id."""
        domain = self._running().get(number)
        if domain is None:
            raise GuestGone(f"no domain with id {number}")
        try:
            return domain.UUIDString(), str(domain.XMLDesc(0))
        except libvirt.libvirtError as error:
            raise translated(error, self._connection, domain) from error

    def _running(self) -> dict[int, libvirt.virDomain]:
        try:
            listed = self._connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            return {domain.ID(): domain for domain in listed}
        except libvirt.libvirtError as error:
            raise translated(error, self._connection) from error


class LibvirtHand:
    """A connection that pins; used by one worker thread."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        """Pin through `connection`."""
        self._connection = connection
        self._domains: dict[str, libvirt.virDomain] = {}

    def look_up(self, uuid: str) -> None:
        """Get the handle that a pin of this guest needs, for all its starts."""
        if uuid not in self._domains:
            if len(self._domains) >= _HANDLES:
                self._domains.clear()  # most are of guests that are gone
            try:
                self._domains[uuid] = self._connection.lookupByUUIDString(uuid)
            except libvirt.libvirtError as error:
                raise translated(error, self._connection) from error

    def pin_emulator(self, uuid: str, cpus: CpuSet) -> None:
        """Pin live; see LIBVIRT's `virDomainPinEmulator`."""
        self._pin(
            uuid,
            cpus,
            lambda domain, mask: domain.pinEmulator(mask, libvirt.VIR_DOMAIN_AFFECT_LIVE),
        )

    def pin_iothread(self, uuid: str, iothread: int, cpus: CpuSet) -> None:
        """Pin live; see LIBVIRT's `virDomainPinIOThread`."""
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE
        self._pin(uuid, cpus, lambda domain, mask: domain.pinIOThread(iothread, mask, flags))

    def close(self) -> None:
        """End the connection."""
        self._domains = {}
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.close()

    def _pin(
        self, uuid: str, cpus: CpuSet, call: Callable[[libvirt.virDomain, tuple[bool, ...]], object]
    ) -> None:
        self.look_up(uuid)
        domain = self._domains[uuid]
        try:
            call(domain, _mask(cpus))
        except libvirt.libvirtError as error:
            del self._domains[uuid]
            raise translated(error, self._connection, domain) from error


def _mask(cpus: CpuSet) -> tuple[bool, ...]:
    """Return the tuple of booleans that the binding wants."""
    return tuple(bool(cpus.bits >> cpu & 1) for cpu in range(cpus.bits.bit_length()))


def _is_occupied(domain: libvirt.virDomain) -> bool:
    state, reason = domain.state()
    if (state, reason) == _STARTING:
        return True
    if (state, reason) not in _OCCUPIED:
        return False
    try:
        return bool(domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _UNTOLD:  # of a job that libvirt does not tell about
            return True
        raise
