"""A link that gives up: what is held, what goes on meanwhile, and what is told in the end."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from agent.errors import GuestBusy, GuestFailed, GuestGone, Held, HypervisorAway
from agent.patience import READERS, ROW, PatientLink, made_up
from agent.port import GuestEvent, LinkLost, ListReturned, Topic
from tests.fake import Fake
from tests.guests import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fake import Call

CALLS = ("uuids", "xml", "persistent_xml", "occupied")


def readers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "reader"}


class Bench:
    """A patient link over a fake that may hold guests."""

    def __init__(self) -> None:
        self.before = readers()
        self.fake = Fake()
        self.heard: SimpleQueue[GuestEvent | LinkLost | ListReturned] = SimpleQueue()
        self.link = PatientLink(
            self.fake.link(self.heard.put), self.fake.roster, self.heard.put, patience=0.05
        )
        self.holds: dict[str, threading.Event] = {}
        self.fake.hook = self._wait

    def _wait(self, call: Call) -> None:
        hold = self.holds.get(call.uuid if call.name != "uuids" else "list")
        if hold is not None and call.name in CALLS:
            assert hold.wait(30)

    def create(self, *names: str) -> list[str]:
        uuids = [self.fake.create(name) for name in names]
        while not self.heard.empty():
            self.heard.get()
        return uuids

    def hold(self, about: str) -> threading.Event:
        """Keep whoever asks about a guest, or for the `list`, waiting."""
        self.holds[about] = threading.Event()
        return self.holds[about]

    def readers(self) -> set[threading.Thread]:
        return readers() - self.before


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    for hold in made.holds.values():
        hold.set()
    made.link.close()
    wait_until(lambda: not made.readers(), 10, "the readers to end")
    assert not made.fake.connections


def test_answers_are_those_of_the_link_and_one_reader_gives_them(bench: Bench) -> None:
    one, two = bench.create("one", "two")
    plain = bench.fake.link(bench.heard.put)
    assert bench.link.uuids() == (one, two)
    for uuid in (one, two):
        assert bench.link.xml(uuid) == plain.xml(uuid)
        assert bench.link.persistent_xml(uuid) is None
        assert bench.link.occupied(uuid) is False
    assert len(bench.readers()) == 1
    assert bench.fake.count("roster") == 0
    plain.close()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (GuestGone("gone"), GuestGone),
        (GuestFailed("odd"), GuestFailed),
        (HypervisorAway("away"), HypervisorAway),
        (ZeroDivisionError("surprise"), GuestFailed),
    ],
)
def test_errors_are_those_of_the_link(
    bench: Bench, error: Exception, raised: type[Exception]
) -> None:
    (uuid,) = bench.create("a")
    bench.fake.fail("xml", error)  # type: ignore[arg-type]
    with pytest.raises(raised):
        bench.link.xml(uuid)
    assert bench.link.xml(uuid)


@pytest.mark.parametrize("ask", CALLS[1:])
def test_a_guest_that_is_held_holds_up_no_other(bench: Bench, ask: str) -> None:
    held, other = bench.create("held", "other")
    hold = bench.hold(held)
    with pytest.raises(GuestBusy):
        getattr(bench.link, ask)(held)
    assert bench.link.xml(other)
    assert bench.link.uuids() == (held, other)
    assert bench.fake.count("roster") == 1
    assert bench.fake.count(ask) == 1 + (ask == "xml")
    for _ in range(5):
        with pytest.raises(GuestBusy):
            bench.link.xml(held)
    assert bench.fake.count(ask) == 1 + (ask == "xml")  # it is not asked for again meanwhile
    hold.set()
    event = bench.heard.get(timeout=10)
    assert isinstance(event, GuestEvent)
    assert (event.uuid, event.topic) == (held, Topic.READ)
    assert bench.link.xml(held)
    assert bench.heard.empty()


def test_a_list_that_is_kept_waiting_is_told_apart_and_not_asked_for_twice(bench: Bench) -> None:
    (uuid,) = bench.create("a")
    hold = bench.hold("list")
    for _ in range(3):
        with pytest.raises(Held):
            bench.link.uuids()
    assert bench.fake.count("uuids") == 1
    assert bench.link.xml(uuid)
    hold.set()
    assert bench.heard.get(timeout=10) == ListReturned()
    assert bench.link.uuids() == (uuid,)
    assert bench.heard.empty()


def test_no_more_calls_are_kept_waiting_than_there_may_be_readers(bench: Bench) -> None:
    uuids = bench.create(*(f"g{n}" for n in range(READERS + 3)))
    holds = [bench.hold(uuid) for uuid in uuids]
    for uuid in uuids:
        with pytest.raises(GuestBusy):
            bench.link.xml(uuid)
    assert bench.fake.count("xml") == len(bench.readers()) == READERS
    for hold in holds:
        hold.set()
    told = {bench.heard.get(timeout=10).uuid for _ in uuids}  # type: ignore[union-attr]
    assert told == set(uuids), "those for whom no reader was left as well"
    for uuid in uuids:
        assert bench.link.xml(uuid)
    assert len(bench.readers()) == READERS


def test_a_reader_whose_connection_is_lost_opens_another(bench: Bench) -> None:
    held, other = bench.create("held", "other")
    hold = bench.hold(held)
    with pytest.raises(GuestBusy):
        bench.link.xml(held)
    assert bench.link.xml(other)
    bench.fake.fail("xml", HypervisorAway("gone"), other)
    with pytest.raises(HypervisorAway):
        bench.link.xml(other)
    assert bench.link.xml(other)
    assert bench.fake.count("roster") == 2
    hold.set()


def test_whoever_closes_waits_for_nobody(bench: Bench) -> None:
    (held,) = bench.create("held")
    hold = bench.hold(held)
    with pytest.raises(GuestBusy):
        bench.link.xml(held)
    bench.link.close()
    bench.link.close()
    assert not bench.fake.connections
    hold.set()


@pytest.mark.parametrize("patience", [0.0, 2e-5, 4e-5, 8e-5, 16e-5])
def test_an_answer_that_comes_as_it_is_given_up_is_lost_to_nobody(patience: float) -> None:
    """With next to no patience each call races with its own end."""
    fake, heard = Fake(), SimpleQueue[GuestEvent | LinkLost | ListReturned]()
    uuids = [fake.create("a"), fake.create("b")]
    link = PatientLink(fake.link(lambda _: None), fake.roster, heard.put, patience=patience)
    for _ in range(200):
        answers = dict(link.xmls(uuids))
        for uuid in uuids:
            if isinstance(answers[uuid], GuestBusy):
                event = heard.get(timeout=10)
                assert isinstance(event, GuestEvent)
                assert event.topic is Topic.READ
            else:
                assert answers[uuid] == fake.guests[uuid].xml()
        assert heard.empty()
    link.close()


def test_definitions_are_read_in_rows_and_a_held_guest_keeps_no_other_back(bench: Bench) -> None:
    uuids = bench.create(*(f"g{n}" for n in range(2 * ROW + 3)))
    bench.fake.fail("xml", GuestFailed("odd"), uuids[1])
    hold = bench.hold(uuids[ROW + 1])
    answers = list(bench.link.xmls(uuids))
    assert [uuid for uuid, _ in answers] == uuids
    told = {uuid: answer for uuid, answer in answers if not isinstance(answer, str)}
    assert list(map(type, told.values())) == [GuestFailed, GuestBusy]
    assert list(told) == [uuids[1], uuids[ROW + 1]]
    assert all(a == bench.fake.guests[u].xml() for u, a in answers if isinstance(a, str))
    assert bench.fake.count("xml") == len(uuids)
    assert bench.fake.count("roster") == 1
    hold.set()
    event = bench.heard.get(timeout=10)
    assert isinstance(event, GuestEvent)
    assert event.uuid == uuids[ROW + 1]
    assert bench.heard.empty()
    assert bench.fake.count("xml") == len(uuids), "what was left of the row was another reader's"
    assert len(bench.readers()) == 2


def test_a_row_goes_on_while_readers_are_left(bench: Bench) -> None:
    uuids = bench.create(*(f"g{n}" for n in range(READERS + 3)))
    holds = [bench.hold(uuid) for uuid in uuids[1 : READERS + 1]]
    answers = dict(bench.link.xmls(uuids))
    assert [uuid for uuid in uuids if isinstance(answers[uuid], str)] == uuids[:1]
    assert all(isinstance(answers[uuid], GuestBusy) for uuid in uuids[1:])
    assert dict(bench.link.xmls(uuids)).keys() == set(uuids)
    assert bench.fake.count("xml") == 1 + READERS, "held guests are not asked for again"
    for hold in holds:
        hold.set()
    told = {bench.heard.get(timeout=10).uuid for _ in uuids}  # type: ignore[union-attr]
    assert told == set(uuids), "those for whom no reader was left as well"
    assert all(isinstance(answer, str) for _, answer in bench.link.xmls(uuids))


def test_patience_is_for_each_guest_of_a_row() -> None:
    fake = Fake()
    uuids = [fake.create(f"g{n}") for n in range(4)]
    link = PatientLink(fake.link(lambda _: None), fake.roster, lambda _: None, patience=1.0)
    fake.hook = lambda _: time.sleep(0.3)
    assert all(isinstance(answer, str) for _, answer in link.xmls(uuids))
    link.close()


@pytest.mark.parametrize(
    ("wait", "answered"),
    [
        pytest.param(lambda: time.sleep(0.2), False, id="libvirt takes its time"),
        # The sum keeps the interpreter to itself, so that nobody else runs meanwhile.
        pytest.param(
            lambda: (sum(range(20_000_000)), time.sleep(0.05)),  # type: ignore[func-returns-value]
            True,
            id="nobody is let run",
        ),
    ],
)
def test_whoever_starves_takes_no_guest_for_held(
    wait: Callable[[], object],
    answered: bool,  # noqa: FBT001
) -> None:
    fake = Fake()
    uuid = fake.create("a")
    link = PatientLink(fake.link(lambda _: None), fake.roster, lambda _: None, patience=0.05)

    def slow(_: Call) -> None:
        wait()

    fake.hook = slow
    ((_, answer),) = link.xmls([uuid])
    assert isinstance(answer, str) is answered
    link.close()


@pytest.mark.parametrize(
    ("late", "given", "more"),
    [
        (0.0, 0.0, 0.0),
        (0.009, 0.0, 0.0),
        (0.2, 0.0, 0.2),
        (0.5, 0.75, 0.25),
        (60.0, 0.0, 1.0),
        (60.0, 1.0, 0.0),
    ],
)
def test_a_second_of_starving_is_made_up_for_and_no_more(
    late: float, given: float, more: float
) -> None:
    assert made_up(late, given) == more
