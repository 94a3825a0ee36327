"""Steps: why each is taken, in what order, and that any prefix of them may be the last."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import transition
from agent.cpuset import CpuSet
from agent.policy import Policy
from agent.pool import GuestMemory, Memory, Placement
from agent.transition import Drift, Kind, Reason
from tests.anyworld import draw_guest, worlds
from tests.builders import (
    EIGHT,
    cpus,
    guest,
    host,
    kernel,
    offlined,
    pool_settings,
    relabelled,
    repinned,
    uuid_of,
)
from tests.worlds import World, brief, placed

if TYPE_CHECKING:
    from random import Random

    from agent.snapshot import Kernel


# reasons


def test_a_newcomer_arrives() -> None:
    world = World(EIGHT, (guest(1, emulator="7"),))
    step = world.steps()[0]
    assert (step.kind, step.iothread, step.was, step.to) == (
        Kind.EMULATOR,
        None,
        cpus("7"),
        cpus("0"),
    )
    assert (step.reason, step.drift) == (Reason.ARRIVE, None)


def test_who_is_where_he_belongs_is_not_pinned_again() -> None:
    assert World(EIGHT, (guest(1, emulator="0"),)).steps() == ()
    assert placed(1, 2).steps() == ()


def test_a_guest_without_any_pin_gets_one() -> None:
    step = World(EIGHT, (guest(1),)).steps()[0]
    assert (step.was, step.to) == (None, cpus("0"))


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        pytest.param("1-4", Reason.WIDEN, id="widen: all that was, and more"),
        pytest.param("2", Reason.NARROW, id="narrow: a part of what was"),
        pytest.param("3-4", Reason.MOVE, id="move: something goes and something comes"),
        pytest.param("5-6", Reason.MOVE, id="move: elsewhere altogether"),
    ],
)
def test_the_pool_changed(pool: str, reason: Reason) -> None:
    wide = pool_settings(ratio=1, cpus=pool, min_cpus=len(cpus(pool)))
    world = replace(placed(1), settings=wide, damped=False)
    assert brief(world.steps()) == [(1, reason, pool)]


def test_a_claim_evacuates() -> None:
    world = replace(placed(1), settings=pool_settings(ratio=1, min_cpus=2))
    claim = guest(9, policy=Policy.FLOAT, pins=("3",))
    assert brief(world.having(*world.guests, claim).steps()) == [(1, Reason.EVACUATE, "0,2")]


def test_a_pcpu_that_goes_off_line_evacuates() -> None:
    world = replace(placed(1), host=offlined(EIGHT, cpus("3")))
    assert brief(world.steps()) == [(1, Reason.EVACUATE, "2")]


def test_to_a_refuge_it_is_evacuated_even_if_it_never_was_in_a_pool() -> None:
    settings = pool_settings(reserved_cpus="0-7")
    claim = guest(9, policy=Policy.FLOAT, pins=("7",))
    world = World(EIGHT, (guest(1, emulator="7", original="6-7"), claim), settings)
    assert brief(world.steps()) == [(1, Reason.EVACUATE, "6")]


def test_who_is_left_gets_no_step() -> None:
    world = World(EIGHT, (guest(1, emulator="7"),), pool_settings(reserved_cpus="0-7"))
    assert world.steps() == ()


def test_another_start_arrives_again() -> None:
    world = placed(1)
    again = replace(guest(1, emulator="7"), start="another")
    assert brief(world.changed(again).steps()) == [(1, Reason.ARRIVE, "2-3")]


def test_the_busy_are_left_out_until_their_job_ends() -> None:
    world = World(EIGHT, (guest(1, emulator="7", busy=True), guest(2, emulator="7")))
    assert brief(world.steps()) == [(2, Reason.ARRIVE, "0")]


def test_steps_are_taken_by_urgency_then_guest_emulator_threads_first() -> None:
    wide = replace(EIGHT, isolated=CpuSet())
    pins = {1: "2", 2: "2-3", 3: "2-5", 4: "4-5", 5: "2-3", 6: "3,7", 7: None, 8: "2-3"}
    start = tuple(guest(n, emulator="6", iothreads=["6"]) for n in pins)
    memory = {
        one.uuid: GuestMemory(one.start, one.original, placed=cpus(pin))
        for one, pin in zip(start, pins.values(), strict=True)
        if pin
    }
    now = [repinned(one, cpus("6"), cpus("6")) for one in start]
    now[7] = relabelled(now[7])
    now[7] = repinned(now[7], cpus("2-3"), cpus("2-3"))
    settings = pool_settings(ratio=1, cpus="2-3", min_cpus=2, reserved_cpus="7")
    claim = guest(9, policy=Policy.FLOAT, pins=("7",))
    world = World(wide, (*reversed(now), claim), settings, Memory(guests=memory))
    world = replace(world, memory=replace(world.plan().memory, guests=memory))
    steps = world.steps()
    assert [step.reason for step in steps if step.kind is Kind.EMULATOR] == [
        Reason.EVACUATE,
        Reason.ARRIVE,
        Reason.DRIFT,
        Reason.DRIFT,
        Reason.WIDEN,
        Reason.MOVE,
        Reason.NARROW,
        Reason.RELEASE,
    ]
    numbers = [int(step.uuid[-12:], 16) for step in steps]
    assert numbers == [6, 6, 7, 7, 2, 2, 5, 5, 1, 1, 4, 4, 3, 3, 8, 8]
    assert [step.kind for step in steps] == [Kind.EMULATOR, Kind.IOTHREAD] * 8


# drift


@pytest.mark.parametrize(
    ("record", "seen", "drift"),
    [
        pytest.param("2-3", None, None, id="no kernel to see: the record is all there is"),
        pytest.param("2-3", kernel(), None, id="all agree"),
        pytest.param("2", kernel(), Drift.LIBVIRT, id="someone else pinned it"),
        pytest.param("2-3", kernel(cpuset="2"), Drift.CGROUP, id="the cpuset was changed"),
        pytest.param(
            "2-3", kernel(threads=("2-3", "2")), Drift.KERNEL, id="a thread was moved by taskset"
        ),
        pytest.param(
            "2-3",
            kernel(None, ("0-7",)),
            None,
            id="without a cpuset of its own nothing is verified",
        ),
    ],
)
def test_drift(record: str, seen: Kernel | None, drift: Drift | None) -> None:
    world = placed(1)
    drifted = replace(repinned(world.find(1), cpus(record)), kernel=seen)
    steps = world.changed(drifted).steps()
    assert [(step.reason, step.drift) for step in steps] == (
        [(Reason.DRIFT, drift)] if drift else []
    )


def test_threads_known_to_be_stuck_are_not_pinned_every_cycle() -> None:
    world = placed(1)
    world = world.changed(replace(world.find(1), kernel=kernel(threads=("2", "3"))))
    plan = world.plan()
    for stuck, count in ((frozenset({100, 101}), 0), (frozenset({100}), 1), (frozenset({7}), 1)):
        present = replace(world.present, stuck={uuid_of(1): stuck})
        assert len(transition.diff(plan, world.guests, present)) == count
    other = replace(world.present, stuck={uuid_of(2): frozenset({100, 101})})
    assert len(transition.diff(plan, world.guests, other)) == 1


def test_a_stuck_thread_hides_no_drift_of_the_record() -> None:
    world = placed(1)
    one = replace(repinned(world.find(1), cpus("5")), kernel=kernel(threads=("2",)))
    world = world.changed(one)
    present = replace(world.present, stuck={uuid_of(1): frozenset({100})})
    assert len(transition.diff(world.plan(), world.guests, present)) == 1


def test_a_step_for_another_reason_tells_of_a_drift_too() -> None:
    world = placed(1)
    world = world.changed(repinned(world.find(1), cpus("6")))
    world = replace(world, host=offlined(EIGHT, cpus("3")))
    assert [(s.reason, s.drift) for s in world.steps()] == [(Reason.EVACUATE, Drift.LIBVIRT)]


def test_a_cpuset_that_the_kernel_cut_with_its_pcpu_is_no_drift() -> None:
    world = placed(1)
    world = world.changed(replace(world.find(1), kernel=kernel("2", ("2",), "2")))
    world = replace(world, host=offlined(EIGHT, cpus("3")))
    assert [(s.reason, s.drift) for s in world.steps()] == [(Reason.EVACUATE, None)]


# in all worlds


def shaken(random: Random, world: World) -> World:
    """Return a settled world in which several things happened at once."""
    whole = CpuSet(pcpu.id for pcpu in world.host.cpus)
    guests = [one for one in world.guests if random.random() < 0.8]
    for index, one in enumerate(guests):
        match random.randint(0, 5):
            case 0:
                guests[index] = relabelled(one, random.choice(list(Policy)))
            case 1 if one.active:
                guests[index] = repinned(one, CpuSet.of(random.choice(list(world.host.online))))
            case 2:
                guests[index] = replace(one, busy=not one.busy)
            case _:
                pass
    cells = len(world.host.cells)
    guests += [draw_guest(random, n, whole, cells) for n in range(20, 20 + random.randint(0, 2))]
    off = CpuSet(cpu for cpu in whole if random.random() < 0.1) - CpuSet.of(0)
    return replace(
        world.later(random.choice([0, 10, 40])),
        host=offlined(host(cells=1, cores=len(whole), smt=1), off) if cells == 1 else world.host,
        guests=tuple(guests),
        damped=random.random() < 0.5,
    )


def is_safe(pin: CpuSet, world: World, claimed: CpuSet) -> bool:
    return bool(pin) and pin <= world.host.online and pin.isdisjoint(claimed)


@settings(max_examples=200)
@given(worlds(), st.randoms(use_true_random=True))
def test_after_any_prefix_all_is_safe_and_the_next_cycle_completes_it(
    first: World, random: Random
) -> None:
    world = shaken(random, first.settle())
    plan = world.plan()
    steps = world.steps(plan)
    whole = world.carry_out(plan, steps)
    for done in range(len(steps) + 1):
        cut = world.carry_out(plan, steps, done)
        for before, now in zip(world.guests, cut.guests, strict=True):
            pin = now.domain.emulator
            if pin is not None and pin != before.domain.emulator:
                managed = now.verdict.policy in world.manage
                assert is_safe(pin, world, plan.claimed) or not managed
        again = cut.plan()
        assert [cell.emulator_cpus for cell in again.cells] == [
            cell.emulator_cpus for cell in plan.cells
        ]
        resumed = cut.carry_out(again, cut.steps(again))
        assert resumed.steps() == ()
        if all(cell.placement is Placement.SHARED for cell in plan.cells):
            # Half evacuated may be enough: its iothreads then stay where they harm nobody.
            refugees = {one.uuid for one in plan.guests if one.evacuated}
            pairs = zip(resumed.guests, whole.guests, strict=True)
            assert all(one == other for one, other in pairs if one.uuid not in refugees)


@settings(max_examples=300)
@given(worlds(), st.randoms(use_true_random=True))
def test_each_step_changes_something_and_there_is_one_of_a_kind(
    first: World, random: Random
) -> None:
    world = shaken(random, first.settle())
    steps = world.steps()
    assert len({(step.uuid, step.iothread) for step in steps}) == len(steps)
    ranks = [list(Reason).index(step.reason) for step in steps]
    assert ranks == sorted(ranks)
    for step in steps:
        one = next(guest for guest in world.guests if guest.uuid == step.uuid)
        assert one.active
        assert not one.busy
        assert step.to
        assert step.to <= world.host.online
        if step.kind is Kind.EMULATOR and one.kernel is None:
            assert step.was == one.domain.emulator != step.to
