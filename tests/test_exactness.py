"""Whole plans against oracles: pools, homes, spill, and who gets which pCPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cpuset import CpuSet
from agent.placing import spread
from agent.policy import Policy
from agent.pool import CellMemory, Memory, OnShortage, PoolSettings, PoolSource
from tests import oracles
from tests.anyworld import NOTHING, consistent, draw_cell_settings, draw_guest, draw_world, some
from tests.builders import ISOLATE, host
from tests.effort import examples
from tests.worlds import World

if TYPE_CHECKING:
    from random import Random

    from agent.snapshot import Guest
    from agent.topology import Host

pytestmark = pytest.mark.soak

RANDOMS: Final = st.randoms(use_true_random=True)


def draw_cell(random: Random) -> Host:
    """Return a host of one cell, of up to 12 pCPUs."""
    smt = random.choice([1, 2, 4])
    cores = random.randint(1, 12 // smt)
    present = host(cores=cores, smt=smt).online
    return host(
        cores=cores,
        smt=smt,
        l3_cores=random.choice([None, 0, 1, 2, 3]),
        offline=str(some(random, present) - CpuSet.of(0)) if chance(random, 0.2) else "",
        isolated=str(some(random, present)) if chance(random, 0.2) else "",
    )


def chance(random: Random, one_in: float) -> bool:
    return random.random() < one_in


def floating(one: Guest) -> Guest:
    """Return the guest without a claim, so that there is something left to choose from."""
    vcpus = tuple(replace(vcpu, cpus=None) for vcpu in one.domain.vcpus)
    bare = replace(one.domain, vcpus=vcpus, claims=NOTHING, realtime_claims=NOTHING, nova=None)
    return replace(one, domain=bare)


def draw_one_cell(random: Random) -> World:
    """Return guests on one cell, with a pool there already, in any state at all."""
    shown = draw_cell(random)
    whole = shown.online
    count = random.randint(1, 8)
    crowd = [draw_guest(random, n, whole, cells=1) for n in range(1, count + 1)]
    few = [one if chance(random, 0.4) else floating(one) for one in crowd]
    least = random.randint(1, max(1, len(whole) - 2))
    own = replace(draw_cell_settings(random, whole), min_cpus=least, max_cpus=0)
    if chance(random, 0.8):
        own = replace(own, cpus=NOTHING, source=PoolSource.FREE)
    present = some(random, whole) if chance(random, 0.7) else NOTHING
    return World(
        shown,
        consistent(few),
        PoolSettings(own, count_inactive=chance(random, 0.7)),
        manage=ISOLATE if chance(random, 0.3) else frozenset(Policy),
        memory=Memory({shown.cells[0].id: CellMemory(present)}),
        partition=some(random, whole, 1) if chance(random, 0.1) else None,
        damped=False,
    )


@settings(max_examples=examples(2000, 20_000))
@given(RANDOMS)
def test_a_pool_is_the_best_of_all_sets(random: Random) -> None:
    world = draw_one_cell(random)
    assert world.plan().cells[0].emulator_cpus == oracles.pool(world)


@settings(max_examples=examples(500, 20_000))
@given(RANDOMS)
def test_candidates_are_what_the_rules_leave(random: Random) -> None:
    world = draw_world(random, random.randint(0, 8))
    decided = world.plan()
    expected = {cell.id: oracles.candidates(world, cell) for cell in world.host.cells}
    assert {cell.id: set(cell.candidates) for cell in decided.cells} == expected


def distant(random: Random, shown: Host) -> Host:
    """Return the host with distances of any kind."""
    cells = (
        replace(
            cell, distances=tuple((to, random.choice([12, 20, 32])) for to, _ in cell.distances)
        )
        for cell in shown.cells
    )
    return replace(shown, cells=tuple(cells))


@settings(max_examples=examples(1000, 20_000))
@given(RANDOMS)
def test_homes_are_where_the_rules_send_each_guest_in_turn(random: Random) -> None:
    world = draw_world(random, random.randint(0, 10))
    if chance(random, 0.7):
        spill = replace(world.settings.default, on_shortage=OnShortage.SPILL)
        world = replace(world, settings=replace(world.settings, default=spill))
    world = replace(world, host=distant(random, world.host))
    found = {one.uuid: one.cell for one in world.plan().guests if one.managed}
    assert found == oracles.homes(world)


@settings(max_examples=examples(500, 20_000))
@given(st.lists(st.sampled_from([None, 0, 1, 2, 3, 9]), min_size=1, max_size=6), st.integers(1, 4))
def test_single_pcpus_are_shared_out_with_the_fewest_moves_and_the_youngest_move(
    held: list[int | None], count: int
) -> None:
    places = {str(n): cpu for n, cpu in enumerate(held)}
    found = spread(places, host(cores=count, smt=1).online)
    moved = tuple(int(found[str(n)] != cpu) for n, cpu in enumerate(held))
    assert moved == oracles.fewest_moves(held, range(count))
