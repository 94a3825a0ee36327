"""A link that gives up: what is held, what goes on meanwhile, and what is told in the end."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from agent.errors import GuestBusy, GuestFailed, GuestGone, Held, HypervisorAway
from agent.patience import READERS, PatientLink
from agent.port import GuestEvent, LinkLost, ListReturned, Topic
from tests.fake import Fake
from tests.guests import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def test_an_answer_that_comes_as_it_is_given_up_is_lost_to_nobody() -> None:
    """With no patience at all each call races with its own end."""
    fake, heard = Fake(), SimpleQueue[GuestEvent | LinkLost | ListReturned]()
    uuid = fake.create("a")
    link = PatientLink(fake.link(lambda _: None), fake.roster, heard.put, patience=0.0)
    answered = given_up = 0
    for _ in range(500):
        try:
            assert link.xml(uuid)
            answered += 1
        except GuestBusy:
            given_up += 1
            wait_until(lambda: not heard.empty(), 10, "the call to return")
            heard.get()
    assert answered + given_up == fake.count("xml") == 500
    link.close()
