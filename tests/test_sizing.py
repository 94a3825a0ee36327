"""How large pools are, over time, and that they change only when they must."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.planner import State
from agent.policy import Policy
from agent.pool import (
    CellMemory,
    CellSettings,
    Sizing,
    Smt,
    damp,
    need,
    total,
)
from tests.builders import (
    EIGHT,
    TWO,
    cell_settings,
    cpus,
    fleet,
    guest,
    host,
    offlined,
    pool_settings,
)
from tests.worlds import World, pool, pools, states

# need


@pytest.mark.parametrize(
    ("keys", "weight", "expected"),
    [
        pytest.param({}, 0, 0, id="nobody needs nothing, whatever the least"),
        pytest.param({"min_cpus": 3}, 0, 0, id="likewise with a least of three"),
        pytest.param({}, Fraction(1, 100), 1, id="anybody needs one"),
        pytest.param({}, 8, 1, id="up to the ratio"),
        pytest.param({}, Fraction(801, 100), 2, id="beyond it one more"),
        pytest.param({"ratio": "2.5"}, 5, 2, id="2.5 is 5/2"),
        pytest.param({"ratio": "0.1"}, Fraction(3, 10), 3, id="no rounding of tenths"),
        pytest.param({"ratio": "0.01"}, Fraction(5, 100), 5, id="nor of hundredths"),
        pytest.param({"min_cpus": 3}, 1, 3, id="at least min_cpus"),
        pytest.param({"max_cpus": 2}, 99, 2, id="at most max_cpus"),
        pytest.param({"max_cpus": 0}, 99, 13, id="0 is no limit"),
    ],
)
def test_need(keys: dict[str, Any], weight: Fraction | int, expected: int) -> None:
    assert need(cell_settings(**keys), Fraction(weight)) == expected


@given(st.fractions(Fraction(1, 100), 500), st.fractions(Fraction(1, 100), 1000))
def test_need_is_the_least_that_carries_the_weight(weight: Fraction, ratio: Fraction) -> None:
    cpus_needed = need(CellSettings(emulator_overcommit_ratio=ratio), weight)
    assert cpus_needed * ratio >= weight > (cpus_needed - 1) * ratio


@given(st.lists(st.fractions(Fraction(1, 100), 64)))
def test_total_is_the_sum(weights: list[Fraction]) -> None:
    assert total(weights) == sum(weights, Fraction(0))


def test_a_core_with_a_reserved_thread_is_broken_into_first() -> None:
    whole = World(host(cells=1, cores=4, smt=2), fleet(1))
    assert (pool(whole), pool(replace(whole, settings=pool_settings(reserved_cpus="5")))) == (
        "0",
        "4",
    )


# sizes over time


WANT_TWO: Final = CellMemory(cpus("0-3"), oversize_since=100.0, oversize_need=2)


@pytest.mark.parametrize(
    ("now", "wanted", "held", "before", "sizing"),
    [
        pytest.param(100, 3, 2, CellMemory(), Sizing(3), id="growth is immediate"),
        pytest.param(100, 2, 2, WANT_TWO, Sizing(2), id="fitting again stops the clock"),
        pytest.param(100, 2, 4, CellMemory(), Sizing(4, 100, 2), id="too large starts it"),
        pytest.param(129.9, 1, 4, WANT_TWO, Sizing(4, 100, 2), id="the largest need is kept"),
        pytest.param(120, 3, 4, WANT_TWO, Sizing(4, 100, 3), id="and grows"),
        pytest.param(130, 2, 4, WANT_TWO, Sizing(2), id="then it shrinks"),
        pytest.param(
            130,
            1,
            4,
            WANT_TWO,
            Sizing(2, 130, 1),
            id="to that need; what is too much still waits on",
        ),
        pytest.param(
            129, 1, 3, WANT_TWO, Sizing(3, 100, 2), id="a lost pCPU is not replaced beyond need"
        ),
        pytest.param(130, 0, 1, WANT_TWO, Sizing(1, 130, 0), id="and does not come back to shrink"),
        pytest.param(129, 3, 2, WANT_TWO, Sizing(3), id="but up to need it is replaced at once"),
        pytest.param(100.1, 0, 4, CellMemory(), Sizing(4, 100.1, 0), id="nobody is left"),
    ],
)
def test_damp(now: float, wanted: int, held: int, before: CellMemory, sizing: Sizing) -> None:
    assert damp(now, wanted, held, before, shrink_delay=30) == sizing
    assert damp(now, wanted, held, before, shrink_delay=0) == Sizing(wanted), "no delay, no damping"


def test_a_clock_whose_deadline_is_reached_has_run_out_whatever_floats_do() -> None:
    for tenth in range(1000):
        since = tenth / 10
        before = CellMemory(cpus("0-1"), oversize_since=since, oversize_need=1)
        assert damp(since + 30.3, 1, 2, before, 30.3) == Sizing(1)


class TestOverTime:
    """A pool of one cell of eight cores, ratio 1: its size is the number of guests, damped."""

    def start(self, count: int) -> World:
        return World(EIGHT, fleet(count), pool_settings(ratio=1)).settle()

    def test_growth_is_immediate_and_moves_nobody_off(self) -> None:
        world = self.start(2)
        grown = world.having(*fleet(4))
        assert (pool(world), pool(grown)) == ("0-1", "0-3")

    def test_shrinking_waits_without_interruption(self) -> None:
        world = self.start(4).having(*fleet(2)).settle()
        assert world.plan().deadline == world.now + 30
        assert pool(world.later(29.9)) == "0-3"
        assert pool(world.later(30)) == "0-1"

    def test_an_interruption_starts_the_wait_again(self) -> None:
        world = self.start(4).having(*fleet(2)).settle()
        back = world.later(20).having(*fleet(4)).settle()
        assert back.plan().deadline is None
        again = back.later(15).having(*fleet(2)).settle()
        assert pool(again.later(29.9)) == "0-3"
        assert pool(again.later(30)) == "0-1"

    def test_it_shrinks_to_the_largest_need_of_the_window(self) -> None:
        world = self.start(5).having(*fleet(1)).settle()
        world = world.later(10).having(*fleet(3)).settle()
        world = world.later(10).having(*fleet(2)).settle().later(10)
        assert pool(world) == "0-2"
        assert pool(world.settle().later(30)) == "0-1"

    def test_a_reload_does_not_wait(self) -> None:
        world = self.start(4).having(*fleet(2)).settle()
        assert pool(replace(world, damped=False)) == "0-1"

    def test_a_pcpu_lost_to_a_claim_is_replaced_only_up_to_need(self) -> None:
        world = self.start(4).having(*fleet(2)).settle()
        claim = guest(9, policy=Policy.FLOAT, pins=("1",))
        assert pool(world.having(*world.guests, claim)) == "0,2-3"
        claims = guest(9, policy=Policy.FLOAT, pins=("1", "2", "3"))
        assert pool(world.having(*world.guests, claims)) == "0,4"

    def test_a_pcpu_lost_to_an_offline_likewise_and_it_is_not_fetched_back(self) -> None:
        world = self.start(4).having(*fleet(2))
        lost = replace(world, host=offlined(EIGHT, cpus("0"))).settle()
        assert pool(lost) == "1-3"
        assert pool(replace(lost, host=EIGHT)) == "1-3"

    def test_the_last_guest_leaves(self) -> None:
        world = self.start(2).having().settle()
        assert pool(world.later(29)) == "0-1"
        assert pool(world.later(30)) == ""

    def test_nothing_waits_in_a_world_at_rest(self) -> None:
        assert self.start(3).plan().deadline is None

    def test_min_and_max(self) -> None:
        world = World(EIGHT, fleet(1), pool_settings(ratio=1, min_cpus=3))
        assert pool(world) == "0-2"
        assert pool(world.having()) == ""
        small = World(EIGHT, fleet(5), pool_settings(ratio=1, max_cpus=2)).plan()
        assert (small.cells[0].need, small.cells[0].shortage) == (2, 3)
        assert pools(small) == {0: "0-1"}
        assert set(states(small).values()) == {State.OVERCOMMITTED}

    def test_a_new_ratio_moves_nobody_that_need_not_move(self) -> None:
        world = self.start(4)
        reloaded = replace(world, settings=pool_settings(ratio=2), damped=False)
        assert pool(reloaded) == "0-1"
        same = replace(world, settings=pool_settings(ratio="1.3"), damped=False)
        assert (pool(same), same.steps()) == ("0-3", ())

    def test_each_cell_by_itself(self) -> None:
        crowd = (guest(1, memnode=[0]), guest(2, memnode=[1]), guest(3, memnode=[1]))
        one = pool_settings({1: cell_settings(ratio=1)}, ratio=2)
        decided = World(TWO, crowd, one).plan()
        assert pools(decided) == {0: "0", 1: "8-9"}
        assert [str(cell.ratio) for cell in decided.cells] == ["2", "1"]


class TestBetterNeighbours:
    """What only SMT neighbours ask for waits; anything else does not."""

    HOST: Final = host(cells=1, cores=4, smt=2)
    CLAIM: Final = guest(9, policy=Policy.FLOAT, pins=("1",))

    def world(self, **keys: Any) -> World:  # noqa: ANN401 - settings
        started = World(self.HOST, fleet(1), pool_settings(**keys)).settle()
        return started.having(*started.guests, self.CLAIM)

    def test_it_waits_for_the_shrink_delay(self) -> None:
        world = self.world().settle()
        assert pool(world) == "0"
        assert world.plan().deadline == world.now + 30
        assert pool(world.later(29.9)) == "0"
        assert pool(world.later(30)) == "2"
        assert world.later(30).plan().deadline is None

    def test_a_claim_that_goes_again_stops_the_clock(self) -> None:
        world = self.world().settle().later(20).having(*fleet(1)).settle()
        assert world.plan().deadline is None
        again = world.later(15).having(*fleet(1), self.CLAIM).settle()
        assert pool(again.later(29.9)) == "0"

    def test_any_minds_no_neighbours(self) -> None:
        assert pool(self.world(smt=Smt.ANY).settle().later(1000)) == "0"

    def test_strict_evacuates_at_once(self) -> None:
        assert pool(self.world(smt=Smt.STRICT)) == "2"

    def test_a_reload_does_not_wait(self) -> None:
        assert pool(replace(self.world().settle(), damped=False)) == "2"

    def test_a_pool_that_changes_anyway_does_not_wait(self) -> None:
        grown = self.world(ratio=1)
        assert pool(grown.having(*fleet(2), self.CLAIM)) == "2-3"
        lost = guest(9, policy=Policy.FLOAT, pins=("0", "5"))
        assert pool(grown.having(*fleet(1), lost)) == "2"


class TestLingering:
    """A pCPU that was left by decision is of the pool now while a guest is placed there."""

    def test_a_busy_guest_keeps_it_in_the_pool_now(self) -> None:
        world = World(EIGHT, fleet(2), pool_settings(ratio=1)).settle().without(1)
        stuck = world.changed(replace(world.find(2), busy=True))
        stuck = replace(stuck, damped=False).settle()
        cell = stuck.plan().cells[0]
        assert (str(cell.emulator_cpus), str(cell.pool_now)) == ("0", "0-1")
        grown = stuck.having(*stuck.guests, guest(5))
        assert pool(grown) == "0-1", "and it is taken before a new one"
        free = stuck.changed(replace(stuck.find(2), busy=False)).settle()
        assert str(free.plan().cells[0].pool_now) == "0"

    def test_it_does_not_outlive_the_guest(self) -> None:
        world = World(EIGHT, fleet(2), pool_settings(ratio=1)).settle().without(1)
        stuck = replace(world.changed(replace(world.find(2), busy=True)), damped=False).settle()
        assert str(stuck.having().plan().cells[0].pool_now) == "0"
