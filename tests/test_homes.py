"""The cell in whose pool a guest counts."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.planner import State
from agent.policy import Policy
from agent.pool import OnShortage
from tests.builders import cell_settings, guest, host, pool_settings, uuid_of
from tests.worlds import World

if TYPE_CHECKING:
    from agent.snapshot import Guest
    from agent.topology import Host

TWO: Final = host(cells=2, cores=4, smt=2)
FOUR: Final = host(cells=4, cores=1, smt=2)


def homes(world: World) -> dict[int, int | None]:
    """Return where each guest counts, by its number."""
    return {int(one.uuid[-12:], 16): one.cell for one in world.plan().guests}


def home(one: Guest, on: Host = TWO) -> int | None:
    return homes(World(on, (one,)))[1]


@pytest.mark.parametrize(
    ("one", "cell"),
    [
        pytest.param(
            guest(cell=1, memnode=[0], memory=[0], pins=("0",)), 1, id="what its metadata names"
        ),
        pytest.param(
            guest(cell=7, memnode=[1], memory=[0], pins=("0",)),
            1,
            id="unless there is no such cell: the host cell of guest cell 0",
        ),
        pytest.param(
            guest(memnode=[0, 1], memory=[1], pins=("0",)),
            1,
            id="unless that names two: the cell of all its memory",
        ),
        pytest.param(
            guest(memnode=[5], memory=[1], pins=("0",)), 1, id="unless that has no pCPUs: likewise"
        ),
        pytest.param(
            guest(memory=[0, 1], pins=("0", "8", "9")),
            1,
            id="else the cell with most of its claims",
        ),
        pytest.param(guest(pins=("8", "0")), 0, id="of equals the lower"),
        pytest.param(guest(pins=("8", "8", "0")), 1, id="each vCPU counts"),
        pytest.param(guest(pins=("8-9",)), 1, id="else a cell that its vCPUs reach"),
        pytest.param(guest(), 0, id="else any, the lower of equals"),
        pytest.param(guest(pins=("99-100",)), 0, id="even if its vCPUs reach none"),
    ],
)
def test_the_natural_home(one: Guest, cell: int) -> None:
    assert home(one) == cell


def test_a_cell_that_the_metadata_names_in_vain_is_warned_about() -> None:
    decided = World(TWO, (guest(cell=7),)).plan()
    assert [(one.guest, one.field) for one in decided.warnings] == [("guest-1", "metadata cell")]


def test_who_is_not_managed_has_no_home() -> None:
    assert home(guest(policy=Policy.FLOAT, memnode=[1])) is None
    assert home(guest(running=False, memnode=[1])) is None


def test_claims_on_a_cell_whose_pcpus_are_off_line_do_not_count() -> None:
    half = host(cells=2, cores=2, smt=2, offline="4-7")
    assert home(guest(pins=("4", "5", "0")), half) == 0


class TestEmptiest:
    """The cell with the lowest occupancy that its vCPUs reach."""

    def test_weight_over_what_the_cell_could_carry(self) -> None:
        busy = (
            guest(1, memnode=[0], weight=2),
            guest(2, memnode=[1], weight=3),
            guest(3, pins=("0-15",)),
        )
        assert homes(World(TWO, busy))[3] == 0
        tight = pool_settings({0: cell_settings(cpus="0-1", ratio=1)}, ratio=1)
        assert homes(World(TWO, busy, tight))[3] == 1, "2 of 2 against 3 of 8"

    def test_max_cpus_bounds_what_a_cell_could_carry(self) -> None:
        busy = (guest(1, memnode=[0]), guest(2, memnode=[1], weight=2), guest(3))
        small = pool_settings({0: cell_settings(max_cpus=1, ratio=1)}, ratio=1)
        assert homes(World(TWO, busy, small))[3] == 1

    def test_a_cell_without_candidates_comes_last(self) -> None:
        one = guest(1, vcpu_cpuset="0-15")
        assert homes(World(TWO, (one,), pool_settings(reserved_cpus="0-7")))[1] == 1

    def test_in_order_of_age_whatever_the_order_of_input(self) -> None:
        young, old = guest(1, age=9), guest(2, age=5)
        assert homes(World(TWO, (young, old))) == homes(World(TWO, (old, young))) == {1: 1, 2: 0}

    def test_of_one_age_the_uuid_decides(self) -> None:
        assert homes(World(TWO, (guest(2, age=1), guest(1, age=1)))) == {1: 0, 2: 1}

    def test_it_stays_while_it_runs(self) -> None:
        world = World(TWO, (guest(1), guest(2))).settle()
        assert homes(world) == {1: 0, 2: 1}
        alone = world.without(1).settle()
        assert homes(alone) == {2: 1}
        again = replace(alone.find(2), start="another")
        assert homes(alone.changed(again)) == {2: 0}, "another start is asked again"

    def test_who_stays_counts_before_older_newcomers(self) -> None:
        world = World(TWO, (guest(5, weight=4),)).settle()
        assert homes(world.having(*world.guests, guest(1, age=0))) == {1: 1, 5: 0}

    def test_it_moves_when_its_cell_is_gone(self) -> None:
        world = World(TWO, (guest(1), guest(2))).settle()
        half = replace(world, host=host(cells=2, cores=4, smt=2, offline="8-15"))
        assert homes(half) == {1: 0, 2: 0}

    def test_it_moves_when_its_definition_names_another(self) -> None:
        world = World(TWO, (guest(1),)).settle()
        tied = replace(world.find(1), domain=guest(1, memnode=[1]).domain)
        assert homes(world.changed(tied)) == {1: 1}


SPILL: Final = pool_settings(ratio=1, on_shortage=OnShortage.SPILL, cpus="0-1,8-15")
"""Two places in cell 0, eight in cell 1."""


class TestSpill:
    """The newest that do not fit go to the nearest cell that has room."""

    def crowd(self, count: int = 3) -> World:
        return World(TWO, tuple(guest(n, memnode=[0]) for n in range(1, count + 1)), SPILL)

    def states(self, world: World) -> dict[int, State | None]:
        return {int(one.uuid[-12:], 16): one.state for one in world.plan().guests}

    def test_the_newest_is_remote(self) -> None:
        assert homes(self.crowd()) == {1: 0, 2: 0, 3: 1}
        assert self.states(self.crowd())[3] == State.REMOTE

    def test_shortage_is_told_at_its_natural_home(self) -> None:
        cells = self.crowd(4).plan().cells
        assert [(cell.guests, cell.shortage) for cell in cells] == [(2, 2), (2, 0)]

    def test_who_fits_is_not_sent_away(self) -> None:
        guests = (guest(1, memnode=[0]), guest(2, memnode=[0], weight=2), guest(3, memnode=[0]))
        assert homes(World(TWO, guests, SPILL)) == {1: 0, 2: 1, 3: 0}

    def test_the_nearest_by_distance_then_by_id(self) -> None:
        spill = pool_settings(ratio=1, on_shortage=OnShortage.SPILL)
        crowd = tuple(guest(n, memnode=[0]) for n in range(1, 8))
        far = {(a, b): 10 if a == b else 40 for a in range(4) for b in range(4)}
        far[0, 3] = 20
        hosts = host(cells=4, cores=1, smt=2, distances=far)
        assert homes(World(hosts, crowd, spill)) == {1: 0, 2: 0, 3: 3, 4: 3, 5: 1, 6: 1, 7: 2}

    def test_distances_that_are_not_told_are_all_alike(self) -> None:
        spill = pool_settings(ratio=1, on_shortage=OnShortage.SPILL)
        crowd = tuple(guest(n, memnode=[2]) for n in range(1, 5))
        mute = host(cells=4, cores=1, smt=2, distances={})
        assert homes(World(mute, crowd, spill)) == {1: 2, 2: 2, 3: 0, 4: 0}

    def test_nowhere_is_room(self) -> None:
        spill = pool_settings(ratio=1, on_shortage=OnShortage.SPILL)
        crowd = tuple(guest(n, memnode=[1]) for n in range(1, 10))
        world = World(FOUR, crowd, spill)
        assert homes(world)[9] == 1
        assert self.states(world)[9] == State.OVERCOMMITTED

    def test_natives_go_before_remote_guests(self) -> None:
        world = self.crowd().settle()
        natives = tuple(guest(n, memnode=[1], age=n) for n in range(10, 18))
        crowded = world.having(*world.guests, *natives)
        assert homes(crowded)[3] == 0
        assert self.states(crowded)[3] == State.OVERCOMMITTED

    def test_only_from_cells_that_spill(self) -> None:
        settings = pool_settings({1: cell_settings(ratio=1, cpus="8")}, ratio=1, cpus="0-1")
        settings = replace(
            settings, default=replace(settings.default, on_shortage=OnShortage.SPILL)
        )
        stay = (*(guest(n, memnode=[1]) for n in range(1, 4)), guest(4, memnode=[0]))
        assert homes(World(TWO, stay, settings)) == {1: 1, 2: 1, 3: 1, 4: 0}

    def test_who_has_to_go_elsewhere_goes_in_order_of_age(self) -> None:
        spill = pool_settings(ratio=1, on_shortage=OnShortage.SPILL, cpus="0-3,5")
        world = World(FOUR, tuple(guest(n, memnode=[0]) for n in (1, 2, 3)), spill).settle()
        assert homes(world)[3] == 1
        natives = tuple(guest(n, memnode=[1]) for n in (4, 5))
        crowded = world.having(*world.guests, *natives, guest(6, memnode=[0]))
        assert homes(crowded) == {1: 0, 2: 0, 3: 2, 4: 1, 5: 1, 6: 0}

    def test_back_home_when_there_has_been_room_for_the_shrink_delay(self) -> None:
        world = self.crowd().settle().without(1).settle()
        assert world.memory.guests[uuid_of(3)].room_since == world.now
        assert homes(world.later(29.9)) == {2: 0, 3: 1}
        assert homes(world.later(30)) == {2: 0, 3: 0}
        assert homes(replace(world, damped=False)) == {2: 0, 3: 0}, "a reload does not wait"

    def test_room_that_was_taken_meanwhile_starts_the_wait_again(self) -> None:
        world = self.crowd().settle().without(1).settle().later(20)
        world = world.having(*world.guests, guest(9, memnode=[0])).settle()
        assert homes(world.later(100)) == {2: 0, 3: 1, 9: 0}
        world = world.later(100).without(9).settle()
        assert homes(world.later(29.9))[3] == 1
        assert homes(world.later(30))[3] == 0

    def test_the_planner_asks_to_be_woken_when_the_wait_is_over(self) -> None:
        settings = replace(SPILL, default=replace(SPILL.default, min_cpus=2))
        world = replace(self.crowd(), settings=settings).settle().without(1).settle()
        assert all(cell.oversize_since is None for cell in world.memory.cells.values())
        assert world.later(9).plan().deadline == world.now + 30

    def test_of_two_remote_guests_the_older_returns(self) -> None:
        world = self.crowd(4).settle().without(1).settle().later(30).settle()
        assert homes(world) == {2: 0, 3: 0, 4: 1}

    def test_room_that_is_too_small_for_a_newcomer_is_still_room_for_who_is_away(self) -> None:
        world = self.crowd().settle().without(1)
        world = replace(world.having(*world.guests, guest(9, memnode=[0], weight=2)), damped=False)
        assert homes(world) == {2: 0, 3: 0, 9: 1}
        assert homes(world.settle()) == {2: 0, 3: 0, 9: 1}, "and that settles it"

    def test_who_is_driven_home_by_a_lack_of_room_is_a_native_again(self) -> None:
        settings = pool_settings(ratio=1, on_shortage=OnShortage.SPILL, cpus="0-3,8-10")
        crowd = [guest(1, memnode=[0], weight=3), guest(2, memnode=[0], weight=2)]
        crowd += [guest(3, memnode=[1]), guest(4, memnode=[0], weight=1)]
        world = World(TWO, tuple(crowd), settings).settle()
        assert homes(world) == {1: 0, 2: 1, 3: 1, 4: 0}
        claim = guest(9, policy=Policy.FLOAT, pins=("10",))
        light = replace(world.find(1), verdict=replace(world.find(1).verdict, weight=Fraction(2)))
        world = world.changed(light).having(*world.changed(light).guests, claim)
        assert homes(world) == homes(world.settle()), "one cycle settles it"
        assert homes(world) == {1: 0, 2: 0, 3: 1, 4: 1, 9: None}, "the newest is who has to go"

    def test_it_stays_where_it_went(self) -> None:
        world = self.crowd().settle()
        for seconds in (1, 100, 10000):
            assert homes(world.later(seconds)) == {1: 0, 2: 0, 3: 1}
        assert world.plan().deadline is None

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 3), st.sampled_from([Fraction(1, 2), Fraction(1), Fraction(2)])
            ),
            max_size=12,
        )
    )
    def test_nobody_is_remote_beyond_the_room_of_his_host_cell(
        self, crowd: list[tuple[int, Fraction]]
    ) -> None:
        guests = tuple(
            guest(n, memnode=[cell], weight=weight) for n, (cell, weight) in enumerate(crowd, 1)
        )
        spill = pool_settings(ratio=2, on_shortage=OnShortage.SPILL)
        decided = World(FOUR, guests, spill).plan()
        remote = {one.cell for one in decided.guests if one.state is State.REMOTE}
        for cell in decided.cells:
            if cell.id in remote:
                assert cell.weight <= len(cell.candidates) * 2
        assert sum(cell.guests for cell in decided.cells) == len(guests)

    def test_a_cell_whose_own_guests_do_not_fit_takes_no_other_cells_guests(self) -> None:
        natives = [guest(n, memnode=[1], weight=w) for n, w in ((3, 1), (4, 2), (5, 2))]
        strangers = [guest(n, memnode=[0], weight=2) for n in (1, 2)]
        strangers.append(guest(6, memnode=[0], weight=Fraction(1, 2)))
        spill = pool_settings(ratio=2, on_shortage=OnShortage.SPILL)
        decided = World(host(cells=2, cores=1, smt=2), (*strangers, *natives), spill).plan()
        assert {one.cell for one in decided.guests if one.state is State.REMOTE} == set()


def test_memory_of_another_start_is_no_memory() -> None:
    world = World(TWO, tuple(guest(n, memnode=[0]) for n in range(1, 4)), SPILL).settle()
    assert world.memory.guest(uuid_of(3), "start-3") is not None
    again = replace(world.find(3), start="another")
    assert homes(world.changed(again).without(1)) == {2: 0, 3: 0}, "no wait for a newcomer"
