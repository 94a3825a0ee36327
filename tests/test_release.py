"""Iothreads that follow, originals given back, and what is remembered after the steps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent import transition
from agent.cycle import remember
from agent.domainxml import IoThread
from agent.snapshot import Thread
from agent.transition import Drift, Kind, Present, Reason
from tests.builders import (
    EIGHT,
    cpus,
    guest,
    kernel,
    obedient,
    pool_settings,
    relabelled,
    repinned,
    uuid_of,
)
from tests.worlds import World, placed

if TYPE_CHECKING:
    from agent.snapshot import Guest, Kernel


# iothreads


@pytest.mark.parametrize(
    ("pin", "follows"),
    [
        pytest.param("7", True, id="pinned as the emulator threads were"),
        pytest.param("6", False, id="pinned elsewhere is someone's intent"),
        pytest.param(None, False, id="and so is no pin"),
    ],
)
def test_which_iothreads_follow(pin: str | None, *, follows: bool) -> None:
    world = World(EIGHT, (guest(1, emulator="7", iothreads=[pin]),))
    steps = [step for step in world.steps() if step.kind is Kind.IOTHREAD]
    assert [(step.iothread, step.was, step.to) for step in steps] == (
        [(1, cpus("7"), cpus("0"))] if follows else []
    )


def test_where_nothing_is_pinned_no_iothread_follows() -> None:
    world = World(EIGHT, (guest(1, iothreads=[None]),))
    assert [step.kind for step in world.steps()] == [Kind.EMULATOR]


def test_an_iothread_that_had_no_original_pin_follows_nobody() -> None:
    one = guest(1, emulator="7", iothreads=["7"])
    plugged = IoThread(2, cpus("7"), realtime=False)
    domain = replace(one.domain, iothreads=(*one.domain.iothreads, plugged))
    assert [
        thread.id for thread in transition.followers(replace(one, domain=domain), one.original)
    ] == [1]


def test_a_real_time_iothread_follows_nobody() -> None:
    one = guest(1, emulator="7", iothreads=["7"])
    rt = replace(one.domain, iothreads=(IoThread(1, cpus("7"), realtime=True),))
    assert list(transition.followers(replace(one, domain=rt), one.original)) == []


def test_iothreads_stay_where_they_are_if_they_are_not_to_follow() -> None:
    settings = pool_settings(iothreads=False)
    world = World(EIGHT, (guest(1, emulator="7", iothreads=["7"]),), settings)
    assert [step.kind for step in world.steps()] == [Kind.EMULATOR]


def test_iothreads_that_followed_are_given_back_when_they_are_to_follow_no_more() -> None:
    world = placed(1, iothreads=["7"])
    off = replace(world, settings=replace(world.settings, iothreads=False))
    assert [(s.kind, s.was, s.to, s.reason) for s in off.steps()] == [
        (Kind.IOTHREAD, cpus("2-3"), cpus("7"), Reason.RELEASE)
    ]
    assert off.settle().steps() == ()
    moved = repinned(world.find(1), cpus("2-3"), cpus("5"))
    assert off.changed(moved).steps() == (), "someone's intent"


@pytest.mark.parametrize(
    ("pin", "seen", "drift"),
    [
        pytest.param("2-3", kernel(), None, id="all agree"),
        pytest.param("5", kernel(), Drift.LIBVIRT, id="someone else pinned it"),
        pytest.param("2-3", kernel(iothread="2"), Drift.KERNEL, id="its thread was moved"),
        pytest.param("2-3", kernel(None, iothread="2"), None, id="not verified"),
    ],
)
def test_drift_of_an_iothread(pin: str, seen: Kernel, drift: Drift | None) -> None:
    world = placed(1, iothreads=["7"])
    drifted = replace(repinned(world.find(1), cpus("2-3"), cpus(pin)), kernel=seen)
    steps = world.changed(drifted).steps()
    assert [(step.kind, step.reason, step.drift) for step in steps] == (
        [(Kind.IOTHREAD, Reason.DRIFT, drift)] if drift else []
    )


def test_each_iothread_is_looked_at_by_itself() -> None:
    world = placed(1, iothreads=["7", "7"])
    astray = ((1, (Thread(200, cpus("2-3")),)), (2, (Thread(201, cpus("2")),)))
    one = replace(world.find(1), kernel=replace(kernel(), iothreads=astray))
    assert [step.iothread for step in world.changed(one).steps()] == [2]


# release


def test_who_is_managed_no_more_gets_his_original_pins_back_once() -> None:
    world = placed(1, iothreads=["7"])
    world = world.changed(relabelled(world.find(1)))
    assert [(s.kind, s.was, s.to, s.reason) for s in world.steps()] == [
        (Kind.EMULATOR, cpus("2-3"), cpus("7"), Reason.RELEASE),
        (Kind.IOTHREAD, cpus("2-3"), cpus("7"), Reason.RELEASE),
    ]
    released = world.settle()
    assert released.steps() == ()
    assert released.changed(repinned(released.find(1), cpus("5"))).steps() == (), "not ours now"


def test_who_never_was_ours_is_not_released() -> None:
    one = relabelled(repinned(guest(1, emulator="7"), cpus("5")))
    assert World(EIGHT, (one,)).steps() == ()


@pytest.mark.parametrize(
    ("one", "to"),
    [
        pytest.param(guest(1, emulator="2-3", original="7"), "7", id="the original"),
        pytest.param(guest(1, emulator="2-3", original="7-9"), "7", id="as far as it is on line"),
        pytest.param(
            guest(1, emulator="2-3", original=None, vcpu_cpuset="4-6"), "4-6", id="vcpu cpuset"
        ),
        pytest.param(
            guest(1, emulator="2-3", original="9", vcpu_cpuset="4-6"), "4-6", id="all off line"
        ),
        pytest.param(guest(1, emulator="2-3", original=None), "0-7", id="all online pCPUs"),
        pytest.param(
            guest(1, emulator="2-3", original="5-7", kernel=obedient(cpus("2-3"), cpus("0-5"))),
            "5",
            id="within its cgroup",
        ),
        pytest.param(guest(1, emulator="7"), None, id="where it is already"),
        pytest.param(guest(1, vcpu_cpuset="4-9"), None, id="never pinned at all"),
        pytest.param(guest(1, emulator="2-3", original="7", running=False), None, id="not running"),
    ],
)
def test_releases(one: Guest, to: str | None) -> None:
    steps = transition.releases([one], Present(EIGHT.online, {}))
    assert [(str(step.to), step.reason) for step in steps] == ([(to, Reason.RELEASE)] if to else [])


def test_releases_take_iothreads_along_and_leave_those_of_others() -> None:
    world = placed(1, iothreads=["7", "6"])
    steps = transition.releases(world.guests, world.present)
    assert [(step.iothread, str(step.to)) for step in steps] == [(None, "7"), (1, "7")]
    off = replace(world.present, iothreads=False)
    assert transition.releases(world.guests, off) == steps, "those that we moved"
    forgotten = replace(off, remembered={})
    assert len(transition.releases(world.guests, forgotten)) == 1


# what is remembered


class TestRemember:
    """Where each guest was put, as far as that is known."""

    def world(self) -> World:
        return World(EIGHT, (guest(1, emulator="7"), guest(2, emulator="0")))

    def remembered(self, world: World, *undone: int) -> dict[int, str | None]:
        plan = world.plan()
        left = frozenset(uuid_of(number) for number in undone)
        memory = remember(plan.memory, plan, world.memory, world.guests, left)
        return {
            int(uuid[-12:], 16): str(one.placed) if one.placed else None
            for uuid, one in memory.guests.items()
        }

    def test_what_was_done_and_what_was_right_already(self) -> None:
        assert self.remembered(self.world()) == {1: "0", 2: "0"}

    def test_not_what_failed(self) -> None:
        assert self.remembered(self.world(), 1) == {1: None, 2: "0"}

    def test_not_the_busy(self) -> None:
        world = self.world()
        busy = replace(world.find(1), busy=True)
        assert self.remembered(world.changed(busy)) == {2: "0"}, "never tried"
        settled = placed(1)
        busy = replace(settled.find(1), busy=True)
        moved = replace(settled.changed(busy), settings=pool_settings(cpus="5"), damped=False)
        assert self.remembered(moved) == {1: "2-3"}

    def test_who_is_left_keeps_what_he_had(self) -> None:
        world = replace(self.world().settle(), settings=pool_settings(reserved_cpus="0-7"))
        assert self.remembered(world) == {1: "0", 2: "0"}

    def test_who_was_released_is_forgotten(self) -> None:
        world = self.world().settle()
        world = world.changed(relabelled(world.find(1)))
        assert self.remembered(world) == {2: "0"}
        assert self.remembered(world, 1) == {1: "0", 2: "0"}

    def test_the_rest_of_the_memory_is_the_plans(self) -> None:
        world = self.world()
        plan = world.plan()
        memory = remember(plan.memory, plan, world.memory, world.guests, frozenset())
        assert (memory.cells, memory.set_aside) == (plan.memory.cells, plan.memory.set_aside)

    def test_a_pcpu_lingers_while_a_guest_is_placed_there(self) -> None:
        world = replace(placed(1, 2), settings=pool_settings(cpus="2-3"), damped=False)
        cell = world.host.cells[0].id
        plan = world.plan()
        for numbers, lingering in (((), ""), ((2,), "3")):
            left = frozenset(map(uuid_of, numbers))
            memory = remember(plan.memory, plan, world.memory, world.guests, left)
            assert str(memory.cells[cell].lingering) == lingering


def test_an_iothread_that_is_not_to_follow_is_given_back_in_the_first_cycle_too() -> None:
    settings = pool_settings(cpus="2-3", min_cpus=2, iothreads=False)
    one = guest(1, emulator="2-3", original="7", iothreads=["2-3"])
    world = World(EIGHT, (one,), settings)
    assert [(step.kind, str(step.to)) for step in world.steps()] == [(Kind.IOTHREAD, "7")]
    assert world.settle().steps() == ()
