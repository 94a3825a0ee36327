"""Traces over time: read, made up, replayed through the planner, told, drawn."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

import pytest

from agent import chart, simulating
from agent.cpuset import union
from agent.errors import Refused
from agent.generator import Demand, generate
from agent.policy import Policy
from agent.pool import PoolSettings, PoolSource
from agent.simulation import POINTS, Outcome, Point, Simulation
from agent.trace import Event, read
from tests import hosts
from tests.builders import host, pool_settings
from tests.schemas import fault, validated

if TYPE_CHECKING:
    from pathlib import Path

HEAD: Final = "time,guest,event,vcpus,cells,policy,weight,pins\n"
FREE: Final = pool_settings(ratio=2, source=PoolSource.FREE)
EIGHT: Final = host(cells=1, cores=8, smt=1)


def events(*rows: str, head: str = HEAD) -> list[Event]:
    return list(read([head, *(row + "\n" for row in rows)], "t.csv"))


# the table


def test_a_row_is_an_event() -> None:
    assert events("0,a,start,2,2,share,0.5,4 5", "1.5,a,stop,,,,,") == [
        Event(0.0, "a", True, 2, 2, Policy.SHARE, Fraction(1, 2), (4, 5)),  # noqa: FBT003 - starts
        Event(1.5, "a", starts=False),
    ]


def test_columns_come_in_any_order_and_those_after_the_third_may_be_absent() -> None:
    assert events("start,0,a", head="event,time,guest\n") == [Event(0.0, "a", starts=True)]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        pytest.param(["x,a,start"], "line 2: time 'x'", id="no time"),
        pytest.param(["nan,a,start"], "line 2: time 'nan'", id="no number"),
        pytest.param(["5,a,start", "4,b,start"], "line 3: time 4 is before", id="backwards"),
        pytest.param(["0,a,pause"], "neither start nor stop", id="another event"),
        pytest.param(["0,,start"], "a guest's name", id="no name"),
        pytest.param(["0,a,start,0"], "vcpus '0'", id="no vCPU"),
        pytest.param(["0,a,start,99999999"], "vcpus", id="too many vCPUs"),
        pytest.param(["0,a,start,2,3"], "cells '3'", id="more cells than vCPUs"),
        pytest.param(["0,a,start,1,1,hide"], "policy 'hide'", id="no policy"),
        pytest.param(["0,a,start,1,1,share,65"], "weight '65'", id="too heavy"),
        pytest.param(["0,a,start,2,1,share,1,4"], "1 pins for 2 vCPUs", id="a pin too few"),
        pytest.param(["0,a,start,1,1,share,1,x"], "pins 'x'", id="no pin"),
        pytest.param(["0,a,start,1,1,share,1,99999999999"], "pins", id="no such pCPU"),
        pytest.param(["0,a,start,1,1,share,1,4,5"], "more values", id="more than columns"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(rows: list[str], says: str) -> None:
    with pytest.raises(Refused, match=r"t\.csv: line") as refused:
        events(*rows)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("head", ["", "time,guest\n", "time,guest,event,colour\n"])
def test_a_table_without_its_columns_is_refused(head: str) -> None:
    with pytest.raises(Refused, match="line 1: the columns are"):
        events(head=head)


# made up


def test_the_same_seed_makes_up_the_same_trace_and_another_another() -> None:
    one, same, other = (list(generate(Demand(500, 64, seed))) for seed in (1, 1, 2))
    assert one == same != other
    found = list(read(one, "made up"))
    assert len(found) == 500
    running: set[str] = set()
    for event in found:
        (running.add if event.starts else running.remove)(event.guest)


def test_a_made_up_trace_asks_for_what_it_is_told_to() -> None:
    busy, last = 0.0, 0.0
    running: dict[str, int] = {}
    for event in read(generate(Demand(20_000, 256)), "made up"):
        busy += sum(running.values()) * (event.time - last)
        last = event.time
        if event.starts:
            running[event.guest] = event.vcpus
        else:
            del running[event.guest]
    assert 150 < busy / last < 350


# through the planner


def run(*rows: str, settings: PoolSettings = FREE, until: float | None = None) -> Outcome:
    simulation = Simulation(EIGHT, settings)
    for event in events(*rows):
        simulation.feed(event)
    if until is not None:
        simulation.feed(Event(until, "nobody", starts=False))
    return simulation.outcome


def test_sums_over_time_are_those_of_the_pools() -> None:
    out = run("0,a,start", "10,b,start", "20,c,start", "100,c,stop,,", until=200)
    assert (out.fitted, out.refused, out.peak_pool, out.peak_burnt) == (3, 0, 2, 3)
    assert out.repins == {"arrive": 3, "widen": 2, "narrow": 2}
    assert (out.growths, out.shrinks) == (1, 1)
    # 1 pCPU for 20 s, 2 until 30 s after c stopped (the shrink delay), then 1
    assert out.last == 130
    assert out.pool_seconds == 20 * 1 + 110 * 2
    assert out.burnt_seconds == 10 * 1 + 10 * 2 + 80 * 3 + 30 * 2


def test_who_does_not_fit_is_refused_and_his_stop_passed_over() -> None:
    out = run("0,a,start,7", "1,b,start,1", "2,b,stop", "3,a,stop", "4,c,start,7")
    assert (out.fitted, out.refused) == (2, 1)
    assert (out.fitted_isolated, out.peak_shortage) == (2, 0)


def test_pools_let_more_guests_in_than_a_pcpu_each_does() -> None:
    out = run(*(f"{n},g{n},start,2" for n in range(4)))
    assert (out.fitted, out.fitted_isolated) == (3, 2)


def test_pins_are_taken_as_they_are_and_evict_the_pool() -> None:
    out = run("0,a,start,1,1,isolate,1,7", "5,b,start,1,1,float,1,0", until=9)
    assert out.repins == {"arrive": 1, "evacuate": 1}


def test_a_policy_that_is_not_managed_takes_vcpus_only() -> None:
    out = run("0,a,start,4,1,float", "1,b,start,3,1,isolate")
    assert (out.peak_burnt, out.peak_pool, out.fitted) == (1, 1, 2)


def test_guests_of_several_cells_are_spread_and_no_pcpu_is_given_twice() -> None:
    simulation = Simulation(host(cells=3, cores=4, smt=2), FREE)
    for event in read(generate(Demand(400, 20, seed=3)), "made up"):
        simulation.feed(event)
        claims = [one.domain.claims for one in simulation._guests.values()]
        assert sum(map(len, claims)) == len(union(claims))
        if simulation._plan is not None:
            pools = [cell.emulator_cpus for cell in simulation._plan.cells]
            assert union(pools).isdisjoint(union(claims))
    assert simulation.outcome.peak_shortage == 0


def test_a_series_is_bounded_and_keeps_the_largest() -> None:
    out = Outcome(Fraction(8), first=0.0)
    for second in range(20_000):
        out.mark(Point(float(second), guests=second % 100))
    assert POINTS / 2 <= len(out.series) <= POINTS
    stretch = int(out.stretch)
    for point in out.series:
        seen = range(int(point.time), min(int(point.time) + stretch, 20_000))
        assert point.time % stretch == 0
        assert point.guests == max(second % 100 for second in seen)


# told and drawn


def simulated(*ratios: int) -> dict[str, Any]:
    lines = generate(Demand(300, 12, seed=1))
    told = [Fraction(ratio) for ratio in ratios]
    return simulating.simulate(
        host(cells=2, cores=4, smt=2), pool_settings(), told, lines, "made up", lambda _: None
    )


def test_the_document_compares_ratios() -> None:
    document = simulated(8, 1, 2)
    assert [row["ratio"] for row in document["ratios"]] == ["1", "2", "8"]
    assert document["events"] == 300
    assert validated("simulate", document) == document
    row = document["ratios"][0]
    for wrong in ({**row, "repins": {"odd": 1}}, {**row, "ratio": "2/2"}, {**row, "more": 1}):
        assert fault("simulate", {**document, "ratios": [wrong]}) is not None
    for row in document["ratios"]:
        assert row["more_guests"] == row["guests"] - row["guests_isolated"]
        assert row["pool_cpus"]["mean"] <= row["pool_cpus"]["peak"]
        assert json.loads(json.dumps(row)) == row
    means = [row["pool_cpus"]["mean"] for row in document["ratios"]]
    assert means == sorted(means, reverse=True)


def test_a_pool_of_what_guests_set_aside_is_one_of_free_pcpus_here() -> None:
    reserved = pool_settings(source=PoolSource.RESERVED)
    lines = [HEAD, "0,a,start\n", "9,a,stop\n"]
    document = simulating.simulate(EIGHT, reserved, [Fraction(8)], lines, "t", lambda _: None)
    assert document["ratios"][0]["pool_cpus"]["peak"] == 1


def test_the_chart_is_a_picture_with_each_line_named() -> None:
    root = ET.fromstring(simulating.draw(simulated(1, 8)))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"ratio 1", "ratio 8", "one for each guest", "guests"} <= set(texts)
    assert root.get("viewBox")


@pytest.mark.parametrize("points", [[], [(0.0, 0.0)], [(0.0, 1.0), (5.0, 0.0)]])
def test_a_chart_of_little_is_one_all_the_same(points: list[tuple[float, float]]) -> None:
    lines = [chart.Line("a <b>", points)]
    assert ET.fromstring(chart.draw("t & u", "", [chart.Panel("p", lines)], 0.0)).tag.endswith(
        "svg"
    )


def simulate(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "agent", "simulate", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "--json" in arguments and not done.returncode:
        validated("simulate", json.loads(done.stdout))
    return done


def test_from_outside(tmp_path: Path) -> None:
    root = hosts.write(hosts.TWO_CELLS_EIGHT_CPUS, tmp_path / "root")
    trace, picture = tmp_path / "t.csv", tmp_path / "c.svg"
    made = ("--sysfs-root", root, "--generate", 50, "--seed", 7, "--trace", trace)
    first = simulate(*made, "--ratio", 2, "--ratio", 4, "--svg", picture, "--json")
    assert (first.returncode, first.stderr) == (0, "")
    again = simulate("--sysfs-root", root, "--trace", trace, "--ratio", 2, "--ratio", 4, "--json")
    assert json.loads(again.stdout) == json.loads(first.stdout), "the trace was kept"
    assert picture.read_text().startswith("<svg")
    table = simulate("--sysfs-root", root, "--trace", trace, "--ratio", 2).stdout
    assert table.splitlines()[0].startswith("50 events")
    assert "pool pCPUs" in table
    config = tmp_path / "config.toml"
    config.write_text('[pool]\nsource = "reserved"\n')
    told = simulate("--sysfs-root", root, "--trace", trace, "--config", config)
    assert told.returncode == 0
    assert "'reserved' is taken for 'free'" in told.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        pytest.param((), 2, "--trace", id="no trace"),
        pytest.param(("--trace", "/none"), 1, "/none", id="no such file"),
        pytest.param(("--generate", "9", "--svg", "/none/x"), 1, "/none/x", id="no such folder"),
        pytest.param(("--trace", "pyproject.toml"), 1, "line 1", id="another file"),
    ],
)
def test_every_refusal_is_one_line(arguments: tuple[str, ...], status: int, says: str) -> None:
    done = simulate(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr
