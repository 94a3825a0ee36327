"""The cycle when things go wrong: the state file, death, looks that fail, busy guests."""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from agent.cpuset import CpuSet
from agent.cycle import Cause, drifts, pending
from agent.errors import (
    GuestBusy,
    GuestFailed,
    GuestGone,
    HypervisorAway,
    NotPermitted,
    SysfsError,
    TargetRefused,
)
from agent.events import Named
from agent.metrics import Metrics
from agent.pinner import LIMIT
from agent.placing import State
from agent.port import GuestEvent, Topic
from agent.rebalancer import BACK_OFF
from agent.telling import Teller
from agent.transition import Kind, Reason
from agent.usage import EmulatorTime, PoolUsage
from tests.fake import Call
from tests.node import DELAY, HOME, Node, cpus, planned, pools, reasons

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "state.json")
    yield made
    made.stop()


# --- the state file ------------------------------------------------------------------------------


def saved_original(node: Node, uuid: str) -> str | None:
    if not node.path.exists():
        return None
    known = json.loads(node.path.read_text())["guests"].get(uuid)
    return None if known is None else known["emulator"]


@pytest.mark.parametrize("cause", [Cause.RECONNECT, Cause.RECONCILE])
def test_a_guest_that_cannot_be_read_for_once_keeps_its_original(node: Node, cause: Cause) -> None:
    uuid, other = node.create("a", emulatorpin="4"), node.create("other")
    node.reacted()
    node.fake.fail("xml", SysfsError("/sys", "?", "odd"), uuid)
    node.rebalancer.reconnected()
    failed = node.cycle(cause)
    assert [about for about, _ in failed.failures] == [uuid]
    assert {uuid, other} == set(failed.memory.guests)
    result = node.cycle()
    assert next(g for g in result.guests if g.uuid == uuid).original.emulator == cpus("4")
    node.fake.destroy(uuid)
    node.reacted()
    assert set(node.cycle().memory.guests) == {other}


def watch_first_pins(node: Node) -> dict[str, str | None]:
    """Note what the state file says of a guest's original when its first pin is sent."""
    seen: dict[str, str | None] = {}

    def watch(call: Call) -> None:
        if call.name == "pin_emulator":
            seen.setdefault(call.uuid, saved_original(node, call.uuid))

    node.fake.hook = watch
    return seen


def test_an_original_that_nobody_tells_is_saved_before_the_first_pin(node: Node) -> None:
    seen = watch_first_pins(node)
    first, second = node.create("first"), node.create("second", emulatorpin="6")
    node.reacted()
    assert seen == {first: "7", second: "6"}
    later = node.create("later", emulatorpin="5")
    node.reacted()
    assert seen[later] == "5"


def test_it_is_saved_also_if_the_first_pin_is_an_evacuation(node: Node) -> None:
    node.settings = pools(cpus=cpus("1"), reserved_cpus=cpus("1"))
    node.boot()
    seen = watch_first_pins(node)
    node.start("claimer", claim=7, emulatorpin="6")
    uuid = node.create("a", emulatorpin="7")
    result = node.reacted()
    assert Reason.EVACUATE in reasons(result)
    assert seen[uuid] == "7"


def test_a_state_file_that_cannot_be_written_stops_nobody(node: Node) -> None:
    node.path.unlink()
    node.path.mkdir()
    uuid = node.create("a")
    result = node.reacted()
    assert result.state_error is not None
    assert str(node.path) in result.state_error
    assert node.placed(uuid) == node.pool(result)
    node.path.rmdir()
    result = node.cycle()
    assert result.state_error is None
    assert saved_original(node, uuid) == "7"


def test_a_new_daemon_goes_on_where_the_last_one_was(node: Node) -> None:
    uuids = [node.create(name) for name in "abc"]
    before = node.reacted().memory
    node.fake.destroy(uuids[0])
    node.reacted()
    node.clock.now += 10
    node.boot()
    result = node.cycle(Cause.START)
    assert result.steps == ()
    assert result.memory.cells[HOME].cpus == before.cells[HOME].cpus
    assert node.patience() == DELAY - 10
    node.wait(DELAY - 10)
    assert {len(node.placed(uuid)) for uuid in uuids[1:]} == {1}


def test_a_lost_state_file_moves_nobody(node: Node) -> None:
    for name in "abc":
        node.start(name)
    node.reacted()
    node.path.unlink()
    node.boot()
    assert node.cycle(Cause.START).steps == ()
    node.assert_settled()


# --- killed at any point -------------------------------------------------------------------------


def crowd(node: Node) -> None:
    """Two guests that grow into a third, with iothreads; nobody but us knows their originals."""
    node.create("a", iothreads=1, iothreadpins={1: "7"})
    node.create("b", emulatorpin="6")
    node.reacted()
    node.create("c", emulatorpin="5", iothreads=1, iothreadpins={1: "5"})


def shrinking(node: Node) -> None:
    crowd(node)
    node.reacted()
    node.fake.destroy(next(iter(node.fake.guests)))
    node.reacted()
    node.clock.now += DELAY


def evacuating(node: Node) -> None:
    crowd(node)
    result = node.reacted()
    node.create("claimer", claim=node.pool(result).first(), emulatorpin="5")


def relabelling(node: Node) -> None:
    crowd(node)
    node.reacted()
    for uuid in list(node.fake.guests)[:2]:
        node.fake.label(uuid, "ignore")


ORIGINALS = {"a": "7", "b": "6", "c": "5", "claimer": "5"}


@pytest.mark.parametrize("scene", [crowd, shrinking, evacuating, relabelling])
def test_killed_between_any_two_steps_the_next_daemon_ends_in_the_same_place(
    tmp_path: Path, scene: Callable[[Node], None]
) -> None:
    whole = Node(tmp_path / "whole.json")
    scene(whole)
    steps = len(whole.cycle().outcomes)
    whole.cycle()
    assert steps >= 3
    expected = {u: (g.live, whole.fake.masks(u)) for u, g in whole.fake.guests.items()}
    whole.stop()
    for killed_after in range(steps + 1):
        node = Node(tmp_path / f"{killed_after}.json")
        scene(node)
        node.die(killed_after)
        node.boot()
        node.cycle(Cause.START)
        result = node.cycle()
        assert result.steps == ()
        assert {u: (g.live, node.fake.masks(u)) for u, g in node.fake.guests.items()} == expected
        for guest in result.guests:
            if guest.uuid in result.memory.guests:
                assert guest.original.emulator == cpus(ORIGINALS[guest.label])
        node.rebalancer.release(node.link)
        for uuid, fake in node.fake.guests.items():
            assert fake.live is not None
            assert node.placed(uuid) == cpus(ORIGINALS[str(fake.live["name"])])
        node.stop()


# --- looks that fail -----------------------------------------------------------------------------


def test_a_guest_that_libvirt_holds_is_busy_until_it_lets_go(node: Node) -> None:
    held, other = node.start("held"), node.start("other")
    node.react()
    node.start("third")
    node.fake.pin(held, cpus("5"))
    node.fake.fail("xml", GuestBusy("held"), held, times=2)
    result = node.reacted()
    assert result.errors == ()
    assert planned(result, held).state is State.BUSY
    assert node.placed(other) == node.pool(result)
    assert node.fake.record(held) == cpus("5")
    assert node.patience() == BACK_OFF[0]
    node.inbox.put(GuestEvent(held, Topic.READ, 0.0))
    assert planned(node.reacted(), held).state is State.BUSY
    assert node.wait(BACK_OFF[1]) is not None
    assert node.placed(held) == node.pool(result)
    node.assert_settled()


@pytest.mark.parametrize(
    ("cause", "name"),
    [
        (Cause.START, "uuids"),
        (Cause.RECONCILE, "uuids"),
        (Cause.RECONCILE, "xml"),
        (Cause.RECONCILE, "persistent_xml"),
        (Cause.RECONCILE, "occupied"),
        (Cause.EVENT, "xml"),
        (Cause.EVENT, "uuids"),
    ],
)
def test_from_a_partial_list_nobody_is_pinned(node: Node, cause: Cause, name: str) -> None:
    *named, last = [node.start(f"g{n}") for n in range(3)]
    node.fake.fail(name, HypervisorAway("gone"), last if name != "uuids" else None)
    counted = frozenset[int]() if name == "uuids" else None
    with pytest.raises(HypervisorAway):
        node.rebalancer.cycle(node.link, cause, Named({*named, last}, counted=counted))
    assert node.fake.count("pin_emulator") == 0
    assert len(node.cycle().outcomes) == 3


def test_a_guest_that_cannot_be_read_does_not_hold_the_others_up(node: Node) -> None:
    good, bad = node.start("good"), node.start("bad")
    node.fake.fail("xml", GuestFailed("odd"), bad)
    result = node.reacted()
    assert {uuid for uuid, _ in result.errors} == {bad}
    assert node.placed(good) == node.pool(result)
    assert node.fake.record(bad) == cpus("7")
    node.cycle()
    assert node.placed(bad) == node.pool(result)


@pytest.mark.parametrize("error", [NotPermitted("no"), SysfsError("/sys", "?", "odd")])
def test_a_cycle_that_fails_does_not_call_for_another_one_at_once(
    node: Node, error: GuestGone | NotPermitted | SysfsError
) -> None:
    uuids = [node.start(name) for name in "abc"]
    node.reacted()
    node.fake.destroy(uuids[0])
    node.hold(uuids[1]).refuse()
    node.fake.pin(uuids[1], cpus("5"))
    node.fake.pin(uuids[2], cpus("5"))
    node.fake.fail("pin_emulator", GuestFailed("odd"), uuids[2])
    assert len(node.reacted().errors) == 2
    assert node.patience() == BACK_OFF[0]
    for seconds in (BACK_OFF[0], DELAY, DELAY, DELAY):
        node.clock.now += seconds
        node.fake.fail("partition", error)
        with pytest.raises(type(error)):
            node.cycle(Cause.DEADLINE)
        node.check_patience()


# --- dry run -------------------------------------------------------------------------------------


def test_a_dry_run_plans_and_pins_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path / "state.json", pools(dry_run=True))
    uuids = [node.create(name) for name in "abc"]
    result = node.reacted()
    assert result.dry_run
    assert [step.reason for step in result.steps] == [Reason.ARRIVE] * 3
    assert pending(result) == result.steps
    assert result.outcomes == ()
    node.fake.destroy(uuids[0])
    assert len(node.reacted().steps) == 2
    node.wait(300)
    assert node.fake.count("hand", "pin_emulator") == 0
    assert {node.placed(uuid) for uuid in uuids[1:]} == {cpus("7")}
    assert not node.path.exists()


def test_a_dry_run_that_is_switched_on_later_leaves_pools_as_they_are(node: Node) -> None:
    uuids = [node.create(name) for name in "abc"]
    both = node.pool(node.reacted())
    node.rebalancer.reconfigure(pools(dry_run=True))
    node.fake.destroy(uuids[0])
    node.reacted()
    node.hold(uuids[1]).refuse()
    node.wait(10 * DELAY)
    assert node.placed(uuids[2]) == both
    node.rebalancer.reconfigure(pools())
    node.cycle(Cause.RELOAD)
    assert len(node.placed(uuids[2])) == 1


# --- busy and failing guests ---------------------------------------------------------------------


def test_a_busy_guest_holds_nobody_up_and_is_pinned_when_its_job_ends(node: Node) -> None:
    busy, other = node.start("busy"), node.start("other")
    node.hold(busy)
    result = node.reacted()
    assert node.placed(other) == node.pool(result)
    assert node.fake.record(busy) == cpus("7")
    assert [g.busy for g in result.guests if g.uuid == busy] == [True]
    assert result.errors == ()
    assert node.cycle().steps == ()
    node.fake.free(busy)
    result = node.returned()
    assert [outcome.step.uuid for outcome in result.outcomes] == [busy]
    assert Call("xml", busy) in node.fake.log  # what returned late is looked at
    assert node.placed(busy) == node.pool(result)
    assert result.memory.guests[busy].placed == node.pool(result)
    node.assert_settled()


def five_of_six_held(node: Node) -> list[str]:
    """Have a pool grow while five of its six guests are held; the last is not tried then."""
    uuids = sorted(node.start(name) for name in "abcdef")
    node.rebalancer.reconfigure(pools(6))
    node.reacted()
    node.assert_settled()
    for uuid in uuids[:-1]:
        node.hold(uuid)
    node.rebalancer.reconfigure(pools(3))
    result = node.cycle(Cause.RELOAD)
    assert [call.uuid for call in node.fake.log if call.name == "pin_emulator"] == uuids[:-1]
    assert node.placed(uuids[-1]) < node.pool(result)
    return uuids


def test_one_that_found_no_room_is_tried_as_soon_as_a_call_returns(node: Node) -> None:
    uuids = five_of_six_held(node)
    node.fake.free(uuids[0])
    result = node.returned()
    assert node.placed(uuids[-1]) == node.pool(result)


def test_one_that_found_no_room_is_tried_again_soon_and_then_less_and_less_often(
    node: Node,
) -> None:
    five_of_six_held(node)
    for seconds in (0.25, 0.5, 1.0, 2.0, 5.0, 5.0):
        patience = node.patience()
        assert patience is not None
        assert 0 < patience <= seconds
        node.clock.now += seconds
        node.cycle(Cause.DEADLINE)


def test_a_busy_guest_is_tried_again_with_growing_patience(node: Node) -> None:
    busy = node.start("busy")
    hold = node.hold(busy)
    node.reacted()
    hold.refuse()
    result = node.returned()
    assert [type(error) for _, error in result.errors] == [GuestBusy]
    tries = []
    for _ in range(4):
        patience = node.patience()
        assert patience is not None
        tries.append(patience)
        node.clock.now += patience
        result = node.cycle(Cause.DEADLINE)
        assert node.fake.count("pin_emulator") == 1
        assert node.cycle().steps == ()  # a full cycle respects that as well
    assert tries == [*BACK_OFF, BACK_OFF[-1]]
    node.fake.free(busy)
    node.wait(BACK_OFF[-1])
    assert node.placed(busy) == node.pool(result)
    assert node.patience() is None


def test_the_event_that_ends_a_job_makes_a_busy_guest_tried_at_once(node: Node) -> None:
    busy = node.start("busy")
    node.hold(busy).refuse()
    node.reacted()
    node.fake.start(node.fake.define("other"))
    node.reacted()
    assert node.fake.count("pin_emulator") == 0
    node.fake.free(busy)
    result = node.reacted()
    assert node.placed(busy) == node.pool(result)


def test_busy_guests_take_turns(node: Node) -> None:
    uuids = [node.start(f"g{n}") for n in range(4)]
    for uuid in uuids:
        node.hold(uuid).refuse()
    node.reacted()
    tried: list[tuple[float, str]] = []
    node.fake.hook = lambda call: (
        tried.append((node.clock.now, call.uuid)) if call.name == "pin_emulator" else None
    )
    node.wait(100)
    assert {uuid for _, uuid in tried} == set(uuids)
    assert all(later - earlier >= 1 for (earlier, _), (later, _) in pairwise(tried))
    counts = [sum(uuid == who for _, uuid in tried) for who in uuids]
    assert max(counts) - min(counts) <= 1


def test_one_busy_guest_under_way_keeps_the_others_waiting(node: Node) -> None:
    first, second = node.start("a"), node.start("b")
    for uuid in (first, second):
        node.hold(uuid).refuse()
    node.reacted()
    for uuid in (first, second):
        node.hold(uuid)
    node.wait(BACK_OFF[0])
    ((stuck,), (other,)) = node.pinner.under_way(), {first, second} - node.pinner.under_way()
    node.wait(20)
    assert node.pinner.under_way() == {stuck}
    node.fake._holds[stuck].refuse()
    node.returned()
    node.fake.free(other)
    node.wait(2)
    assert node.placed(other) != cpus("7")


def test_a_guest_whose_turn_finds_nothing_to_do_is_not_busy_any_more(node: Node) -> None:
    first, second, _ = (node.start(name) for name in "abc")
    both = node.pool(node.reacted())
    node.react()
    node.hold(first).refuse()
    node.fake.pin(second, cpus("5"))
    node.fake.guests[first].running.taskset(both - CpuSet.of(both.first()))
    assert {uuid for uuid, _ in node.cycle().errors} == {first}
    node.fake.guests[first].running.taskset(node.fake.present)  # somebody else repairs it
    node.fake._holds.clear()  # and the job ends without an event
    node.wait(BACK_OFF[0])
    assert node.patience() is None
    assert planned(node.cycle(), first).state == "placed"


@pytest.mark.parametrize("error", [TargetRefused("no"), GuestFailed("odd"), NotPermitted("no")])
def test_a_guest_that_fails_is_tried_again_later_and_the_others_go_on(
    node: Node, error: TargetRefused | GuestFailed | NotPermitted
) -> None:
    bad, good = node.start("bad"), node.start("good")
    node.fake.fail("pin_emulator", error, bad, times=2)
    result = node.reacted()
    assert result.errors == ((bad, error),)
    assert node.placed(good) == node.pool(result)
    assert node.patience() == BACK_OFF[0]
    node.fake.pin(good, cpus("5"))
    node.reacted()
    assert node.fake.count("pin_emulator") == 1  # not because of somebody else's event
    again = node.wait(BACK_OFF[0])
    assert again is not None
    assert again.errors == ((bad, error),)
    assert node.patience() == BACK_OFF[1]
    assert node.cycle().errors == ()  # a full cycle tries everybody
    assert node.placed(bad) == node.pool(result)
    assert node.patience() is None


def test_a_refused_target_is_planned_anew_from_what_the_kernel_says_then(node: Node) -> None:
    node.settings = pools(min_cpus=2)
    node.boot()
    uuid = node.start("a")
    both = node.pool(node.reacted())
    node.react()
    half = CpuSet.of(both.first())
    node.fake.guests[uuid].running.parent = half | cpus("5-7")
    node.fake.pin(uuid, cpus("5"))
    node.fake.fail("read", SysfsError("/sys", "?", "odd"), uuid)
    result = node.reacted()
    assert [type(error) for _, error in result.errors] == [SysfsError, TargetRefused]
    node.wait(BACK_OFF[0])
    assert node.patience() is None
    assert node.placed(uuid) == half


def test_a_guest_that_ends_under_its_pin_is_no_error(node: Node) -> None:
    uuid, other = node.create("a"), node.create("b")

    def end(call: Call) -> None:
        if call == Call("pin_emulator", uuid, call.cpus):
            node.fake.hook = lambda _: None
            node.fake.destroy(uuid)

    node.fake.hook = end
    result = node.reacted()
    assert [type(outcome.error) for outcome in result.outcomes].count(GuestGone) == 1
    assert result.errors == ()
    assert node.placed(other) == node.pool(result)
    assert node.patience() is None
    assert uuid not in node.reacted().memory.guests


def test_a_failing_guest_that_ends_is_not_waited_for(node: Node) -> None:
    uuid = node.create("a")
    node.fake.fail("pin_emulator", GuestFailed("odd"))
    node.reacted()
    assert node.patience() == BACK_OFF[0]
    node.fake.copies = 0
    node.fake.destroy(uuid)
    assert node.cycle().memory.guests == {}
    assert node.patience() != BACK_OFF[0]


def test_what_a_crowd_kept_from_being_tried_is_tried_soon(node: Node) -> None:
    *busy, other = sorted(node.start(f"g{n}") for n in range(6))
    one = node.pool(node.reacted())
    for uuid in (*busy, other):
        node.fake.pin(uuid, cpus("5"))
    for uuid in busy:
        node.hold(uuid)
    result = node.reacted()
    assert node.pinner.under_way() == set(busy)
    assert (result.errors, node.fake.record(other)) == ((), cpus("5"))
    soon = node.patience()
    assert soon is not None
    assert 0 < soon < 1
    for uuid in busy:
        node.fake.free(uuid)
    node.pinner.drain(10)
    node.wait(soon)
    assert node.placed(other) == one


def test_pins_that_found_libvirt_away_are_made_after_the_reconnect(node: Node) -> None:
    uuid = node.start("a")

    def lose(call: Call) -> None:
        if call.name == "pin_emulator":
            node.fake.reachable = False
            node.fake.lose()

    node.fake.hook = lose
    result = node.reacted()
    assert [type(error) for _, error in result.errors] == [HypervisorAway]
    node.fake.hook = lambda _: None
    node.fake.reachable = True
    assert node.inbox.wait(0).lost is not None
    node.link = node.fake.link(node.inbox.put)
    node.rebalancer.reconnected()
    result = node.cycle(Cause.RECONNECT)
    assert node.placed(uuid) == node.pool(result)
    node.assert_settled()


def test_an_iothread_that_fails_is_repaired_and_is_no_drift(node: Node) -> None:
    uuid = node.start("a", iothreads=1, iothreadpins={1: "7"})
    node.fake.fail("pin_iothread", GuestFailed("odd"))
    result = node.reacted()
    assert [type(error) for _, error in result.errors] == [GuestFailed]
    assert node.placed(uuid) == node.pool(result)
    result = node.cycle()
    assert node.fake.masks(uuid, 1) == {node.pool(result)}
    assert drifts(result) == []
    node.assert_settled()


def test_a_release_sends_what_there_was_no_room_for(node: Node) -> None:
    uuids = [node.start(f"g{n}") for n in range(LIMIT + 2)]
    node.react()
    for uuid in uuids[:LIMIT]:
        node.hold(uuid)
    freeing = threading.Timer(0.3, lambda: free(node, uuids[:LIMIT]))
    freeing.start()
    result = node.rebalancer.release(node.link)
    freeing.join()
    assert result.errors == ()
    assert {str(node.fake.record(uuid)) for uuid in uuids} == {"7"}


def test_a_release_does_not_go_on_for_ever(node: Node) -> None:
    """A daemon that releases at its end is killed if it takes longer than systemd lets it."""
    uuids = [node.start(f"g{n}") for n in range(LIMIT + 2)]
    node.react()
    for uuid in uuids[:LIMIT]:
        node.hold(uuid)

    def late(call: Call) -> None:
        node.clock.now += 30 * call.name.startswith("pin_")

    node.fake.hook = late
    freeing = threading.Timer(0.3, lambda: free(node, uuids[:LIMIT]))
    freeing.start()
    result = node.rebalancer.release(node.link)
    freeing.join()
    left = {uuid for uuid in uuids if str(node.fake.record(uuid)) != "7"}
    assert left
    assert set(result.memory.guests) == left


def free(node: Node, uuids: Iterable[str]) -> None:
    for uuid in uuids:
        node.fake.free(uuid)


# --- what is told --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [GuestGone("ended"), NotPermitted("no"), SysfsError("/p", "", "")]
)
def test_a_guest_whose_times_cannot_be_read_is_left_out_of_what_is_told(
    node: Node, error: GuestGone | NotPermitted | SysfsError
) -> None:
    bad, good = node.start("bad"), node.start("good")
    result = node.reacted()
    times = EmulatorTime()
    teller = Teller(Metrics(), PoolUsage(), times, node.fake.times)
    node.fake.fail("times", error, bad)
    teller.used(result)
    assert node.fake.count("times") == 2
    starts = {guest.uuid: guest.start for guest in result.guests}
    ran = ((1500, 7, 0),)
    assert times.add(good, starts[good], Kind.EMULATOR, ran) != (0, 0)
    assert times.add(bad, starts[bad], Kind.EMULATOR, ran) == (0, 0)
