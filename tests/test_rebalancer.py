"""The cycle, over a hypervisor in memory: the main job, events, drift, release."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent.cpuset import CpuSet
from agent.cycle import Cause, drifts
from agent.errors import GuestFailed
from agent.placing import State
from agent.port import Topic
from agent.transition import Drift, Kind, Reason
from tests.fake import Fake
from tests.guests import wait_until
from tests.node import DELAY, HOME, Node, cpus, failed, isolated, planned, pools, reasons

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.cycle import CycleResult


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "state.json")
    yield made
    made.stop()


def kernel(result: CycleResult, uuid: str) -> CpuSet | None:
    """Return the cpuset of a guest's emulator threads, as the cycle read it."""
    (found,) = (guest.kernel for guest in result.guests if guest.uuid == uuid)
    return found.cpus if found is not None else None


# --- the main job --------------------------------------------------------------------------------


def test_guests_share_a_pool_that_follows_the_ratio(node: Node) -> None:
    first = node.start("first")
    assert reasons(node.reacted()) == [Reason.ARRIVE]
    one = node.placed(first)
    assert len(one) == 1
    assert one <= cpus("0-3")

    second = node.start("second")
    result = node.reacted()
    assert reasons(result) == [Reason.ARRIVE]
    assert node.placed(first) == node.placed(second) == one == node.pool(result)

    third = node.start("third")
    result = node.reacted()
    assert reasons(result) == [Reason.ARRIVE, Reason.WIDEN, Reason.WIDEN]
    both = node.pool(result)
    assert len(both) == 2
    assert one < both <= cpus("0-3")
    assert {node.placed(uuid) for uuid in (first, second, third)} == {both}
    node.assert_settled()

    node.fake.destroy(second)
    result = node.reacted()
    assert result.steps == ()
    assert node.pool(result) == both
    assert node.patience() == DELAY
    assert node.wait(DELAY - 1) is None

    shrunk = node.wait(1)
    assert shrunk is not None
    assert shrunk.cause is Cause.DEADLINE
    assert reasons(shrunk) == [Reason.NARROW, Reason.NARROW]
    assert node.placed(first) == node.placed(third) == node.pool(shrunk) == one
    assert node.patience() is None
    node.assert_settled()


def test_iothreads_that_were_pinned_alike_follow(node: Node) -> None:
    uuid = node.start("a", iothreads=3, iothreadpins={1: "7", 2: "6"})
    result = node.reacted()
    assert [(step.kind, step.iothread) for step in result.steps] == [
        (Kind.EMULATOR, None),
        (Kind.IOTHREAD, 1),
    ]
    assert node.fake.masks(uuid, 1) == node.fake.masks(uuid) == {node.pool(result)}
    assert node.fake.masks(uuid, 2) == {cpus("6")}
    assert node.fake.record(uuid, 3) is None
    node.assert_settled()


def test_persistent_definitions_are_never_touched(node: Node) -> None:
    uuid = node.start("a")
    before = dict(node.fake.guests[uuid].persistent or {})
    node.reacted()
    assert node.placed(uuid) != cpus("7")
    assert node.fake.guests[uuid].persistent == before


def test_unmanaged_guests_are_left_alone(node: Node) -> None:
    other = node.fake.start(node.fake.define("other", emulatorpin="0-7"))
    stopped = node.define("stopped")
    result = node.reacted()
    assert result.steps == ()
    assert [planned(result, u).managed for u in (other, stopped)] == [False, False]
    assert node.fake.masks(other) == {cpus("0-7")}


def test_a_pool_gives_a_pcpu_up_only_when_every_guest_has_left_it(node: Node) -> None:
    first, second, third = (node.start(name) for name in "abc")
    both = node.pool(node.reacted())
    node.fake.destroy(third)
    node.reacted()
    node.hold(second)
    result = node.wait(DELAY)
    assert result is not None
    one = node.pool(result)
    assert len(one) == 1
    assert node.placed(first) == one
    assert node.placed(second) == both
    assert result.memory.cells[HOME].lingering == both - one
    result = node.cycle()
    assert result.memory.cells[HOME].lingering == both - one
    assert result.memory.guests[second].placed == both
    node.fake.free(second)
    result = node.returned()
    assert drifts(result) == []
    assert result.memory.cells[HOME].lingering == CpuSet()
    assert node.placed(second) == one
    node.assert_settled()


def test_a_claim_drives_the_pool_away_before_anybody_arrives(node: Node) -> None:
    first = node.start("first")
    one = node.pool(node.reacted())
    claimer = node.start("claimer", claim=one.only())
    newcomer = node.start("newcomer")
    result = node.reacted()
    assert [step.reason for step in result.steps] == [
        Reason.EVACUATE,
        Reason.ARRIVE,
        Reason.ARRIVE,
    ]
    assert node.pool(result).isdisjoint(one)
    assert {node.placed(u) for u in (first, claimer, newcomer)} == {node.pool(result)}
    node.assert_settled()


def test_a_pcpu_that_goes_off_line_is_left_at_once_and_taken_again(node: Node) -> None:
    node.settings = pools(1, min_cpus=4)
    node.boot()
    uuid = node.start("a")
    assert node.pool(node.reacted()) == cpus("0-3")
    node.fake.unplug(cpus("1"))
    result = node.cycle(Cause.CPU)
    assert (node.fake.count("discover"), node.fake.count("refresh")) == (0, 1)
    assert reasons(result) == [Reason.EVACUATE]
    assert node.placed(uuid) == cpus("0,2-3")
    node.assert_settled()
    node.fake.unplug(CpuSet())
    assert reasons(node.cycle(Cause.CPU)) == [Reason.WIDEN]
    assert node.placed(uuid) == cpus("0-3")


def test_an_offline_pcpu_is_noticed_by_any_cycle(node: Node) -> None:
    uuid = node.start("a")
    one = node.pool(node.reacted())
    node.fake.unplug(one)
    other = node.start("b")
    assert reasons(node.reacted())[0] is Reason.EVACUATE
    assert node.placed(uuid) == node.placed(other)
    assert node.placed(uuid).isdisjoint(one)


def test_a_reload_does_not_wait_for_the_shrink_delay(node: Node) -> None:
    uuids = [node.start(name) for name in "abc"]
    assert len(node.pool(node.reacted())) == 2
    node.rebalancer.reconfigure(pools(ratio=3))
    result = node.cycle(Cause.RELOAD)
    assert reasons(result) == [Reason.NARROW] * 3
    assert {len(node.placed(uuid)) for uuid in uuids} == {1}
    node.rebalancer.reconfigure(pools(ratio=4))
    assert node.cycle(Cause.RELOAD).steps == ()


def test_a_burst_of_starts_is_one_plan(node: Node) -> None:
    uuids = [node.start(f"g{n}") for n in range(6)]
    result = node.reacted()
    assert node.fake.count("xml") == node.fake.count("pin_emulator") == 6
    assert node.fake.count("active_ids", "uuids") == 0
    assert node.fake.count("persistent_xml") == 0
    assert {node.placed(uuid) for uuid in uuids} == {node.pool(result)}
    assert node.react() is None


# --- guests that libvirt still starts ------------------------------------------------------------


def test_what_was_planned_while_a_guest_started_is_done_when_its_start_is_announced(
    node: Node,
) -> None:
    first = node.start("first")
    node.react()
    uuid = node.define("a")
    node.react()
    node.fake.start(uuid)
    before = node.foresee(uuid)
    assert (before.steps, before.outcomes) == ((), ())
    assert planned(before, uuid).state is State.BUSY
    assert node.fake.count("xml", "persistent_xml") == 0
    ahead = node.rebalancer._foresight.last
    assert ahead is not None
    result = node.reacted()
    assert (result.plan, result.steps) == (ahead[-1].plan, ahead[-1].steps)
    assert result.plan is ahead[-1].plan
    assert node.fake.count("xml", "persistent_xml", "locate") == 0
    assert reasons(result) == [Reason.ARRIVE]
    assert node.placed(uuid) == node.placed(first) == node.pool(result)
    node.assert_settled()


def test_what_was_planned_ahead_is_dropped_when_things_turn_out_otherwise(node: Node) -> None:
    first = node.start("first")
    node.react()
    uuid = node.fake.start(node.define("a"))
    node.foresee(uuid)
    assert node.rebalancer._foresight.last is not None
    (taken,) = node.placed(first)
    node.start("claims", claim=taken, metadata_policy="ignore", emulatorpin="6")
    result = node.reacted()
    assert taken not in node.pool(result)
    assert node.placed(uuid) == node.placed(first) == node.pool(result)
    node.assert_settled()


def test_a_plan_made_ahead_is_not_used_while_a_clock_runs(node: Node) -> None:
    uuids = [node.start(f"g{n}") for n in range(3)]
    node.react()
    node.fake.destroy(uuids[0])
    node.react()
    assert node.patience() == DELAY
    uuid = node.fake.create("a", **isolated(None, {"metadata_attributes": {"cell": "1"}}))
    node.foresee(uuid)
    ahead = node.rebalancer._foresight.last
    assert ahead is not None
    node.clock.now += DELAY
    result = node.reacted()
    assert result.plan is not ahead[-1].plan
    assert len(node.pool(result)) == 1
    node.assert_settled()


@pytest.mark.parametrize("dry", [True, False])
def test_a_guest_is_looked_up_ahead_if_it_will_be_pinned(node: Node, *, dry: bool) -> None:
    node.rebalancer.reconfigure(replace(node.settings, dry_run=dry))
    node.pinner.warm_up()
    ours = node.fake.start(node.define("ours"))
    other = node.fake.start(node.define("other", metadata_policy="ignore"))
    node.foresee(other)
    node.foresee(ours)
    node.pinner.stop()
    wait_until(lambda: len(node.fake.connections) == 1, 10, "the workers to end")
    looked_up = {call.uuid for call in node.fake.log if call.name == "look_up"}
    assert looked_up == (set() if dry else {ours})
    assert node.pinner.under_way() == set()


def test_a_guest_that_starts_where_its_pool_is_is_confirmed_at_once(node: Node) -> None:
    node.start("first")
    pool = node.pool(node.reacted())
    there = node.start("there", emulatorpin=str(pool))
    result = node.reacted()
    assert result.steps == ()
    assert kernel(result, there) == pool


def test_a_dry_run_shows_where_a_guest_that_has_just_started_is(node: Node) -> None:
    node.rebalancer.reconfigure(replace(node.settings, dry_run=True))
    uuid = node.start("a")
    result = node.reacted()
    assert [step.reason for step in result.steps] == [Reason.ARRIVE]
    assert kernel(result, uuid) == cpus("7")


def test_a_guest_that_starts_in_its_pool_but_for_a_thread_is_mended_at_once(node: Node) -> None:
    both = cpus("1-2")
    node.rebalancer.reconfigure(pools(cpus=both, min_cpus=2))
    node.start("first")
    node.reacted()
    there = node.start("there", emulatorpin=str(both))
    node.fake.guests[there].running.taskset(cpus("2"))
    result = node.reacted()
    assert (reasons(result), drifts(result)) == ([Reason.ARRIVE], [])
    assert node.placed(there) == both
    node.assert_settled()


# --- events --------------------------------------------------------------------------------------


def test_our_own_pins_come_back_as_events_that_cause_nothing(node: Node) -> None:
    uuid = node.start("a", iothreads=1, iothreadpins={1: "7"})
    node.reacted()
    wake = node.inbox.wait(0)
    assert [event.topic for event in wake.guests[uuid]] == [Topic.TUNABLE, Topic.TUNABLE]
    for event in wake.guests[uuid]:
        assert node.rebalancer.expected(uuid, event.tuned)
        node.inbox.put(event)
    node.fake.log.clear()
    assert node.react() is None
    assert node.fake.log == []


@pytest.mark.parametrize(
    "tuned",
    [
        (("cputune.emulatorpin", "0-7"),),
        (("cputune.vcpupin0", "7"),),
        (("cputune.cpu_shares", "7"),),
        (("cputune.emulatorpin", "nonsense"),),
        (("cputune.iothreadpin9", "7"),),
        (),
    ],
    ids=str,
)
def test_other_values_are_not_expected(node: Node, tuned: tuple[tuple[str, str], ...]) -> None:
    uuid = node.start("a")
    node.reacted()
    assert not node.rebalancer.expected(uuid, tuned)
    assert not node.rebalancer.expected("nobody", tuned)


def test_one_unexpected_value_among_expected_ones_counts(node: Node) -> None:
    uuid = node.start("a", iothreads=1, iothreadpins={1: "7"})
    one = str(node.pool(node.reacted()))
    good = ("cputune.emulatorpin", one), ("cputune.iothreadpin1", one)
    assert node.rebalancer.expected(uuid, good)
    assert not node.rebalancer.expected(uuid, (*good, ("cputune.vcpupin0", one)))


def test_somebodys_pin_is_taken_back_and_counted(node: Node) -> None:
    uuid = node.start("a", iothreads=1, iothreadpins={1: "7"})
    one = node.pool(node.reacted())
    node.react()
    node.fake.pin(uuid, cpus("5"))
    node.fake.pin(uuid, cpus("5"), 1)
    result = node.reacted()
    assert reasons(result) == [Reason.DRIFT, Reason.DRIFT]
    assert drifts(result) == [Drift.LIBVIRT, Drift.LIBVIRT]
    assert node.placed(uuid) == one
    assert node.fake.masks(uuid, 1) == {one}
    assert node.react() is None
    assert drifts(node.cycle()) == []


@pytest.mark.parametrize("copies", [0, 1, 2, 5])
def test_missing_and_doubled_events_change_nothing_in_the_end(node: Node, copies: int) -> None:
    node.fake.copies = copies
    first, second, third = (node.start(name) for name in "abc")
    node.react()
    node.fake.destroy(second)
    node.react()
    node.fake.pin(first, cpus("5"))
    node.react()
    node.cycle()
    node.wait(DELAY)
    node.cycle()
    assert node.placed(first) == node.placed(third)
    assert len(node.placed(first)) == 1
    node.assert_settled()


def test_doubled_events_double_no_pin(node: Node) -> None:
    node.fake.copies = 3
    for name in "abc":
        node.start(name)
    assert reasons(node.reacted()) == [Reason.ARRIVE] * 3
    assert len(node.fake.pins) == 3
    assert node.react() is None


def test_events_in_the_wrong_order_end_in_the_same_place(node: Node) -> None:
    first = node.start("a")
    node.reacted()
    with node.fake.backwards():
        node.fake.destroy(first)
        node.fake.start(first)
        second = node.start("b")
        node.fake.destroy(second)
        third = node.start("c")
    node.reacted()
    assert node.placed(first) == node.placed(third)
    node.assert_settled()


def test_a_guest_that_migrates_in_is_pinned_when_it_has_arrived(node: Node) -> None:
    uuid = node.fake.migrate_in("a", **isolated(None, {}))
    result = node.reacted()
    assert result.steps == ()
    assert planned(result, uuid).state == "busy"
    assert node.cycle().steps == ()
    assert node.wait(300) is None
    node.fake.finish(uuid, emulatorpin="6")
    result = node.reacted()
    assert reasons(result) == [Reason.ARRIVE]
    assert node.placed(uuid) == node.pool(result)


def test_the_original_of_a_guest_that_arrived_is_what_its_definition_brings(node: Node) -> None:
    uuid = node.fake.migrate_in(
        "a", **isolated(None, {"iothreads": 1, "iothreadpins": {1: "3"}, "emulatorpin": "3"})
    )
    node.reacted()
    node.fake.finish(uuid, emulatorpin="6", iothreadpins={1: "6"})
    node.reacted()
    node.boot()
    result = node.cycle(Cause.START)
    assert result.steps == ()
    assert result.memory.guests[uuid].original.emulator == cpus("6")
    assert node.fake.masks(uuid, 1) == {node.pool(result)}
    node.rebalancer.release(node.link)
    assert node.placed(uuid) == cpus("6")


# --- drift ---------------------------------------------------------------------------------------


def test_masks_changed_behind_libvirts_back_are_repaired_and_counted(node: Node) -> None:
    uuid = node.start("a")
    both = cpus("1-2")
    node.rebalancer.reconfigure(pools(cpus=both, min_cpus=2))
    node.cycle()
    node.fake.guests[uuid].running.taskset(cpus("2"))
    assert node.fake.masks(uuid) == {cpus("2")}
    result = node.cycle()
    assert (reasons(result), drifts(result)) == ([Reason.DRIFT], [Drift.KERNEL])
    assert node.placed(uuid) == both
    node.assert_settled()


def test_a_cpuset_changed_behind_libvirts_back_is_repaired_and_counted(node: Node) -> None:
    uuid = node.start("a")
    one = node.pool(node.reacted())
    node.fake.guests[uuid].running.cpusets["emulator"] = cpus("5")
    result = node.cycle()
    assert (reasons(result), drifts(result)) == ([Reason.DRIFT], [Drift.CGROUP])
    assert node.placed(uuid) == one


def test_threads_that_do_not_follow_are_counted_and_not_pinned_each_cycle(node: Node) -> None:
    uuid = node.start("a", emulatorpin="1")
    node.fake.may_loosen = False
    node.rebalancer.reconfigure(pools(cpus=cpus("1-2"), min_cpus=2))
    result = node.cycle()
    assert drifts(result) == [Drift.STUCK]
    assert [len(tids) for tids in result.stuck.values()] == [1]
    result = node.cycle()
    assert (result.steps, drifts(result)) == ((), [])
    assert [len(tids) for tids in result.stuck.values()] == [1]
    node.fake.may_loosen = True
    late = node.fake.guests[uuid].running.spawn()
    node.fake.guests[uuid].running.threads[late] = "emulator", cpus("2")
    result = node.cycle()
    assert drifts(result) == [Drift.KERNEL]
    assert node.cycle().stuck == {}
    assert node.fake.masks(uuid) == {cpus("1-2")}


def test_a_worker_born_after_a_pin_follows_too(node: Node) -> None:
    uuid = node.start("a", emulatorpin="1")
    node.rebalancer.reconfigure(pools(cpus=cpus("1-3"), min_cpus=1))
    node.cycle()
    node.fake.guests[uuid].running.spawn()
    node.rebalancer.reconfigure(pools(cpus=cpus("1-3"), min_cpus=3))
    node.cycle()
    assert node.placed(uuid) == cpus("1-3")


def test_without_a_cpuset_controller_guests_are_pinned_once(tmp_path: Path) -> None:
    node = Node(tmp_path / "state.json", fake=Fake(cpusets=False))
    uuid = node.start("a")
    result = node.reacted()
    assert node.fake.record(uuid) == node.pool(result)
    assert node.cycle().steps == ()
    node.stop()


# --- relabel and release -------------------------------------------------------------------------


def test_a_guest_that_is_relabelled_gets_its_original_pins_back(node: Node) -> None:
    uuid = node.start("a", iothreads=2, iothreadpins={1: "7", 2: "6"})
    other = node.start("b")
    one = node.pool(node.reacted())
    node.react()
    node.fake.label(uuid, "ignore")
    result = node.reacted()
    assert reasons(result) == [Reason.RELEASE, Reason.RELEASE]
    assert node.placed(uuid) == cpus("7")
    assert [node.fake.masks(uuid, n) for n in (1, 2)] == [{cpus("7")}, {cpus("6")}]
    assert uuid not in result.memory.guests
    assert node.placed(other) == one
    node.assert_settled()


@pytest.mark.parametrize("transient", [True, False])
def test_release_gives_every_guest_its_original_pins_back(node: Node, *, transient: bool) -> None:
    make = node.create if transient else node.start
    uuids = [make(name, iothreads=1, iothreadpins={1: "7"}) for name in "abc"]
    unpinned = make("d", emulatorpin="", vcpu_cpuset="4-6")
    node.reacted()
    node.boot()
    result = node.rebalancer.release(node.link)
    assert result.errors == ()
    assert {node.placed(uuid) for uuid in uuids} == {cpus("7")}
    assert set.union(*(node.fake.masks(uuid, 1) for uuid in uuids)) == {cpus("7")}
    assert node.placed(unpinned) == cpus("4-6")
    assert (result.memory.guests, result.memory.cells) == ({}, {})
    assert json.loads(node.path.read_text())["guests"] == {}
    again = node.rebalancer.release(node.link)
    assert again.steps == ()


def test_release_remembers_whom_it_could_not_release(node: Node) -> None:
    good, bad, stuck = (node.create(name) for name in "abc")
    node.reacted()
    node.fake.fail("pin_emulator", GuestFailed("odd"), bad)
    node.hold(stuck).refuse()
    result = node.rebalancer.release(node.link)
    assert {uuid for uuid, _ in result.errors} == {bad, stuck}
    assert set(result.memory.guests) == {bad, stuck}
    node.boot()
    node.fake.free(stuck)
    assert node.rebalancer.release(node.link).memory.guests == {}
    assert {node.placed(uuid) for uuid in (good, bad, stuck)} == {cpus("7")}


def test_release_remembers_whom_it_could_not_even_try(node: Node) -> None:
    uuids = [node.create(f"g{n}") for n in range(7)]
    for uuid in uuids[:5]:
        node.hold(uuid)
    node.reacted()
    node.pin_clock.leap = 10  # nobody waits for what is under way
    result = node.rebalancer.release(node.link)
    assert set(result.memory.guests) == set(uuids)
    assert json.loads(node.path.read_text())["guests"].keys() == set(uuids)


def test_release_waits_for_pins_that_take_their_time(node: Node) -> None:
    uuid = node.create("a")
    node.reacted()
    hold = node.hold(uuid)

    def end_the_job() -> None:
        assert hold.waiting.acquire(timeout=10)
        while not node.pinner._under_way[uuid].overdue:
            pass
        node.fake.free(uuid)

    thread = threading.Thread(target=end_the_job)
    thread.start()
    result = node.rebalancer.release(node.link)
    thread.join()
    assert reasons(result) == [Reason.RELEASE]
    assert result.memory.guests == {}
    assert node.placed(uuid) == cpus("7")


def test_release_gives_back_also_what_is_not_managed_any_more(node: Node) -> None:
    uuid = node.create("a")
    node.reacted()
    node.fake.label(uuid, "ignore")
    assert reasons(node.rebalancer.release(node.link)) == [Reason.RELEASE]
    assert node.placed(uuid) == cpus("7")


def test_release_takes_in_what_returned_meanwhile(node: Node) -> None:
    uuids = [node.create(f"g{n}") for n in range(7)]
    for uuid in uuids[:5]:
        node.hold(uuid)
    node.reacted()
    for uuid in uuids[:5]:
        node.fake.free(uuid)
    returned = 0
    while returned < 5:
        returned += node.inbox.wait(10).counts["step"]
    result = node.rebalancer.release(node.link)
    assert result.memory.guests == {}
    assert {node.placed(uuid) for uuid in uuids} == {cpus("7")}


def test_an_iothread_whose_release_failed_is_released_later(node: Node) -> None:
    uuid = node.start("a", iothreads=1, iothreadpins={1: "7"})
    node.reacted()
    node.react()
    node.fake.label(uuid, "ignore")
    node.fake.fail("pin_iothread", GuestFailed("odd"))
    assert failed(node.reacted()) == [(uuid, GuestFailed)]
    assert reasons(node.cycle()) == [Reason.RELEASE]
    assert node.fake.masks(uuid, 1) == node.fake.masks(uuid) == {cpus("7")}
    assert uuid not in node.cycle().memory.guests
