"""Many guests come and go within seconds: one growth, one shrink, no flapping.

Each wake is one cycle. The clock is the world's own, so that hours pass in no time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.transition import Kind, Reason
from tests.builders import guest, host, pool_settings, uuid_of
from tests.effort import examples
from tests.node import Node, pools
from tests.worlds import World

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from random import Random

    from agent.cpuset import CpuSet
    from agent.pool import PoolSettings
    from agent.snapshot import Guest
    from agent.transition import Step

HOST: Final = host(cells=2, cores=16, smt=2)
DELAY: Final = 30.0
RATIO_FOUR: Final = pool_settings(ratio=4)
FORTY: Final = tuple(guest(n, memnode=[n % 2]) for n in range(1, 41))


class Storm:
    """A world, the pools after each wake, and all steps that were taken."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pools: list[tuple[float, list[CpuSet]]] = []
        self.steps: list[Step] = []

    def wake(self, *guests: Guest, after: float = 1.0) -> None:
        """Let time pass and let exactly these guests be there; the daemon runs one cycle."""
        world = self.world.later(after).having(*guests)
        plan = world.plan()
        steps = world.steps(plan)
        self.world = world.carry_out(plan, steps)
        self.pools.append((world.now, [cell.emulator_cpus for cell in plan.cells]))
        self.steps += steps

    def sizes(self, cell: int) -> list[int]:
        return [len(pools[cell]) for _, pools in self.pools]

    def reasons(self) -> Counter[Reason]:
        return Counter(step.reason for step in self.steps)

    def present(self, *, without: Iterable[int] = ()) -> list[Guest]:
        gone = {uuid_of(number) for number in without}
        return [one for one in self.world.guests if one.uuid not in gone]


def test_a_power_on_of_everything_only_grows_and_pins_each_newcomer_once() -> None:
    storm = Storm(World(HOST, settings=RATIO_FOUR))
    for arrived in (3, 17, 18, 40):
        storm.wake(*storm.present(), *FORTY[len(storm.world.guests) : arrived])
    for cell in (0, 1):
        assert storm.sizes(cell) == sorted(storm.sizes(cell))
        assert storm.sizes(cell)[-1] == 5
    assert storm.reasons()[Reason.ARRIVE] == 40
    assert storm.reasons().keys() <= {Reason.ARRIVE, Reason.WIDEN}


def test_a_power_on_in_one_wake_is_one_growth_and_one_pin_each() -> None:
    storm = Storm(World(HOST, settings=RATIO_FOUR))
    storm.wake(*FORTY)
    assert storm.reasons() == {Reason.ARRIVE: 40}


def test_an_evacuation_moves_nobody_until_it_is_over_and_then_shrinks_once() -> None:
    storm = Storm(World(HOST, settings=RATIO_FOUR))
    storm.wake(*FORTY)
    storm.steps.clear()
    for last in (30, 20, 9, 6):
        storm.wake(*storm.present(without=range(last, 41)), after=5)
    assert storm.steps == []
    assert storm.sizes(0) == [5] * 5
    for _ in range(90):
        storm.wake(*storm.present())
    assert storm.sizes(0)[-1] == 1
    changes = [one != two for one, two in pairwise(storm.sizes(0))]
    assert sum(changes) == 2, "to the largest need of the window, and to what is left"
    assert storm.reasons().keys() == {Reason.NARROW}


def reboots(settings: PoolSettings, guests: tuple[Guest, ...], pause: float) -> Storm:
    """Hard-reboot all guests, one after the other; each starts on its original pin again."""
    storm = Storm(World(HOST, settings=settings))
    storm.wake(*guests)
    storm.steps.clear()
    for number, one in enumerate(guests, 1):
        off = replace(one, domain=replace(one.domain, id=None), start="")
        storm.wake(*storm.present(without={number}), off)
        storm.wake(*storm.world.guests, after=pause)
        again = replace(one, start=f"again-{number}", age=100 + number)
        storm.wake(*storm.present(without={number}), again)
    return storm


NOVA: Final = tuple(
    guest(n, emulator=str(n), pins=(str(16 + n),), memnode=[0], nova=True) for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("settings", "guests"),
    [
        pytest.param(RATIO_FOUR, FORTY, id="free"),
        pytest.param(pool_settings(ratio=4), NOVA, id="reserved: Nova's isolate"),
        pytest.param(pool_settings(ratio=1), NOVA, id="at ratio 1"),
    ],
)
@pytest.mark.parametrize("pause", [0.5, 20.0])
def test_a_hard_reboot_of_each_guest_costs_exactly_one_repin_each(
    settings: PoolSettings, guests: tuple[Guest, ...], pause: float
) -> None:
    storm = reboots(settings, guests, pause)
    taken = Counter((step.uuid, step.kind) for step in storm.steps)
    found = {cpus for _, seen in storm.pools for cpus in seen}
    moved = {one.uuid for one in guests if one.domain.emulator not in found}
    assert set(taken) == {(uuid, Kind.EMULATOR) for uuid in moved}
    assert set(taken.values()) == {1}
    assert storm.reasons() == {Reason.ARRIVE: len(moved)}
    assert len({tuple(seen) for _, seen in storm.pools}) == 1, "and no pool changes"


@pytest.mark.soak
@settings(max_examples=examples(60, 3000))
@given(st.randoms(use_true_random=True))
def test_whatever_comes_and_goes_a_pool_shrinks_once_in_a_delay_at_most(random: Random) -> None:
    storm = Storm(World(HOST, settings=RATIO_FOUR))
    for start in range(random.randint(5, 40)):
        some = random.sample(FORTY, random.randint(0, 40))
        fresh = [replace(one, start=f"{start}-{random.randint(0, 1)}", age=start) for one in some]
        storm.wake(*fresh, after=random.choice([0.1, 1, 1, 10, 40]))
    for cell in (0, 1):
        shrunk = [
            now
            for (_, before), (now, after) in pairwise(storm.pools)
            if not before[cell] <= after[cell]
        ]
        assert all(later - earlier >= DELAY for earlier, later in pairwise(shrunk))
        assert all(now - storm.pools[0][0] >= DELAY for now in shrunk)


def test_a_hard_reboot_costs_one_pin_of_the_daemon(tmp_path: Path) -> None:
    node = Node(tmp_path / "state.json", pools(ratio=1))
    try:
        uuid = node.start("a")
        node.reacted()
        node.fake.pins.clear()
        node.fake.destroy(uuid)
        node.react()
        node.fake.start(uuid)
        node.reacted()
        assert [pin.uuid for pin in node.fake.pins] == [uuid]
        assert node.react() is None
    finally:
        node.stop()
