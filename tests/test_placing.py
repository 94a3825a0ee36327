"""Where each guest of a cell goes: into the pool, to a refuge, or nowhere."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cpuset import CpuSet
from agent.placing import spread
from agent.planner import Plan, State
from agent.policy import Policy
from agent.pool import (
    OnShortage,
    Placement,
    PoolSource,
)
from tests.builders import (
    EIGHT,
    cpus,
    fleet,
    guest,
    obedient,
    offlined,
    pool_settings,
    repinned,
    uuid_of,
)
from tests.worlds import World, pools, states, target

if TYPE_CHECKING:
    from agent.snapshot import Guest


# guests and their pools


@pytest.mark.parametrize(
    ("one", "why"),
    [
        pytest.param(guest(policy=Policy.FLOAT, emulator="6"), "policy", id="policy"),
        pytest.param(guest(running=False, emulator="6"), "not run", id="stopped"),
    ],
)
def test_who_is_not_managed_is_left_alone_and_told_why(one: Guest, why: str) -> None:
    planned = World(EIGHT, (one,)).plan().guests[0]
    assert (planned.managed, planned.emulator_pcpus, planned.state) == (False, None, None)
    assert why in planned.reason


def test_a_host_without_a_cell_is_no_reason_to_fail() -> None:
    bare = replace(EIGHT, cells=())
    planned = World(bare, fleet(1)).plan().guests[0]
    assert (planned.managed, planned.emulator_pcpus) == (False, None)


def test_a_guest_that_is_busy_gets_its_target_all_the_same() -> None:
    decided = World(EIGHT, fleet(2, busy=True)).plan()
    assert (target(decided, 1), states(decided)[1]) == ("0", State.BUSY)
    assert decided.cells[0].weight == 2


def test_a_guest_in_a_narrower_cgroup_gets_the_intersection_or_is_left() -> None:
    settings = pool_settings(ratio=1, cpus="4-6")
    narrow = guest(1, kernel=obedient(cpus("0-5"), cpus("0-5")), emulator="0-5")
    apart = guest(2, kernel=obedient(cpus("0-1"), cpus("0-1")), emulator="0-1")
    decided = World(EIGHT, (narrow, apart, guest(3)), settings).plan()
    assert (target(decided, 1), target(decided, 2), target(decided, 3)) == ("4-5", None, "4-6")
    assert states(decided)[2] == State.LEFT
    assert "0-1" in next(one.reason for one in decided.guests if one.uuid == uuid_of(2))


@pytest.mark.parametrize(
    ("on_shortage", "expected"),
    [
        pytest.param(
            OnShortage.OVERCOMMIT,
            {1: State.OVERCOMMITTED, 2: State.OVERCOMMITTED, 3: State.OVERCOMMITTED},
            id="overcommit: all share what there is",
        ),
        pytest.param(
            OnShortage.LEAVE,
            {1: State.PLACED, 2: State.PLACED, 3: State.LEFT},
            id="leave: who does not fit is not touched",
        ),
        pytest.param(
            OnShortage.SPILL,
            {1: State.OVERCOMMITTED, 2: State.OVERCOMMITTED, 3: State.OVERCOMMITTED},
            id="spill: nowhere to go",
        ),
    ],
)
def test_shortage(on_shortage: OnShortage, expected: dict[int, State]) -> None:
    settings = pool_settings(ratio=2, cpus="5", on_shortage=on_shortage)
    decided = World(EIGHT, fleet(3, emulator="1"), settings).plan()
    assert states(decided) == expected
    assert (decided.cells[0].need, decided.cells[0].shortage) == (2, 1)
    assert target(decided, 3) == (None if on_shortage is OnShortage.LEAVE else "5")


def test_leave_takes_younger_guests_that_still_fit() -> None:
    settings = pool_settings(ratio=2, cpus="5", on_shortage=OnShortage.LEAVE)
    crowd = (guest(1), guest(2, weight=2), guest(3))
    decided = World(EIGHT, crowd, settings).plan()
    assert states(decided) == {1: State.PLACED, 2: State.LEFT, 3: State.PLACED}
    assert decided.guests[0].reason == "2 guests of weight 2 on 5 at ratio 2 in cell 0"


class TestNowhereToGo:
    """No candidate, or no room under `leave`: left, unless something must be evacuated."""

    NONE: Final = pool_settings(reserved_cpus="0-7")
    CLAIM: Final = guest(9, policy=Policy.FLOAT, pins=("2",))

    def after_claim(self, one: Guest, *, keep: str = "0-7", **keys: Any) -> Plan:  # noqa: ANN401
        settings = pool_settings(reserved_cpus=keep)
        return World(EIGHT, (one, self.CLAIM), settings, **keys).plan()

    def test_harmless_is_left(self) -> None:
        decided = self.after_claim(guest(1, emulator="3"))
        assert (target(decided, 1), states(decided)[1]) == (None, State.LEFT)

    def test_on_a_claim_it_goes_to_what_is_left_of_its_original_pin(self) -> None:
        decided = self.after_claim(guest(1, emulator="2", original="2-4"))
        assert (target(decided, 1), states(decided)[1]) == ("3-4", State.LEFT)
        assert decided.guests[0].evacuated
        assert decided.guests[0].placement is None

    def test_else_to_what_is_neither_claimed_nor_reserved(self) -> None:
        isolated = replace(EIGHT, isolated=cpus("6-7"))
        one = guest(1, emulator="2")
        settings = pool_settings(reserved_cpus="0-1,3-5")
        decided = World(isolated, (one, self.CLAIM), settings).plan()
        assert decided.cells[0].candidates == CpuSet()
        assert (target(decided, 1), states(decided)[1]) == ("6-7", State.LEFT)

    def test_only_then_it_is_a_collision(self) -> None:
        decided = self.after_claim(guest(1, emulator="2"))
        assert (target(decided, 1), states(decided)[1]) == (None, State.COLLISION)

    def test_an_iothread_that_follows_is_evacuated_too(self) -> None:
        one = guest(1, emulator="2", original="2-3", iothreads=["2"])
        half_done = repinned(one, cpus("3"))
        decided = self.after_claim(half_done)
        assert (target(decided, 1), decided.guests[0].evacuated) == ("3", True)
        stays = self.after_claim(replace(half_done, original=replace(one.original, iothreads=())))
        assert target(stays, 1) is None

    def test_off_line_is_as_bad_as_claimed(self) -> None:
        half = offlined(EIGHT, cpus("4-7"))
        decided = World(half, (guest(1, emulator="5", original="3-5"),), self.NONE).plan()
        assert target(decided, 1) == "3"

    def test_without_a_pin_it_runs_where_its_vcpus_may(self) -> None:
        decided = self.after_claim(guest(1, vcpu_cpuset="3-4"))
        assert states(decided)[1] == State.LEFT
        decided = self.after_claim(guest(1, vcpu_cpuset="2-4"))
        assert states(decided)[1] == State.COLLISION
        decided = self.after_claim(guest(1))
        assert states(decided)[1] == State.COLLISION

    def test_never_beyond_the_partition_or_its_own_cgroup(self) -> None:
        one = guest(1, emulator="2", original="2-6", kernel=obedient(cpus("2"), cpus("0-4")))
        decided = self.after_claim(one, partition=cpus("0-2,4-7"))
        assert target(decided, 1) == "4"

    def test_leave_evacuates_too(self) -> None:
        settings = pool_settings(ratio=1, cpus="5", on_shortage=OnShortage.LEAVE)
        crowd = (guest(1), guest(2, emulator="2"), self.CLAIM)
        decided = World(EIGHT, crowd, settings).plan()
        assert (target(decided, 1), target(decided, 2)) == ("5", "0-1,3-7")

    def test_free_under_nova_touches_nothing_at_all(self) -> None:
        settings = pool_settings(source=PoolSource.FREE)
        one = guest(1, emulator="2", nova=True)
        decided = World(EIGHT, (one, self.CLAIM), settings).plan()
        assert (target(decided, 1), states(decided)[1]) == (None, State.COLLISION)


# placement


@pytest.mark.parametrize(
    ("keys", "isolated", "placement"),
    [
        pytest.param({}, "", Placement.SHARED, id="auto is shared"),
        pytest.param({"cpus": "4-5"}, "5", Placement.SINGLE, id="auto: a pool pCPU is isolated"),
        pytest.param({"cpus": "4-6"}, "6", Placement.SHARED, id="auto: none of the pool is"),
        pytest.param({"ratio": "0.5", "cpus": "4-7"}, "4-7", Placement.SHARED, id="auto below 1"),
        pytest.param({"placement": Placement.SINGLE}, "", Placement.SINGLE, id="single"),
        pytest.param(
            {"placement": Placement.SHARED, "cpus": "4-5"}, "4-5", Placement.SHARED, id="shared"
        ),
    ],
)
def test_placement(keys: dict[str, Any], isolated: str, placement: Placement) -> None:
    world = World(
        replace(EIGHT, isolated=cpus(isolated)), fleet(2), pool_settings(**{"ratio": 1, **keys})
    )
    decided = world.plan()
    sizes = {len(one.emulator_pcpus or CpuSet()) for one in decided.guests}
    assert decided.cells[0].placement == placement
    assert sizes == (
        {1} if placement is Placement.SINGLE else {len(decided.cells[0].emulator_cpus)}
    )


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        pytest.param([None, None, None, None], [0, 1, 0, 1], id="newcomers are dealt out"),
        pytest.param([0, 0, 0, 0], [0, 0, 1, 1], id="the oldest stay"),
        pytest.param([1, 1, None], [1, 1, 0], id="who is there stays"),
        pytest.param([5, None, 0], [1, 0, 0], id="who stays goes before who comes"),
        pytest.param([5], [0], id="from outside the pool"),
    ],
)
def test_spread(held: list[int | None], expected: list[int]) -> None:
    places = {str(n): cpu for n, cpu in enumerate(held)}
    assert list(spread(places, cpus("0-1")).items()) != []
    assert [spread(places, cpus("0-1"))[str(n)] for n in range(len(held))] == expected


@given(st.lists(st.sampled_from([None, 0, 1, 2, 7]), min_size=1, max_size=6), st.integers(1, 3))
def test_spread_moves_as_few_as_an_even_spread_allows(held: list[int | None], k: int) -> None:
    places = {str(n): cpu for n, cpu in enumerate(held)}
    found = spread(places, CpuSet(range(k)))
    limit = -(-len(held) // k)
    assert max(list(found.values()).count(cpu) for cpu in range(k)) <= limit
    fewest = min(
        sum(to != was for to, was in zip(way, held, strict=True))
        for way in product(range(k), repeat=len(held))
        if max(way.count(cpu) for cpu in range(k)) <= limit
    )
    assert sum(found[str(n)] != cpu for n, cpu in enumerate(held)) == fewest


class TestSingle:
    """Each guest has one pCPU, and keeps it."""

    SETTINGS: Final = pool_settings(ratio=2, placement=Placement.SINGLE)

    def test_guests_are_spread_and_stay(self) -> None:
        world = World(EIGHT, fleet(4), self.SETTINGS).settle()
        assert [str(one.domain.emulator) for one in world.guests] == ["0", "1", "0", "1"]
        fewer = world.without(1).settle()
        assert [str(one.domain.emulator) for one in fewer.guests] == ["1", "0", "1"]

    def test_a_shrinking_pool_gives_up_the_pcpu_of_fewest_guests(self) -> None:
        world = World(EIGHT, fleet(6), pool_settings(ratio=2, placement=Placement.SINGLE)).settle()
        assert [str(one.domain.emulator) for one in world.guests] == ["0", "1", "2"] * 2
        left = replace(world.without(1).without(4).without(5), damped=False)
        assert pools(left.plan()) == {0: "1-2"}

    def test_weights_do_not_matter_for_it(self) -> None:
        crowd = (guest(1, weight=3), guest(2), guest(3), guest(4))
        decided = World(EIGHT, crowd, pool_settings(ratio=3, placement=Placement.SINGLE)).plan()
        assert [target(decided, n) for n in (1, 2, 3, 4)] == ["0", "1", "0", "1"]

    def test_a_guest_in_a_narrower_cgroup_is_dealt_a_pcpu_that_it_can_have(self) -> None:
        narrow = guest(2, kernel=obedient(cpus("7"), cpus("1,7")), emulator="7")
        apart = guest(3, kernel=obedient(cpus("7"), cpus("7")), emulator="7")
        settings = pool_settings(ratio=2, placement=Placement.SINGLE, min_cpus=2, cpus="0-1")
        world = World(EIGHT, (guest(1, emulator="1"), narrow, apart, guest(4)), settings)
        decided = world.plan()
        assert [target(decided, n) for n in (1, 2, 3, 4)] == ["1", "1", None, "0"]
        assert world.settle().steps() == ()

    def test_a_drifted_pin_does_not_change_who_is_where(self) -> None:
        world = World(EIGHT, fleet(4), self.SETTINGS).settle()
        drifted = world.changed(repinned(world.find(1), cpus("1")))
        assert drifted.plan().guests == world.plan().guests
