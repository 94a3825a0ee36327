"""Looking: what is read again and what is not, whose original is what, and what cannot be read."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

from agent.cpuset import CpuSet
from agent.documents import from_documents
from agent.domainxml import Pins
from agent.errors import (
    GuestBusy,
    GuestFailed,
    GuestGone,
    Held,
    HypervisorAway,
    NotPermitted,
    SysfsError,
)
from agent.events import Named
from agent.observer import Observer
from agent.policy import GuestSettings, Policy, Rule, Source
from agent.pool import NOTHING, GuestMemory, Memory
from tests.fake import Call, Fake
from tests.guests import guest_xml

if TYPE_CHECKING:
    from collections.abc import Collection

    from agent.sight import Snapshot
    from agent.snapshot import Guest

ONE, TWO, THREE = CpuSet.of(1), CpuSet.of(2), CpuSet.of(3)
ISOLATED = {"metadata_policy": "isolate", "emulatorpin": "1"}


class Bench:
    """An observer over a fake."""

    def __init__(self) -> None:
        self.fake = Fake()
        self.link = self.fake.link(lambda _: None)
        self.observer = Observer(self.fake, self.fake)
        self.memory = NOTHING
        self.settings = GuestSettings()

    def look(
        self,
        *named: str,
        busy: Collection[str] = (),
        fresh: Collection[str] = (),
        early: Collection[str] = (),
        counted: bool = False,
        plugged: bool = False,
    ) -> Snapshot:
        """Look at everything, or at `named`; `counted`: the ids of those that run are told."""
        told = Named(
            {*named, *early},
            fresh={uuid: self.id(uuid) for uuid in fresh},
            early={uuid: self.fake.guests[uuid].xml() for uuid in early},
            counted=self.fake.roster().active_ids() if counted else None,
        )
        self.fake.log.clear()
        everything = not named and not early
        return self.observer.look(
            self.link,
            self.settings,
            self.memory,
            None if everything else told,
            busy,
            plugged=plugged,
        )

    def id(self, uuid: str) -> int | None:
        process = self.fake.guests[uuid].process
        return process.id if process is not None else None

    def see(self, uuid: str, *named: str, fresh: Collection[str] = ()) -> Guest:
        """Look, and return one guest."""
        return find(self.look(*named, fresh=fresh), uuid)

    def record(self, uuid: str, original: Pins, *, placed: CpuSet | None = None) -> None:
        """Have the memory of an earlier look at this start of the guest."""
        known = GuestMemory(self.see(uuid).start, original, placed=placed)
        self.memory = Memory({}, {uuid: known})
        self.observer.forget()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def find(snapshot: Snapshot, uuid: str) -> Guest:
    return next(guest for guest in snapshot.guests if guest.uuid == uuid)


def uuids(snapshot: Snapshot) -> set[str]:
    return {guest.uuid for guest in snapshot.guests}


# --- what is read, and how often -----------------------------------------------------------------


def test_a_full_look_tells_all_guests_and_reads_the_threads_of_ours(bench: Bench) -> None:
    stopped = bench.fake.define("stopped", **ISOLATED)
    ours = bench.fake.start(bench.fake.define("ours", **ISOLATED))
    other = bench.fake.create("other", emulatorpin="0-3")
    snapshot = bench.look()
    assert uuids(snapshot) == {stopped, ours, other}
    assert (snapshot.partition, snapshot.failures) == (bench.fake.present, ())
    assert [find(snapshot, u).active for u in (stopped, ours, other)] == [False, True, True]
    assert [find(snapshot, u).start != "" for u in (stopped, ours, other)] == [False, True, True]
    kernel = find(snapshot, ours).kernel
    assert kernel is not None
    assert kernel.cpus == ONE
    assert find(snapshot, other).kernel is None
    assert snapshot.untold == {other}
    assert bench.fake.count("read") == 1
    verdict = find(snapshot, ours).verdict
    assert (verdict.policy, verdict.source) == (Policy.ISOLATE, Source.METADATA)


def test_a_partial_look_costs_one_call_per_named_guest_and_no_list(bench: Bench) -> None:
    everyone = [bench.fake.start(bench.fake.define(f"g{n}", **ISOLATED)) for n in range(5)]
    bench.look()
    snapshot = bench.look(everyone[0], everyone[1])
    assert uuids(snapshot) == set(everyone)
    names = sorted(call.name for call in bench.fake.log)
    assert names == ["partition", "read", "read", "xml", "xml"]


def test_a_definition_that_says_the_same_is_not_parsed_again(bench: Bench) -> None:
    uuid = bench.fake.create("a", **ISOLATED)
    domain = bench.see(uuid).domain
    assert bench.see(uuid).domain is domain
    bench.fake.pin(uuid, TWO)
    assert bench.see(uuid).domain.emulator == TWO


def test_after_forget_and_reconsider_the_same_guests_are_found(bench: Bench) -> None:
    uuid = bench.fake.start(bench.fake.define("a", emulatorpin="1"))
    assert bench.see(uuid).verdict.policy is Policy.IGNORE
    bench.settings = GuestSettings(rules=(Rule(Policy.ISOLATE, name="a"),))
    assert bench.see(uuid).verdict.policy is Policy.IGNORE
    bench.observer.reconsider()
    assert bench.see(uuid).verdict.policy is Policy.ISOLATE
    bench.observer.forget()
    assert bench.see(uuid).verdict.policy is Policy.ISOLATE
    assert bench.fake.count("persistent_xml") == 1


def test_the_host_is_discovered_by_full_looks_and_refreshed_when_online_changed(
    bench: Bench,
) -> None:
    uuid = bench.fake.create("a")
    assert bench.look(uuid).host.online == bench.fake.present
    assert bench.fake.count("discover") == 1
    bench.look(uuid)
    assert bench.fake.count("discover") == 0
    bench.fake.unplug(ONE)
    assert bench.look(uuid).host.online == bench.fake.present - ONE
    assert (bench.fake.count("discover"), bench.fake.count("refresh")) == (0, 1)
    bench.look()
    assert (bench.fake.count("discover"), bench.fake.count("refresh")) == (1, 0)
    bench.look(plugged=True)  # perhaps one was added that is not on line
    assert (bench.fake.count("discover"), bench.fake.count("refresh")) == (0, 1)


# --- guests come and go --------------------------------------------------------------------------


def test_a_start_of_which_no_event_told_is_found_when_a_count_disagrees(bench: Bench) -> None:
    known = bench.fake.create("known")
    bench.look()
    missed = bench.fake.create("missed", **ISOLATED)
    snapshot = bench.look(known, counted=True)
    assert uuids(snapshot) == {known, missed}
    assert find(snapshot, missed).active


def test_a_stop_of_which_no_event_told_is_found_when_a_count_disagrees(bench: Bench) -> None:
    known, transient = bench.fake.create("known"), bench.fake.create("transient")
    defined = bench.fake.start(bench.fake.define("defined", emulatorpin="1"))
    bench.look()
    bench.fake.pin(defined, TWO)
    bench.fake.destroy(transient)
    bench.fake.destroy(defined)
    snapshot = bench.look(known, counted=True)
    assert uuids(snapshot) == {known, defined}
    guest = find(snapshot, defined)
    assert (guest.active, guest.start, guest.domain.emulator) == (False, "", ONE)


def test_a_stop_of_which_no_event_told_is_found_by_a_full_look(bench: Bench) -> None:
    uuid, other = bench.fake.create("a"), bench.fake.create("other")
    bench.look()
    bench.fake.destroy(uuid)
    assert uuids(bench.look()) == {other}


def test_a_named_guest_that_is_gone_is_dropped(bench: Bench) -> None:
    uuid = bench.fake.create("a")
    bench.look()
    bench.fake.destroy(uuid)
    assert uuids(bench.look(uuid)) == set()


def test_a_restart_under_the_same_uuid_is_another_start(bench: Bench) -> None:
    uuid = bench.fake.start(bench.fake.define("a", **ISOLATED))
    first = bench.see(uuid)
    bench.record(uuid, first.original, placed=TWO)
    bench.fake.destroy(uuid)
    bench.fake.define("a", **{**ISOLATED, "emulatorpin": "3"})
    bench.fake.start(uuid)
    second = bench.see(uuid, uuid)
    assert second.start != first.start
    assert second.age > first.age
    assert (second.original.emulator, second.domain.emulator) == (THREE, THREE)


def test_an_incoming_guest_is_busy_until_a_look_finds_that_it_has_arrived(bench: Bench) -> None:
    uuid = bench.fake.migrate_in("a", **ISOLATED)
    assert bench.see(uuid).busy
    assert bench.see(uuid, uuid).busy
    bench.fake.finish(uuid)
    assert not bench.see(uuid, uuid).busy
    bench.look(uuid)
    assert bench.fake.count("occupied") == 0


def test_guests_known_to_be_held_are_busy(bench: Bench) -> None:
    held, other = bench.fake.create("held"), bench.fake.create("other")
    snapshot = bench.look(busy={held})
    assert find(snapshot, held).busy
    assert not find(snapshot, other).busy


# --- whose original is what ----------------------------------------------------------------------


def test_the_persistent_definition_tells_the_original_whatever_the_live_pin(bench: Bench) -> None:
    uuid = bench.fake.start(bench.fake.define("a", **ISOLATED, iothreads=1, iothreadpins={1: "1"}))
    bench.fake.pin(uuid, TWO)
    guest = bench.see(uuid)
    assert guest.original == Pins(ONE, ((1, ONE),))
    assert guest.domain.emulator == TWO
    assert uuid not in bench.look().untold


def test_the_live_definition_tells_the_original_of_a_transient_guest(bench: Bench) -> None:
    uuid = bench.fake.create("a", **ISOLATED)
    assert bench.see(uuid).original == Pins(ONE)
    assert uuid in bench.look().untold


def test_a_later_look_does_not_take_a_pin_for_an_original(bench: Bench) -> None:
    uuid = bench.fake.create("a", **ISOLATED)
    bench.look()
    bench.fake.pin(uuid, TWO)
    assert bench.see(uuid).original == Pins(ONE)
    assert bench.see(uuid, uuid).original == Pins(ONE)


@pytest.mark.parametrize("persistent", [True, False])
def test_what_was_recorded_of_a_start_is_its_original(bench: Bench, *, persistent: bool) -> None:
    uuid = bench.fake.define("a", **ISOLATED) if persistent else ""
    uuid = bench.fake.start(uuid) if persistent else bench.fake.create("a", **ISOLATED)
    bench.record(uuid, Pins(THREE), placed=TWO)
    guest = bench.see(uuid)
    assert guest.original == Pins(THREE)
    assert bench.look().untold == set()


def test_what_was_recorded_of_another_start_is_not(bench: Bench) -> None:
    uuid = bench.fake.create("a", **ISOLATED)
    bench.memory = Memory({}, {uuid: GuestMemory("another", Pins(THREE), placed=TWO)})
    assert bench.see(uuid).original == Pins(ONE)


def test_a_live_pin_that_arrived_from_elsewhere_is_no_original(bench: Bench) -> None:
    uuid = bench.fake.migrate_in("a", **ISOLATED)
    assert bench.see(uuid).original == Pins(None)
    bench.fake.finish(uuid)
    assert bench.see(uuid, uuid, fresh=[uuid]).original == Pins(None)
    assert uuid in bench.look().untold


def test_a_definition_that_arrives_with_the_guest_tells_the_original(bench: Bench) -> None:
    uuid = bench.fake.migrate_in("a", metadata_policy="isolate", emulatorpin="3")
    assert bench.see(uuid).original == Pins(None)
    bench.fake.finish(uuid, emulatorpin="2")
    assert bench.see(uuid, uuid).original == Pins(TWO)
    assert uuid not in bench.look().untold


@pytest.mark.parametrize("was", ["seen", "changed", "unseen", "transient", "running"])
def test_a_guest_just_started_has_what_it_was_started_with(bench: Bench, was: str) -> None:
    defined = was in {"seen", "changed", "unseen"}
    make = bench.fake.define if defined else bench.fake.create
    uuid = ""
    if was != "transient":
        uuid = make("a", **ISOLATED | ({"emulatorpin": "5"} if was == "changed" else {}))
    if was != "unseen":
        bench.look()
    if was == "running":
        bench.fake.destroy(uuid)
    uuid = make("a", **ISOLATED)
    if defined:
        bench.fake.start(uuid)
    snapshot = bench.look(uuid, fresh=[uuid])
    assert find(snapshot, uuid).original == Pins(ONE)
    assert snapshot.untold == (set() if was == "seen" else {uuid})
    assert bench.fake.count("persistent_xml", "occupied", "read") == 0


def test_originals_that_meet_make_guests_of_shape_isolate_share(bench: Bench) -> None:
    shaped = {"emulatorpin": "1", "vcpupins": {0: "4"}}
    first = bench.fake.start(bench.fake.define("first", **shaped))
    assert bench.see(first).verdict.policy is Policy.ISOLATE
    second = bench.fake.define("second", emulatorpin="1", vcpupins={0: "5"})
    snapshot = bench.look(second)
    for uuid in (first, second):
        assert find(snapshot, uuid).verdict.policy is Policy.SHARE
    bench.fake.undefine(second)
    assert find(bench.look(second), first).verdict.policy is Policy.ISOLATE


# --- what was pinned -----------------------------------------------------------------------------


def test_a_pin_is_not_believed_when_the_definition_does_not_show_it(bench: Bench) -> None:
    uuid = bench.fake.create("a", metadata_policy="isolate")
    bench.look()
    bench.observer.pinned(uuid, None, TWO, None)
    assert bench.see(uuid).domain.emulator is None


def test_a_pin_that_the_definition_shows_needs_no_parsing(bench: Bench) -> None:
    uuid = bench.fake.create("a", **ISOLATED)
    bench.look()
    bench.fake.pin(uuid, TWO)
    bench.observer.pinned(uuid, None, TWO, None)
    (guest,) = bench.observer.guests()
    assert bench.see(uuid).domain is guest.domain


def test_a_pin_that_succeeded_is_known_at_once_and_read_again_when_looked_at(bench: Bench) -> None:
    uuid = bench.fake.create("a", **ISOLATED, iothreads=2, iothreadpins={1: "1", 2: "1"})
    bench.look()
    bench.observer.pinned(uuid, None, TWO, None)
    bench.observer.pinned(uuid, 2, THREE, None)
    (guest,) = bench.observer.guests()
    assert guest.domain.pins == Pins(TWO, ((1, ONE), (2, THREE)))
    assert guest.kernel is not None
    assert guest.kernel.cpus == ONE
    assert bench.see(uuid, uuid).domain.pins == Pins(ONE, ((1, ONE), (2, ONE)))
    bench.observer.pinned("nobody", None, TWO, None)
    assert bench.observer.live("nobody") is None
    assert bench.observer.place("nobody") is None


# --- what cannot be read -------------------------------------------------------------------------


@pytest.mark.parametrize("error", [GuestFailed("odd"), NotPermitted("no"), ZeroDivisionError("!")])
def test_a_guest_that_cannot_be_read_keeps_what_was_known_of_it(
    bench: Bench, error: Exception
) -> None:
    uuid = bench.fake.create("a", **ISOLATED, vcpupins={0: "4"})
    other = bench.fake.create("other")
    bench.look()
    bench.fake.pin(uuid, TWO)

    def refuse(call: Call) -> None:
        if call == Call("xml", uuid):
            raise error

    bench.fake.hook = refuse
    snapshot = bench.look()
    assert uuids(snapshot) == {uuid, other}
    assert find(snapshot, uuid).domain.claims == CpuSet.of(4)
    assert find(snapshot, uuid).domain.emulator == ONE
    ((failed, why),) = snapshot.failures
    assert failed == uuid
    assert str(error) in str(why)


def test_a_guest_that_could_never_be_read_does_not_stop_the_others(bench: Bench) -> None:
    uuid, other = bench.fake.create("a"), bench.fake.create("other")
    bench.fake.fail("persistent_xml", GuestFailed("odd"), uuid)
    snapshot = bench.look()
    assert uuids(snapshot) == {other}
    assert [failed for failed, _ in snapshot.failures] == [uuid]
    assert uuids(bench.look(other)) == {other}
    assert uuids(bench.look(other, counted=True)) == {uuid, other}


def test_a_definition_that_is_no_domain_is_a_failure_of_its_guest(bench: Bench) -> None:
    uuid = bench.fake.create("a", memory_kib="<")
    assert [failed for failed, _ in bench.look().failures] == [uuid]


@pytest.mark.parametrize("name", ["uuids", "xml", "persistent_xml", "occupied"])
def test_a_connection_lost_while_looking_at_everything_ends_the_look(
    bench: Bench, name: str
) -> None:
    uuid = bench.fake.create("a")
    bench.fake.create("b")
    bench.fake.fail(name, HypervisorAway("gone"))
    with pytest.raises(HypervisorAway):
        bench.look()
    assert len(bench.look(uuid, counted=True).guests) == 2


@pytest.mark.parametrize("name", ["xml", "uuids"])
def test_a_connection_lost_while_looking_at_some_ends_the_look(bench: Bench, name: str) -> None:
    uuid = bench.fake.create("a")
    bench.look()
    bench.fake.create("missed")
    bench.fake.fail(name, HypervisorAway("gone"))
    with pytest.raises(HypervisorAway):
        bench.look(uuid, counted=True)
    assert len(bench.look(uuid, counted=True).guests) == 2


def test_a_guest_whose_process_cannot_be_found_is_seen_without_threads(bench: Bench) -> None:
    uuid = bench.fake.create("a", **ISOLATED)
    bench.fake.fail("locate", SysfsError("/proc/1/cgroup", "?", "odd"))
    snapshot = bench.look()
    guest = find(snapshot, uuid)
    assert (guest.kernel, guest.active) == (None, True)
    assert guest.age == guest.domain.id
    assert [failed for failed, _ in snapshot.failures] == [uuid]


def test_threads_that_could_not_be_looked_for_are_looked_for_again(bench: Bench) -> None:
    uuid = bench.fake.create("a", **ISOLATED)
    bench.fake.fail("locate", NotPermitted("no"), uuid, times=2)
    for _ in range(2):
        snapshot = bench.look()
        assert [(who, type(why)) for who, why in snapshot.failures] == [(uuid, NotPermitted)]
    assert bench.see(uuid).kernel is not None
    assert bench.observer.place(uuid) is not None
    bench.look()
    assert bench.fake.count("locate") == 0


@pytest.mark.parametrize("error", [NotPermitted("no"), SysfsError("/p", "?", "odd")])
def test_threads_that_cannot_be_read_are_told_and_the_guest_stays(
    bench: Bench, error: NotPermitted | SysfsError
) -> None:
    uuid = bench.fake.create("a", **ISOLATED)
    bench.fake.fail("read", error)
    snapshot = bench.look()
    assert find(snapshot, uuid).kernel is None
    assert snapshot.failures == ((uuid, error),)
    assert find(bench.look(), uuid).kernel is not None


def test_threads_that_are_gone_make_the_next_look_read_the_guest_again(bench: Bench) -> None:
    uuid = bench.fake.create("a", **ISOLATED)
    before = bench.see(uuid).domain
    bench.fake.fail("read", GuestGone("ended"))
    snapshot = bench.look()
    assert find(snapshot, uuid).kernel is None
    assert snapshot.failures == ()
    after = bench.see(uuid)
    assert after.kernel is not None
    assert after.domain is not before


def test_threads_of_a_guest_that_was_ours_are_still_read(bench: Bench) -> None:
    uuid = bench.fake.create("a", **ISOLATED)
    bench.record(uuid, Pins(ONE), placed=TWO)
    bench.fake.label(uuid, "ignore")
    assert bench.see(uuid).kernel is not None
    bench.memory = NOTHING
    bench.observer.forget()
    assert bench.see(uuid).kernel is None


# --- from files ----------------------------------------------------------------------------------


def test_documents_describe_guests_as_a_look_would() -> None:
    running = guest_xml("running", emulatorpin="1", metadata_policy="isolate")
    documents = {
        "b.xml": running.replace("<domain", "<domain id='7'", 1),
        "a.xml": guest_xml("stopped", emulatorpin="2"),
        "c.xml": "<nonsense/>",
        "d.xml": "",
    }
    guests, failures = from_documents(documents, GuestSettings(), NOTHING)
    assert [(g.label, g.active, g.age) for g in guests] == [
        ("stopped", False, 0),
        ("running", True, 7),
    ]
    assert [g.original for g in guests] == [Pins(TWO), Pins(ONE)]
    assert [name for name, _ in failures] == ["c.xml", "d.xml"]


def test_of_two_documents_of_one_guest_the_first_counts_and_the_other_is_told() -> None:
    stopped = guest_xml("a", emulatorpin="1")
    running = stopped.replace("<domain", "<domain id='7'", 1)
    guests, failures = from_documents({"a": stopped, "b": running}, GuestSettings(), NOTHING)
    assert [guest.active for guest in guests] == [False]
    ((name, why),) = failures
    assert name == "b"
    assert str(why) == f"a has the guest {guests[0].uuid} already: leave one of them out"


def test_documents_take_the_originals_of_running_guests_from_the_memory() -> None:
    text = guest_xml("a", emulatorpin="1")
    ((guest,), _) = from_documents({"a.xml": text}, GuestSettings(), NOTHING)
    known = GuestMemory("earlier", Pins(THREE), placed=ONE)
    memory = Memory({}, {guest.uuid: known})
    ((stopped,), _) = from_documents({"a.xml": text}, GuestSettings(), memory)
    assert stopped.original == Pins(ONE)
    live = text.replace("<domain", "<domain id='7'", 1)
    ((running,), _) = from_documents({"a.xml": live}, GuestSettings(), memory)
    assert (running.original, running.start) == (Pins(THREE), "earlier")


# --- guests that libvirt holds -------------------------------------------------------------------


def test_a_guest_that_libvirt_holds_stays_as_it_was_and_is_busy(bench: Bench) -> None:
    uuid, other = bench.fake.create("a", **ISOLATED), bench.fake.create("other")
    bench.look()
    for named in ((uuid, other), ()):
        bench.fake.fail("xml", GuestBusy("held"), uuid)
        snapshot = bench.look(*named)
        assert find(snapshot, uuid).busy
        assert not find(snapshot, other).busy
        assert snapshot.held == {uuid}
        assert snapshot.failures == ()
        assert not bench.observer.answered(uuid)
        assert bench.observer.answered(other)
    assert not find(bench.look(uuid), uuid).busy
    assert bench.observer.answered(uuid)


def test_an_unknown_guest_that_libvirt_holds_makes_the_list_a_partial_one(bench: Bench) -> None:
    known = bench.fake.create("known")
    bench.look()
    uuid = bench.fake.create("a", vcpupins={0: "1"})
    bench.fake.fail("xml", GuestBusy("held"), uuid)
    with pytest.raises(Held):
        bench.look()
    assert uuids(bench.look()) == {known, uuid}


def test_an_unknown_guest_that_libvirt_holds_is_looked_at_when_it_lets_go(bench: Bench) -> None:
    known = bench.fake.create("known")
    bench.look()
    uuid = bench.fake.create("a")
    bench.fake.fail("xml", GuestBusy("held"), uuid)
    snapshot = bench.look(uuid, known)
    assert uuids(snapshot) == {known}
    assert snapshot.held == {uuid}
    assert uuids(bench.look(uuid)) == {known, uuid}


# --- guests that libvirt still starts ------------------------------------------------------------


def test_a_guest_read_while_it_starts_is_held_and_needs_no_reading_when_it_is_announced(
    bench: Bench,
) -> None:
    uuid = bench.fake.define("a", **ISOLATED)
    bench.look()
    bench.fake.start(uuid)
    early = find(bench.look(early=[uuid]), uuid)
    assert (early.active, early.busy, early.original) == (True, True, Pins(ONE))
    assert bench.fake.count("xml", "persistent_xml", "occupied") == 0
    announced = bench.look(uuid, fresh=[uuid])
    assert bench.fake.count("xml", "persistent_xml", "occupied", "locate", "read") == 0
    guest = find(announced, uuid)
    assert (guest.busy, guest.start, guest.domain) == (False, early.start, early.domain)
    assert announced.untold == set()
    assert bench.see(uuid, uuid).domain == guest.domain


def test_threads_of_who_has_started_are_read_only_if_no_pin_will_tell_of_them(
    bench: Bench,
) -> None:
    held, uuid, other = (bench.fake.create(name, **ISOLATED) for name in ("held", "a", "other"))
    bench.look(held)
    found = bench.look(uuid, other, fresh=[uuid, other], busy=[held])
    assert [find(found, one).kernel for one in (uuid, other)] == [None, None]

    def completed(*pinned: str) -> Snapshot:
        return bench.observer.completed(found, bench.settings, bench.memory, pinned)

    assert completed(uuid, other) is found
    assert bench.fake.count("read") == 0
    whole = completed(other)
    assert bench.fake.count("read") == 1
    assert find(whole, uuid).kernel == bench.see(uuid).kernel
    assert find(whole, other).kernel is None
    assert find(whole, held).busy


def test_a_guest_that_is_not_ours_leaves_nothing_to_read_when_it_has_started(bench: Bench) -> None:
    uuid = bench.fake.create("other", emulatorpin="0-3")
    found = bench.look(uuid, fresh=[uuid])
    assert bench.observer.completed(found, bench.settings, bench.memory, ()) is found


def test_what_keeps_threads_from_being_read_after_all_is_told(bench: Bench) -> None:
    uuid = bench.fake.create("a", **ISOLATED)
    found = bench.look(uuid, fresh=[uuid])
    bench.fake.fail("read", NotPermitted("no"), uuid)
    whole = bench.observer.completed(found, bench.settings, bench.memory, ())
    assert [(who, type(why)) for who, why in whole.failures] == [(uuid, NotPermitted)]


def test_what_is_foreseen_of_a_start_is_what_is_seen_of_it(bench: Bench) -> None:
    uuid, other = bench.fake.define("a", **ISOLATED), bench.fake.create("other")
    bench.look()
    bench.fake.start(uuid)
    early = bench.look(early=[uuid])
    assert bench.observer.foresee(other, early.guests) is None
    foreseen = bench.observer.foresee(uuid, early.guests)
    assert foreseen == bench.look(uuid, fresh=[uuid]).guests
    assert bench.observer.foresee(uuid, early.guests) is None


def test_a_guest_of_which_nothing_changed_is_the_same_object(bench: Bench) -> None:
    uuid, other = (bench.fake.create(name, **ISOLATED) for name in ("a", "other"))
    before = bench.see(uuid)
    assert bench.see(uuid, other) is before
    held = find(bench.look(other, busy=[uuid]), uuid)
    assert held == replace(before, busy=True)
    assert bench.see(uuid, other) == before
    bench.observer.pinned(uuid, None, TWO, None)
    assert bench.see(uuid, other).domain.emulator == TWO
    bench.observer.reconsider()
    bench.settings = GuestSettings(rules=(Rule(weight=Fraction(3), name="a"),))
    assert bench.see(uuid, other).verdict.weight == 3


def test_a_transient_guest_read_while_it_starts_has_an_original_that_only_we_know(
    bench: Bench,
) -> None:
    uuid = bench.fake.create("a", **ISOLATED)
    assert uuid in bench.look(early=[uuid]).untold
    assert find(bench.look(uuid, fresh=[uuid]), uuid).original == Pins(ONE)


def test_a_definition_that_comes_after_the_start_was_announced_changes_nothing(
    bench: Bench,
) -> None:
    uuid = bench.fake.start(bench.fake.define("a", **ISOLATED))
    announced = bench.see(uuid, uuid, fresh=[uuid])
    bench.fake.pin(uuid, TWO)
    late = find(bench.look(early=[uuid]), uuid)
    assert (late.busy, late.domain, late.start) == (False, announced.domain, announced.start)


def test_a_start_that_was_announced_with_another_id_is_read(bench: Bench) -> None:
    uuid = bench.fake.define("a", **ISOLATED)
    bench.look()
    bench.fake.start(uuid)
    first = find(bench.look(early=[uuid]), uuid)
    bench.fake.destroy(uuid)
    bench.fake.start(uuid)
    second = find(bench.look(uuid, fresh=[uuid]), uuid)
    assert bench.fake.count("xml") == 1
    assert second.start != first.start


@pytest.mark.parametrize("known", [True, False])
def test_a_guest_that_arrives_or_is_not_there_yet_is_not_read_early(
    bench: Bench, *, known: bool
) -> None:
    if known:
        bench.fake.define("a", **ISOLATED)
        bench.look()
    uuid = bench.fake.migrate_in("a", **ISOLATED)
    snapshot = bench.look(early=[uuid])
    assert [guest.active for guest in snapshot.guests] == ([False] if known else [])
    assert snapshot.failures == ()
