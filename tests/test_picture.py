"""What is drawn of a host: each pCPU once, with its use, and as many guests as it carries."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings

from agent import picture, report, topology
from agent.cpuset import CpuSet, union
from agent.metrics import gauges
from agent.picture import Fact, Tone, Use
from tests.anyworld import worlds
from tests.documents import cell, guest, plan, step
from tests.hosts import MACHINES, Machine, host
from tests.pages import middle, told

if TYPE_CHECKING:
    from agent.picture import CellPicture
    from tests.worlds import World

STATES: Final = {
    Use.OFFLINE: "offline",
    Use.CLAIMED: "claimed",
    Use.REALTIME: "claimed",
    Use.POOL: "pool",
    Use.RESERVED: "reserved",
    Use.CANDIDATE: "free",
    Use.ISOLATED: "free",
    Use.ONLINE: "free",
}
"""What /metrics calls each use, where a pool is as it should be."""


def of_plan(*guests: Any, **row: Any) -> CellPicture:  # noqa: ANN401 - JSON
    """Return the picture of a cell with such a row, of four pCPUs."""
    here = topology.to_json(host(Machine(cores=4)))
    (found,) = picture.of_plan(plan(*guests, cells=(cell(**row),)), here).cells
    return found


def fact(found: CellPicture, name: str) -> Fact | None:
    return next((one for one in found.facts if one.name == name), None)


@settings(max_examples=60)
@given(worlds())
def test_pictures_and_metrics_agree_on_what_each_pcpu_is_used_for(world: World) -> None:
    decided = world.plan()
    document = report.plan(decided, world.steps(decided))
    for row in document["cells"]:
        row["pool_now"] = row["pool"]  # the pools as they will be: nothing joins or leaves
    pools = {one.id: one.emulator_cpus for one in decided.cells}
    shown = gauges.shown(decided, world.host, world.settings, (), {}, {}, pools).series
    drawn = picture.of_plan(document, topology.to_json(world.host))
    counted = Counter(
        (str(one.id), STATES[use]) for one in drawn.cells for use in one.uses.values()
    )
    assert dict(counted) == {labels: count for labels, count in shown["cell_cpus"] if count}
    carried = {
        (str(one.id), str(cpu)): count for one in drawn.cells for cpu, count in one.guests.items()
    }
    assert carried == {labels: count for labels, count in shown["cpu_guests"] if count}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_each_pcpu_is_in_one_core_of_one_cell_and_has_one_use(machine: Machine) -> None:
    here = host(machine)
    document = plan(cells=tuple(cell(int(one.id)) for one in here.cells))
    for drawn in (
        picture.of_topology(topology.to_json(here)),
        picture.of_plan(document, topology.to_json(here)),
    ):
        cores = [cpu for one in drawn.cells for core in one.cores for cpu in core]
        assert sorted([*cores, *drawn.homeless]) == [pcpu.id for pcpu in here.cpus]
        for one in drawn.cells:
            by_use = [cpus for _, cpus in one.by_use()]
            assert sum(map(len, by_use)) == len(union(by_use)) == len(one.uses)


def test_guests_are_counted_where_they_may_run_and_only_in_a_pool() -> None:
    crowd = (
        guest(0, emulator_pcpus="1-2"),
        guest(1, emulator_pcpus="1-2"),
        guest(2, emulator_pcpus="2"),
        guest(3, emulator_pcpus="3"),
        guest(4, emulator_pcpus=None),
    )
    found = of_plan(*crowd, pool="1-2", pool_now="0-1")
    assert found.guests == {1: 2, 2: 3}
    assert fact(found, "carries") == Fact("carries", "2 guests on 1, 3 guests on 2")


def test_pcpus_that_carry_alike_are_told_together() -> None:
    crowd = (guest(0, emulator_pcpus="0-1,3"), guest(1, emulator_pcpus="2"))
    found = of_plan(*crowd, pool="0-3", pool_now="0-3")
    assert fact(found, "carries") == Fact("carries", "1 guest each")


def test_pcpus_that_carry_nobody_keep_those_that_do_from_being_all() -> None:
    found = of_plan(guest(0, emulator_pcpus="1"), pool="0-1", pool_now="0-1")
    assert fact(found, "carries") == Fact("carries", "1 guest on 1")


def test_one_pcpu_carries_all() -> None:
    found = of_plan(guest(0, emulator_pcpus="1"), pool="1", pool_now="1")
    assert fact(found, "carries") == Fact("carries", "1 guest")


def test_an_empty_pool_carries_nobody() -> None:
    assert fact(of_plan(), "carries") is None


def test_guests_that_are_not_simply_placed_are_counted_in_their_cell_the_worst_first() -> None:
    states = ("remote", "placed", "overcommitted", "remote", "collision", None)
    crowd = [guest(n, state=state) for n, state in enumerate(states)]
    crowd.append(guest(9, state="left", cell=1))
    told_of = fact(of_plan(*crowd), "amiss")
    assert told_of == Fact("amiss", "1 collision, 2 remote, 1 overcommitted", Tone.ODD)


def test_real_time_claims_and_reserved_pcpus_are_told_apart() -> None:
    found = of_plan(claimed="0-1", realtime="1", reserved="2")
    assert [use.name for use in found.uses.values()] == [
        "CLAIMED",
        "REALTIME",
        "RESERVED",
        "ONLINE",
    ]
    assert fact(found, "claimed") == Fact("claimed", "0-1")
    assert fact(found, "real-time") == Fact("real-time", "1")
    assert fact(found, "reserved") == Fact("reserved", "2")


def test_a_daemon_that_tells_neither_is_drawn_without_them() -> None:
    row = cell(claimed="0")
    del row["realtime"], row["reserved"]
    found = picture.of_plan(plan(cells=(row,)), topology.to_json(host(Machine()))).cells[0]
    assert found.uses[0] is Use.CLAIMED


def test_the_core_tells_a_picture_of_each_use() -> None:
    """The host that pages are tried on has a pCPU of each use but one that leaves by itself."""
    document = told(middle())
    drawn = picture.of_plan(document, document["topology"])
    seen = {use for use, _ in drawn.legend()}
    assert seen == picture.IN_PLAN.keys() - {Use.LEAVES}
    assert [one.guests for one in drawn.cells if one.guests]
    assert fact(drawn.cells[0], "short of") is not None
    assert fact(drawn.cells[1], "amiss") is not None


def test_a_legend_has_what_is_seen_in_the_order_of_uses() -> None:
    here = topology.to_json(host(Machine(cores=4)))
    rows = (cell(pool="1", pool_now="1", claimed="3"),)
    legend = list(picture.of_plan(plan(cells=rows), here).legend())
    assert legend == [
        (Use.POOL, "pool"),
        (Use.CLAIMED, "claimed"),
        (Use.ONLINE, "free, not for the pool"),
    ]


def test_moves_that_are_alike_are_one() -> None:
    steps = [step(0, "evacuate", "0", "2"), step(1, "evacuate", "1", "2", iothread=7)]
    steps.append(step(2, "widen", "2", "2-3"))
    (first, second) = picture.moves(plan(guest(0), guest(1), steps=steps))
    assert (first.origin, first.target, first.who) == (
        "within 0-1",
        "2",
        ("vm-0", "vm-1 iothread 7"),
    )
    assert first.why == "pCPU claimed or offline"
    assert second.who == (guest(2)["uuid"],)


def test_cells_are_drawn_from_what_a_plan_names_where_no_host_is_told() -> None:
    (found,) = picture.of_plan(plan(cells=(cell(pool="0", reserved="3"),))).cells
    assert not found.cored
    assert found.uses == {0: Use.JOINS, 1: Use.UNTOLD, 2: Use.UNTOLD, 3: Use.RESERVED}
    assert CpuSet(found.uses) == CpuSet.parse("0-3")
