"""What a plan says of each guest is true of the world that it was made from."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings

from agent.cpuset import union
from agent.snapshot import followers
from tests import invariants
from tests.anyworld import worlds
from tests.effort import examples

if TYPE_CHECKING:
    from agent.planner import InstanceNUMACell, NUMACell, Plan
    from agent.snapshot import Guest
    from tests.worlds import World

pytestmark = pytest.mark.soak

POOLED: Final = re.compile(
    r"(?P<count>\d+) guests? of weight (?P<weight>\S+) on (?P<cpus>\S+) at ratio (?P<ratio>\S+)"
    r" in cell (?P<cell>\d+)(, for want of room in cell (?P<natural>\d+))?\Z"
)
LEFT: Final = re.compile(r"left where it is: (?P<why>.*)\Z")
MOVED: Final = re.compile(r"moved to (?P<cpus>\S+), off claimed or offline pCPUs: (?P<why>.*)\Z")
NOWHERE: Final = re.compile(
    r"runs on claimed or offline pCPUs and has nowhere to go: (?P<why>.*)\Z"
)
FULL: Final = "the pool is full at the ratio"


@settings(max_examples=examples(400, 20_000))
@given(worlds())
def test_every_reason_is_true(world: World) -> None:
    settled = world.settle()
    for one in (world, settled):
        decided = one.plan()
        for planned in decided.guests:
            guest = next(each for each in one.guests if each.uuid == planned.uuid)
            if not planned.managed:
                unmanaged(one, guest, planned)
            elif match := POOLED.match(planned.reason):
                pooled(decided, planned, match)
            else:
                homeless(one, decided, guest, planned)


def unmanaged(world: World, guest: Guest, planned: InstanceNUMACell) -> None:
    true = {
        "left alone: it does not run": not guest.active,
        "left alone: its policy is not managed": guest.verdict.policy not in world.manage,
        "left alone: no NUMA cell of this host has pCPUs on line": not world.host.cells,
    }
    assert true[planned.reason]


def pooled(plan: Plan, planned: InstanceNUMACell, told: re.Match[str]) -> None:
    cell = home_of(plan, planned)
    here = [one for one in plan.guests if one.cell == cell.id and FULL not in one.reason]
    assert int(told["cell"]) == cell.id
    assert int(told["count"]) == len(here)
    assert Fraction(told["weight"]) == sum(one.weight for one in here)
    assert Fraction(told["ratio"]) == cell.ratio
    assert told["cpus"] == str(cell.emulator_cpus)
    assert planned.emulator_pcpus is not None
    assert planned.emulator_pcpus <= cell.emulator_cpus
    natural = plan.memory.guests[planned.uuid].natural
    assert told["natural"] == (None if natural == cell.id else str(natural))


def homeless(world: World, plan: Plan, guest: Guest, planned: InstanceNUMACell) -> None:
    cell = home_of(plan, planned)
    if told := LEFT.match(planned.reason):
        assert not runs_on_what_is_not_ours(world, guest)
        assert planned.emulator_pcpus is None
    elif told := MOVED.match(planned.reason):
        assert runs_on_what_is_not_ours(world, guest)
        assert str(planned.emulator_pcpus) == told["cpus"]
    else:
        told = NOWHERE.match(planned.reason)
        assert told is not None, planned.reason
        assert runs_on_what_is_not_ours(world, guest)
        assert planned.emulator_pcpus is None
    why = told["why"]
    if why == FULL:
        carried = [one for one in plan.guests if one.cell == cell.id and FULL not in one.reason]
        assert sum(one.weight for one in carried) + planned.weight > cell.capacity
    elif why == "its cell has no candidate":
        assert not cell.candidates
    else:
        assert guest.kernel is not None
        assert why == f"its own cgroup is narrowed to {guest.kernel.parent}"
        assert guest.kernel.parent is not None
        pcpus = cell.emulator_cpus & guest.kernel.parent
        assert not pcpus or cell.placement == "single"


def home_of(plan: Plan, planned: InstanceNUMACell) -> NUMACell:
    return next(cell for cell in plan.cells if cell.id == planned.cell)


def runs_on_what_is_not_ours(world: World, guest: Guest) -> bool:
    pins = [guest.domain.resting(world.host.online)]
    if world.settings.iothreads:
        pins += [one.cpus for one in followers(guest, guest.original) if one.cpus is not None]
    return invariants.harmful(union(pins), world)
