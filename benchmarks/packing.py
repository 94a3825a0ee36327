"""How many pCPUs pools take of simulated fleets, and how many guests fit.

Hosts of three shapes, each with made-up traces of its own. The provable minimum of a cell is the
weight of the guests at home there by the ratio, rounded up: with fewer a guest would share beyond
the ratio. Where fewer pCPUs are free in a cell, they are the minimum. Both are integrals over time.
The pool's is exact; the minimum changes with arrivals and departures only, so its is exact too.
Damping keeps a pool that has become too large for 30 s: it is measured with and without.

Then hosts are filled with guests of one size, until none fits: with a pCPU of its own for each
guest's emulator threads, and with pools. Nobody can fit more than the largest n for which
n vCPUs' pCPUs and n / ratio, rounded up, are at most those of a cell.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

from agent import trace
from agent.generator import Demand, generate
from agent.policy import Policy
from agent.pool import CellSettings, PoolSettings, PoolSource
from agent.simulation import Simulation
from agent.trace import Event
from benchmarks.findings import Chart, Findings, Goal, Table
from tests.builders import host

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.topology import Host
    from benchmarks.suite import Effort

GOAL: Final = 1.0
DELAY: Final = 30.0
RATIOS: Final = (1, 2, 4, 8, 16)
SIZES: Final = (1, 2, 4, 8, 16)
BUSY: Final = 0.8  # of the pCPUs of a host, which its trace asks for on average
NODE: Final = 2  # what oVirt sets aside on each host
SHAPES: Final = {
    "2 cells, 64 pCPUs": host(cells=2, cores=16, smt=2),
    "2 cells, 128 pCPUs": host(cells=2, cores=32, smt=2),
    "8 cells, 128 pCPUs": host(cells=8, cores=8, smt=2),
}


def run(effort: Effort) -> Findings:
    """Simulate the fleets, and fill hosts."""
    hosts, events = effort.of(3, 1), effort.pick(400, 80)
    rows, figures, least = [], {}, 0.0
    for name, shape in SHAPES.items():
        for ratio in effort.pick(RATIOS, (8,)):
            own = packed(shape, ratio, hosts, events)
            least = max(least, round(own["undamped"] / own["minimum"], 9))  # sums of floats
            figures[f"{name}, ratio {ratio}"] = own
            rows.append(
                (
                    name,
                    f"{ratio}",
                    f"{own['minimum']:.2f}",
                    f"{own['undamped'] / own['minimum']:.3f}",
                    f"{own['damped'] / own['minimum']:.3f}",
                    f"{own['each'] / own['minimum']:.2f}",
                    f"{own['node'] / own['minimum']:.2f}",
                )
            )
    columns = (
        "host",
        "ratio",
        "minimum, pCPUs",
        "pools",
        "pools, damped",
        "one each",
        "two a host",
    )
    filled, of_filled = fill(RATIOS)
    goals = [
        Goal("pool pCPUs, without damping", least, GOAL, "times the minimum"),
        Goal("guests that fit", of_filled["worst"], GOAL, "of the most that can", least=True),
    ]
    return Findings(
        goals,
        [Table("Emulator pCPUs of fleets, to the minimum", columns, rows), *filled],
        [picture(of_filled)],
        figures={"fleets": figures, "filled": of_filled},
        notes=["Two pCPUs a host, as oVirt has it, hold at no ratio: any number of guests share."],
    )


def settings(ratio: int, delay: float) -> PoolSettings:
    return PoolSettings(default=CellSettings(Fraction(ratio), PoolSource.FREE, shrink_delay=delay))


def packed(shape: Host, ratio: int, hosts: int, events: int) -> dict[str, float]:
    """Return emulator pCPUs of a host, on average over time and over `hosts` traces."""
    sums = dict.fromkeys(("minimum", "undamped", "damped", "each", "node"), 0.0)
    for seed in range(hosts):
        demand = Demand(events, vcpus=int(BUSY * len(shape.online)), seed=seed)
        runs = [Simulation(shape, settings(ratio, delay)) for delay in (0.0, DELAY)]
        minimum, seconds = replay(runs, demand)
        sums["minimum"] += minimum / seconds / hosts
        sums["undamped"] += runs[0].outcome.pool_seconds / seconds / hosts
        sums["damped"] += runs[1].outcome.pool_seconds / seconds / hosts
        sums["each"] += runs[0].outcome.burnt_seconds / seconds / hosts
        sums["node"] += NODE / hosts
    return sums


def replay(runs: list[Simulation], demand: Demand) -> tuple[float, float]:
    """Feed a trace to all; return the integral of the first one's minimum, and the seconds."""
    minimum, least, before, first = 0.0, 0, None, None
    for event in trace.read(generate(demand), "made up"):
        if before is None:
            before = first = event.time
        minimum += least * (event.time - before)
        before = event.time
        for run_ in runs:
            run_.feed(event)
        least = minimum_of(runs[0])
    assert before is not None
    assert first is not None
    return minimum, before - first


def minimum_of(simulation: Simulation) -> int:
    """Return the fewest pCPUs that hold the guests of now at the ratio; verify the pools."""
    cells = simulation.cells
    for cell in cells:
        assert not cell.emulator_cpus & cell.claimed, "a pool holds a claimed pCPU"
        assert cell.weight <= cell.capacity or cell.shortage, "a pool is too small, silently"
    return sum(min(-(-cell.guests // int(cell.ratio)), len(cell.candidates)) for cell in cells)


# filling


def fill(ratios: tuple[int, ...]) -> tuple[list[Table], dict[str, float]]:
    """Fill a host with guests of one size, at each ratio."""
    shape = SHAPES["2 cells, 128 pCPUs"]
    rows, figures = [], {"worst": 1.0}
    for vcpus in SIZES:
        row = [f"{vcpus}"]
        for ratio in ratios:
            simulation = Simulation(shape, settings(ratio, DELAY))
            for event in starts(len(shape.online), vcpus):
                simulation.feed(event)
            fitted, alone = simulation.outcome.fitted, simulation.outcome.fitted_isolated
            figures["worst"] = min(figures["worst"], fitted / most(shape, vcpus, ratio))
            figures[f"{vcpus} at {ratio}"] = extra = 100 * (fitted / alone - 1)
            row += [f"{alone}"] * (ratio == ratios[0]) + [f"{fitted} (+{extra:.0f}%)"]
        rows.append(row)
    columns = ("vCPUs of a guest", "one each", *(f"ratio {ratio}" for ratio in ratios))
    return [Table("Guests that fit on 128 pCPUs in 2 cells", columns, rows)], figures


def starts(count: int, vcpus: int) -> Iterator[Event]:
    for number in range(count):
        yield Event(float(number), f"g{number}", True, vcpus, 1, Policy.ISOLATE)  # noqa: FBT003 - starts


def most(shape: Host, vcpus: int, ratio: int) -> int:
    """Return the most guests that can fit, cell by cell."""
    return sum(
        max(n for n in range(len(cell.cpus) + 1) if n * vcpus - (-n // ratio) <= len(cell.cpus))
        for cell in shape.cells
    )


def picture(figures: Mapping[str, float]) -> Chart:
    lines = [
        (f"{vcpus} vCPUs", [(float(ratio), figures[f"{vcpus} at {ratio}"]) for ratio in RATIOS])
        for vcpus in SIZES
    ]
    about = "against a pCPU of its own for each guest, on 128 pCPUs in two cells"
    return Chart("packing", "More guests fit", about, "ratio", [("% more guests", lines)])
