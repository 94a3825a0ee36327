"""What a hypervisor does, whichever it is: the fake in memory, libvirt's test driver, a real one.

Each test runs on each backend that can do what it asks for; `LACKS` says what one cannot.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol, cast

import libvirt
import pytest

from agent import domainxml
from agent.cpuset import EMPTY, CpuSet
from agent.errors import GuestGone, HypervisorAway, TargetRefused
from agent.hypervisor import Libvirt, start_event_loop
from agent.port import GuestEvent, LinkLost, Topic
from tests.fake import Fake
from tests.guests import Guest, guest_xml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.port import Hand, Hypervisor, Link, Roster
    from tests.libvirtd import Libvirtd

FAKE: Final = "fake"
TEST: Final = "libvirt's test driver"
REAL: Final = "real libvirtd"

TUNABLE: Final = "tells of pins"
RESUMED: Final = "tells RESUMED before STARTED"
MASKS: Final = "refuses what is not in its cpuset"
JOBS: Final = "has jobs that hold a guest"
INCOMING: Final = "can be made to receive a guest"
LOSS: Final = "can be killed"

LACKS: Final = {
    FAKE: set[str](),
    TEST: {TUNABLE, RESUMED, JOBS, INCOMING, LOSS},
    REAL: {INCOMING},
}
NOBODY: Final = "00000000-0000-0000-0000-00000000dead"
ONE, TWO, BOTH, ABSENT = CpuSet.of(0), CpuSet.of(1), CpuSet.of(0, 1), CpuSet.of(4000)


def on(*needs: str) -> pytest.MarkDecorator:
    """Run a test on each backend that lacks none of `needs`."""
    able = [name for name, lacking in LACKS.items() if lacking.isdisjoint(needs)]
    marks = {REAL: [pytest.mark.real]}
    rows = [pytest.param(name, id=name, marks=marks.get(name, ())) for name in able]
    return pytest.mark.parametrize("backend", rows, indirect=True)


class Heard:
    """What a link heard, in order."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[GuestEvent | LinkLost] = SimpleQueue()
        self.put = self._queue.put

    def until(self, last: Callable[[GuestEvent], bool]) -> list[GuestEvent]:
        """Wait for the first event that `last` accepts; return all up to it."""
        events = []
        while True:
            event = self._queue.get(timeout=10)
            assert isinstance(event, GuestEvent)
            events.append(event)
            if last(event):
                return events

    def loss(self) -> LinkLost:
        """Wait for the loss of the connection."""
        while True:
            event = self._queue.get(timeout=10)
            if isinstance(event, LinkLost):
                return event


class Operator(Protocol):
    """Somebody else who works with the guests, which go by their UUIDs."""

    def define(self, name: str, **properties: object) -> str: ...
    def create(self, name: str, **properties: object) -> str: ...
    def start(self, uuid: str) -> str: ...
    def destroy(self, uuid: str) -> None: ...
    def undefine(self, uuid: str) -> None: ...
    def label(self, uuid: str, policy: str) -> None: ...


class ByLibvirt:
    """An operator with a connection of his own."""

    def __init__(self, libvirtd: Libvirtd, kind: str, prefix: str) -> None:
        self._libvirtd = libvirtd
        self._kind = kind
        self._prefix = prefix
        self.guests: dict[str, Guest] = {}

    def define(self, name: str, **properties: object) -> str:
        return self._describe(name, properties).define().uuid

    def create(self, name: str, **properties: object) -> str:
        return self._describe(name, properties).create().uuid

    def start(self, uuid: str) -> str:
        return self.guests[uuid].start().uuid

    def destroy(self, uuid: str) -> None:
        self.guests[uuid].destroy()

    def undefine(self, uuid: str) -> None:
        self.guests[uuid].undefine()

    def label(self, uuid: str, policy: str) -> None:
        self.guests[uuid].domain.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            f"<guest policy='{policy}'/>",
            "emupool",
            domainxml.OWN_NAMESPACE,
            libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG,
        )

    def _describe(self, name: str, properties: dict[str, object]) -> Guest:
        xml = guest_xml(self._prefix + name, **properties)  # type: ignore[arg-type]
        guest = Guest(self._libvirtd, xml.replace("type='qemu'", f"type='{self._kind}'", 1))
        self.guests[guest.uuid] = guest
        return guest


class Backend:
    """A hypervisor, a link to it, and an operator who works there."""

    def __init__(self, hypervisor: Hypervisor, operator: Operator) -> None:
        self.hypervisor = hypervisor
        self.operator = operator
        self.heard = Heard()
        self.link: Link = hypervisor.link(self.heard.put)
        self.hand: Hand = hypervisor.hand()
        self.roster: Roster = hypervisor.roster()

    def close(self) -> None:
        self.link.close()
        self.hand.close()
        self.roster.close()

    def live(self, uuid: str) -> domainxml.Domain:
        return domainxml.parse(self.link.xml(uuid))

    def persistent(self, uuid: str) -> domainxml.Domain:
        text = self.link.persistent_xml(uuid)
        assert text is not None
        return domainxml.parse(text)

    @contextmanager
    def job(self, uuid: str) -> Iterator[None]:
        """Let a job hold a guest that runs."""
        if isinstance(self.operator, Fake):
            self.operator.hold(uuid)
            yield
            self.operator.free(uuid)
            return
        assert isinstance(self.operator, ByLibvirt)
        guest = self.operator.guests[uuid]
        os.kill(guest.pid, signal.SIGSTOP)  # its monitor hangs, and with it who asks
        asking = threading.Thread(target=guest.domain.suspend)
        asking.start()
        yield
        os.kill(guest.pid, signal.SIGCONT)
        asking.join()


class Driver:
    """Enough of `Libvirtd` for guests of libvirt's test driver."""

    def __init__(self) -> None:
        self.conn = libvirt.open("test:///default")


@pytest.fixture(scope="module")
def _event_loop() -> None:
    start_event_loop()


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """One of the backends, without guests of ours."""
    if request.param == FAKE:
        fake = Fake()
        yield Backend(fake, fake)
        return
    request.getfixturevalue("_event_loop")
    if request.param == TEST:
        driver = cast("Libvirtd", Driver())
        operator = ByLibvirt(driver, "test", "contract-")
        made = Backend(Libvirt("test:///default", 5, 3), operator)
        yield made
        for guest in operator.guests.values():
            if guest.is_active():
                guest.destroy()
        known = {domain.UUIDString() for domain in driver.conn.listAllDomains()}
        for guest in operator.guests.values():
            if guest.uuid in known:
                guest.undefine()
    else:
        libvirtd: Libvirtd = request.getfixturevalue("libvirtd")
        operator = ByLibvirt(libvirtd, "qemu", libvirtd.guest_name(""))
        made = Backend(Libvirt(libvirtd.uri, 5, 3), operator)
        yield made
        libvirtd.recover()
        libvirtd.remove_all(operator.guests.values())
    made.close()


class TestHypervisor:
    """The contract."""

    @on()
    def test_lists_all_guests_and_the_ids_of_those_that_run(self, backend: Backend) -> None:
        before, ids = set(backend.link.uuids()), backend.roster.active_ids()
        stopped = backend.operator.define("stopped")
        running = backend.operator.start(backend.operator.define("running"))
        transient = backend.operator.create("transient")
        assert set(backend.link.uuids()) - before == {stopped, running, transient}
        told = {backend.live(uuid).id for uuid in (running, transient)}
        assert backend.roster.active_ids() - ids == told
        backend.operator.destroy(transient)
        backend.operator.destroy(running)
        backend.operator.undefine(stopped)
        assert set(backend.link.uuids()) - before == {running}
        assert backend.roster.active_ids() == ids

    @on()
    def test_a_start_tells_the_id_under_which_the_roster_has_the_guest(
        self, backend: Backend
    ) -> None:
        uuid = backend.operator.define("a", metadata_policy="isolate")
        backend.operator.start(uuid)
        *_, started = backend.heard.until(lambda event: event.uuid == uuid and event.started)
        assert started.id is not None
        assert {started.id} <= backend.roster.active_ids()
        found, text = backend.roster.definition(started.id)
        assert found == uuid
        assert domainxml.parse(text) == backend.live(uuid)
        backend.hand.look_up(uuid)
        backend.hand.pin_emulator(uuid, ONE)
        assert backend.live(uuid).emulator == ONE

    @on()
    def test_a_pin_shows_in_the_live_definition_only(self, backend: Backend) -> None:
        uuid = backend.operator.define(
            "a", emulatorpin="0", iothreads=2, iothreadpins={1: "0"}, nova_policy="isolate"
        )
        assert backend.live(uuid).id is None
        assert backend.live(uuid).nova is not None
        backend.operator.start(uuid)
        backend.hand.pin_emulator(uuid, TWO)
        backend.hand.pin_iothread(uuid, 2, BOTH)
        assert backend.live(uuid).id is not None
        assert backend.live(uuid).pins == domainxml.Pins(TWO, ((1, ONE), (2, BOTH)))
        assert backend.persistent(uuid).id is None
        assert backend.persistent(uuid).pins == domainxml.Pins(ONE, ((1, ONE), (2, None)))
        backend.operator.destroy(uuid)
        assert backend.live(uuid) == backend.persistent(uuid)
        assert backend.live(uuid).emulator == ONE

    @on()
    def test_a_transient_guest_has_no_persistent_definition(self, backend: Backend) -> None:
        uuid = backend.operator.create("a", emulatorpin="0")
        assert backend.link.persistent_xml(uuid) is None
        backend.hand.pin_emulator(uuid, TWO)
        assert backend.live(uuid).emulator == TWO
        assert backend.link.persistent_xml(uuid) is None

    @on()
    def test_a_guest_that_is_undefined_while_it_runs_becomes_transient(
        self, backend: Backend
    ) -> None:
        uuid = backend.operator.start(backend.operator.define("a"))
        assert backend.link.persistent_xml(uuid) is not None
        backend.operator.undefine(uuid)
        assert backend.link.persistent_xml(uuid) is None
        assert backend.live(uuid).id is not None

    @on()
    def test_a_stopped_guest_cannot_be_pinned_and_keeps_its_definition(
        self, backend: Backend
    ) -> None:
        uuid = backend.operator.define("a", emulatorpin="0", iothreads=1)
        with pytest.raises(GuestGone):
            backend.hand.pin_emulator(uuid, TWO)
        with pytest.raises(GuestGone):
            backend.hand.pin_iothread(uuid, 1, TWO)
        assert backend.persistent(uuid).pins == domainxml.Pins(ONE, ((1, None),))
        assert not backend.link.occupied(uuid)

    @on()
    def test_the_cells_of_the_host_are_told_with_the_cores_in_them(self, backend: Backend) -> None:
        cells = backend.hypervisor.cells()
        assert [cell.id for cell in cells] == list(range(len(cells)))
        for cell in cells:
            assert {cpu for cpu, _ in cell.siblings} == set(cell.cpus)
            assert all(cpu in siblings for cpu, siblings in cell.siblings)

    @on()
    def test_a_guest_that_nobody_knows_is_gone(self, backend: Backend) -> None:
        link, hand = backend.link, backend.hand
        asked: list[Callable[[], object]] = [
            lambda: link.xml(NOBODY),
            lambda: link.persistent_xml(NOBODY),
            lambda: link.occupied(NOBODY),
            lambda: hand.look_up(NOBODY),
            lambda: backend.roster.definition(987654),
            lambda: hand.pin_emulator(NOBODY, ONE),
            lambda: hand.pin_iothread(NOBODY, 1, ONE),
        ]
        for ask in asked:
            with pytest.raises(GuestGone):
                ask()

    @on()
    def test_a_guest_that_was_listed_may_be_gone_when_asked_for(self, backend: Backend) -> None:
        uuid = backend.operator.create("a")
        assert uuid in backend.link.uuids()
        backend.hand.pin_emulator(uuid, ONE)
        backend.operator.destroy(uuid)
        with pytest.raises(GuestGone):
            backend.link.xml(uuid)
        with pytest.raises(GuestGone):
            backend.hand.pin_emulator(uuid, ONE)

    @on()
    @pytest.mark.parametrize("cpus", [EMPTY, ABSENT], ids=["empty", "beyond the host"])
    def test_a_mask_without_any_cpu_of_the_host_is_refused(
        self, backend: Backend, cpus: CpuSet
    ) -> None:
        uuid = backend.operator.create("a", emulatorpin="0", iothreads=1)
        with pytest.raises(TargetRefused):
            backend.hand.pin_emulator(uuid, cpus)
        with pytest.raises(TargetRefused):
            backend.hand.pin_iothread(uuid, 1, cpus)
        assert backend.live(uuid).pins == domainxml.Pins(ONE, ((1, None),))

    @on()
    def test_what_a_mask_holds_beyond_the_host_is_dropped(self, backend: Backend) -> None:
        uuid = backend.operator.create("a")
        backend.hand.pin_emulator(uuid, TWO | ABSENT)
        assert backend.live(uuid).emulator == TWO

    @on()
    def test_a_start_is_told_last_of_its_events(self, backend: Backend) -> None:
        uuid = backend.operator.define("a")
        backend.operator.start(uuid)
        events = backend.heard.until(lambda event: event.started)
        assert {event.uuid for event in events} == {uuid}
        assert {event.topic for event in events} == {Topic.LIFECYCLE}
        assert events == sorted(events, key=lambda event: event.at)
        backend.operator.destroy(uuid)
        assert not backend.heard.until(lambda event: event.uuid == uuid)[-1].started

    @on(RESUMED)
    def test_a_start_is_told_as_resumed_and_then_as_started(self, backend: Backend) -> None:
        uuid = backend.operator.create("a")
        events = backend.heard.until(lambda event: event.started)
        assert [(event.resumed, event.started) for event in events] == [
            (True, False),
            (False, True),
        ]
        assert events[0].uuid == uuid

    @on(TUNABLE)
    def test_each_pin_that_succeeds_is_told_with_its_value(self, backend: Backend) -> None:
        uuid = backend.operator.create("a", iothreads=1)
        backend.heard.until(lambda event: event.started)
        backend.hand.pin_emulator(uuid, TWO)
        with pytest.raises(TargetRefused):
            backend.hand.pin_emulator(uuid, ABSENT)
        backend.hand.pin_emulator(uuid, TWO)
        backend.hand.pin_iothread(uuid, 1, BOTH)
        events = backend.heard.until(lambda event: event.tuned[0][0].endswith("iothreadpin1"))
        assert [(event.uuid, event.topic, event.tuned) for event in events] == [
            (uuid, Topic.TUNABLE, (("cputune.emulatorpin", "1"),)),
            (uuid, Topic.TUNABLE, (("cputune.emulatorpin", "1"),)),
            (uuid, Topic.TUNABLE, (("cputune.iothreadpin1", "0-1"),)),
        ]

    @on()
    def test_a_label_is_told_and_read(self, backend: Backend) -> None:
        uuid = backend.operator.start(backend.operator.define("a"))
        backend.operator.label(uuid, "share")
        event = backend.heard.until(lambda event: event.topic is Topic.METADATA)[-1]
        assert event.uuid == uuid
        for domain in (backend.live(uuid), backend.persistent(uuid)):
            assert domain.own is not None
            assert domain.own.policy == "share"

    @on()
    def test_a_guest_that_runs_is_not_occupied(self, backend: Backend) -> None:
        assert not backend.link.occupied(backend.operator.create("a"))

    @on(INCOMING)
    def test_a_guest_is_occupied_until_it_has_arrived(self, backend: Backend) -> None:
        assert isinstance(backend.operator, Fake)
        uuid = backend.operator.migrate_in("a", emulatorpin="0")
        assert backend.link.occupied(uuid)
        backend.operator.finish(uuid)
        assert not backend.link.occupied(uuid)

    @on(JOBS)
    def test_a_pin_waits_for_the_job_that_holds_the_guest(self, backend: Backend) -> None:
        uuid = backend.operator.create("a", emulatorpin="0")
        done = threading.Event()

        def pin() -> None:
            backend.hand.pin_emulator(uuid, TWO)
            done.set()

        with backend.job(uuid):
            threading.Thread(target=pin, daemon=True).start()
            assert not done.wait(0.3)
            assert backend.live(uuid).emulator == ONE
        assert done.wait(10)
        assert backend.live(uuid).emulator == TWO

    @on()
    def test_a_hand_outlives_the_guest_and_pins_its_next_start(self, backend: Backend) -> None:
        uuid = backend.operator.start(backend.operator.define("a", emulatorpin="0"))
        backend.hand.pin_emulator(uuid, TWO)
        first = backend.live(uuid).id
        backend.operator.destroy(uuid)
        with pytest.raises(GuestGone):
            backend.hand.pin_emulator(uuid, TWO)
        backend.operator.start(uuid)
        assert backend.live(uuid).id != first
        assert backend.live(uuid).emulator == ONE
        backend.hand.pin_emulator(uuid, TWO)
        assert backend.live(uuid).emulator == TWO

    @on()
    def test_what_is_closed_is_away_and_may_be_closed_again(self, backend: Backend) -> None:
        uuid = backend.operator.create("a")
        backend.link.uuids()
        backend.hand.pin_emulator(uuid, ONE)
        other = backend.hypervisor.link(lambda _: None)
        for connection in (backend.link, backend.hand, backend.roster) * 2:
            connection.close()
        asked: list[Callable[[], object]] = [
            backend.link.uuids,
            backend.roster.active_ids,
            lambda: backend.link.xml(uuid),
            lambda: backend.link.persistent_xml(uuid),
            lambda: backend.link.occupied(uuid),
            lambda: backend.roster.definition(1),
            lambda: backend.hand.pin_emulator(uuid, TWO),
        ]
        for ask in asked:
            with pytest.raises(HypervisorAway):
                ask()
        assert domainxml.parse(other.xml(uuid)).emulator == ONE
        other.close()

    @on()
    def test_a_closed_link_hears_nothing_any_more(self, backend: Backend) -> None:
        heard = Heard()
        backend.hypervisor.link(heard.put).close()
        uuid = backend.operator.create("a")
        backend.heard.until(lambda event: event.started)
        later = backend.hypervisor.link(heard.put)
        backend.operator.destroy(uuid)
        assert not heard.until(lambda _: True)[0].started
        later.close()

    @on(LOSS)
    def test_the_loss_of_a_connection_is_told_and_seen_by_calls(self, backend: Backend) -> None:
        uuid = backend.operator.create("a")
        backend.hand.pin_emulator(uuid, ONE)
        if isinstance(backend.operator, Fake):
            backend.operator.reachable = False
            backend.operator.lose()
        else:
            assert isinstance(backend.operator, ByLibvirt)
            backend.operator._libvirtd.kill()
        assert backend.heard.loss().why
        with pytest.raises(HypervisorAway):
            backend.link.uuids()
        with pytest.raises(HypervisorAway):
            backend.link.xml(uuid)
        with pytest.raises(HypervisorAway):
            backend.hand.pin_emulator(uuid, TWO)
        with pytest.raises(HypervisorAway):
            backend.roster.active_ids()
        for connect in (
            lambda: backend.hypervisor.link(print),
            backend.hypervisor.hand,
            backend.hypervisor.roster,
            backend.hypervisor.cells,
        ):
            with pytest.raises(HypervisorAway):
                connect()
        backend.close()
