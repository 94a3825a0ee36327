"""libvirt: the only module that speaks to it.

Types and errors are translated at this border. What the rest of the program must not have to
know, measured on libvirt 9.0 and read in its source:

* The event loop implementation must be registered before the first connection is opened, and is
  the whole process's (`start_event_loop`). Callbacks run in its thread, the close callback in
  whichever thread is in a call: they enqueue and return. Unregistering in a callback deadlocks.
* `close()` leaks the socket while callbacks are registered: they go first.
* A call that fails because the connection is gone says so by its error *domain* (RPC), not code.
* The binding takes a tuple of booleans; it silently drops what lies beyond the present pCPUs.
* Pins always say LIVE: with flags of 0 a pin of a stopped guest edits its persistent definition.
* A `virDomain` names its guest by UUID in each call: one handle serves all starts of a guest.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import libvirt

from agent.errors import (
    EmupoolError,
    GuestBusy,
    GuestFailed,
    GuestGone,
    HypervisorAway,
    NotPermitted,
    TargetRefused,
)
from agent.port import GuestEvent, LinkLost, Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.cpuset import CpuSet

    Hear = Callable[[GuestEvent | LinkLost], None]

_NOT_PERMITTED: Final = frozenset(
    {
        libvirt.VIR_ERR_OPERATION_DENIED,
        libvirt.VIR_ERR_ACCESS_DENIED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_CANCELLED,
    }
)
_MEANS: Final[dict[int, type[EmupoolError]]] = {
    libvirt.VIR_ERR_OPERATION_TIMEOUT: GuestBusy,
    libvirt.VIR_ERR_NO_DOMAIN: GuestGone,
    libvirt.VIR_ERR_INVALID_ARG: TargetRefused,
    **dict.fromkeys(_NOT_PERMITTED, NotPermitted),
}
_OCCUPIED: Final = frozenset(
    {
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_SAVE),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_DUMP),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT),
        (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY),
    }
)
_LOST: Final = {
    libvirt.VIR_CONNECT_CLOSE_REASON_ERROR: "an I/O error",
    libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "libvirt went away",
    libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "libvirt does not answer keepalive",
    libvirt.VIR_CONNECT_CLOSE_REASON_CLIENT: "closed here",
}


def start_event_loop() -> None:
    """Register libvirt's event loop and run it in a thread; once per process, before any link."""
    libvirt.virEventRegisterDefaultImpl()
    libvirt.registerErrorHandler(lambda *_: None, None)  # errors are raised: no echo on stderr
    threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


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

    def _open(self) -> libvirt.virConnect:
        try:
            connection = libvirt.open(self._uri)
        except libvirt.libvirtError as error:
            if error.get_error_code() in _NOT_PERMITTED:
                raise NotPermitted(f"{self._uri}: {_text(error)}") from error
            raise HypervisorAway(f"{self._uri}: {_text(error)}") from error
        # The test driver has no keepalive, and no connection that could die either.
        with contextlib.suppress(libvirt.libvirtError):
            connection.setKeepAlive(*self._keepalive)
        return connection


class LibvirtLink:
    """The connection for events and for reading; used by one thread."""

    def __init__(self, connection: libvirt.virConnect, hear: Hear) -> None:
        """Subscribe `hear` on `connection`."""
        self._connection = connection
        self._hear = hear
        self._domains: dict[str, libvirt.virDomain] = {}
        self._callbacks: list[int] = []
        try:
            connection.registerCloseCallback(self._closed, None)
            for event, callback in self._subscriptions():
                self._callbacks.append(
                    connection.domainEventRegisterAny(None, event, callback, None)
                )
        except libvirt.libvirtError as error:
            self.close()
            raise _translated(error, connection) from error

    def uuids(self) -> tuple[str, ...]:
        """Return all defined guests, running or not: one call."""
        try:
            listed = self._connection.listAllDomains(0)
        except libvirt.libvirtError as error:
            raise _translated(error, self._connection) from error
        self._domains = {domain.UUIDString(): domain for domain in listed}
        return tuple(self._domains)

    def active_ids(self) -> frozenset[int]:
        """Return the ids of all running guests: one small call, whatever their number."""
        try:
            return frozenset(self._connection.listDomainsID())
        except libvirt.libvirtError as error:
            raise _translated(error, self._connection) from error

    def xml(self, uuid: str) -> str:
        """Return the live definition of a running guest, the persistent one of a stopped one."""
        return str(self._ask(uuid, lambda domain: domain.XMLDesc(0)))

    def persistent_xml(self, uuid: str) -> str | None:
        """Return the persistent definition, None if it has none."""

        def read(domain: libvirt.virDomain) -> str | None:
            # For a transient guest INACTIVE would format its live definition.
            if not domain.isPersistent():
                return None
            return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

        text: str | None = self._ask(uuid, read)
        return text

    def is_persistent(self, uuid: str) -> bool:
        """Tell whether it has a persistent definition."""
        return bool(self._ask(uuid, lambda domain: domain.isPersistent()))

    def occupied(self, uuid: str) -> bool:
        """Tell whether its state says that a job holds the guest."""
        state, reason = self._ask(uuid, lambda domain: domain.state())
        return (state, reason) in _OCCUPIED

    def close(self) -> None:
        """Unsubscribe and close; on a dead connection these fail, and then nothing is left."""
        for callback in self._callbacks:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.domainEventDeregisterAny(callback)
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.unregisterCloseCallback()
        self._callbacks, self._domains = [], {}
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
            raise _translated(error, self._connection, domain) from error

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
        uuid, started = domain.UUIDString(), event == libvirt.VIR_DOMAIN_EVENT_STARTED
        self._domains.setdefault(uuid, domain)  # spares the reader a look-up
        self._hear(GuestEvent(uuid, Topic.LIFECYCLE, time.monotonic(), started=started))

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


class LibvirtHand:
    """A connection that pins; used by one worker thread."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        """Pin through `connection`."""
        self._connection = connection
        self._domains: dict[str, libvirt.virDomain] = {}

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
        domain = None
        try:
            domain = self._domains.get(uuid)
            if domain is None:
                domain = self._domains[uuid] = self._connection.lookupByUUIDString(uuid)
            call(domain, _mask(cpus))
        except libvirt.libvirtError as error:
            self._domains.pop(uuid, None)
            raise _translated(error, self._connection, domain) from error


class SampleGuests:
    """Guests that exist in this process's memory only: those of libvirt's own test driver.

    All connections of the process to `URI` share them, and their `<cputune>`, for as long as one
    is open. The driver knows eight pCPUs, whatever the host has.
    """

    URI: Final = "test:///default"

    def __init__(self) -> None:
        """Begin with none; the driver makes one of its own."""
        self._connection = Libvirt(self.URI, 0, 0)._open()  # noqa: SLF001 - its own module's
        with self._translating():
            for domain in self._connection.listAllDomains(0):
                domain.destroy()
                domain.undefine()

    def start(self, xml: str) -> None:
        """Start a guest that is gone when it stops."""
        with self._translating():
            self._connection.createXML(xml, 0)

    def stop(self, uuid: str) -> None:
        """End a guest."""
        with self._translating():
            self._connection.lookupByUUIDString(uuid).destroy()

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except libvirt.libvirtError as error:
            raise _translated(error, self._connection) from error


def _mask(cpus: CpuSet) -> tuple[bool, ...]:
    """Return the tuple of booleans that the binding wants."""
    return tuple(bool(cpus.bits >> cpu & 1) for cpu in range(cpus.bits.bit_length()))


def _translated(
    error: libvirt.libvirtError,
    connection: libvirt.virConnect,
    domain: libvirt.virDomain | None = None,
) -> EmupoolError:
    """Return the error of our tree that says what to do next."""
    code, text = error.get_error_code(), _text(error)
    if _is_lost(error, connection):
        return HypervisorAway(text)
    if code == libvirt.VIR_ERR_OPERATION_INVALID:  # its state tells which of two: bad mask, or gone
        return TargetRefused(text) if domain is not None and _runs(domain) else GuestGone(text)
    if code in _MEANS:
        return _MEANS[code](text)
    return TargetRefused(text) if "set CPU affinity" in text else GuestFailed(text)


def _is_lost(error: libvirt.libvirtError, connection: libvirt.virConnect) -> bool:
    if error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return True
    try:
        return not connection.isAlive()
    except libvirt.libvirtError:
        return True


def _runs(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError:
        return False


def _text(error: libvirt.libvirtError) -> str:
    """Return libvirt's message in one line."""
    return " ".join((error.get_error_message() or "no message").split())
