"""How long a plan takes, against the size of the host and the number of guests.

Three plans of each host: nothing changed since the last, one guest has arrived, everything is new.
Time is the processor's, so that a busy machine does not count; the median of some runs.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Final

from benchmarks.findings import Chart, Findings, Goal, Table
from tests.builders import guest, host, pool_settings
from tests.worlds import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.suite import Effort

SIZES: Final = (
    (16, 1, 1),
    (64, 2, 50),
    (128, 2, 100),
    (256, 4, 250),
    (512, 8, 500),
    (1024, 8, 1000),
    (2048, 16, 1500),
    (4096, 16, 2000),
)
KINDS: Final = ("nothing changed", "one arrived", "everything new")
GOALS: Final = dict(zip(KINDS, (5.0, 5.0, 50.0), strict=True))  # ms, at 512 pCPUs
GOAL_AT: Final = 512


def crowd(cpus: int, cells: int, guests: int) -> World:
    """Return a host whose guests have two pinned vCPUs each, as many to a cell."""
    shown = host(cells=cells, cores=cpus // cells // 2, smt=2, l3_cores=8)
    half = cpus // cells // 2
    made = []
    for number in range(guests):
        cell, turn = number % cells, number // cells
        first = cell * 2 * half
        pins = [str(first + half + (2 * turn + n) % half) for n in range(2)]
        own = str(first + turn % half)
        made.append(guest(number + 1, memnode=[cell], pins=pins, emulator=own))
    return World(shown, tuple(made), pool_settings(ratio=8))


def median(call: Callable[[], object], runs: int) -> float:
    """Return the milliseconds of the processor that `call` takes."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        call()
        times.append((time.process_time() - start) * 1000)
    return statistics.median(times)


def measure(cpus: int, cells: int, guests: int, runs: int) -> dict[str, float]:
    """Return the milliseconds of each kind of plan."""
    new = crowd(cpus, cells, guests)
    settled = new.settle()
    newcomer = guest(guests + 1, memnode=[0], emulator="1", pins=[str(cpus // cells // 2)])
    arrived = settled.having(*settled.guests, newcomer)
    worlds = (settled, arrived, new)
    return dict(zip(KINDS, (median(one.plan, runs) for one in worlds), strict=True))


def run(effort: Effort) -> Findings:
    """Plan hosts of all sizes."""
    sizes = effort.pick(SIZES, [size for size in SIZES if size[0] <= GOAL_AT])
    found = {size: measure(*size, effort.of(15, 3)) for size in sizes}
    rows = [
        (f"{cpus}", f"{cells}", f"{guests}", *(f"{own[kind]:.2f}" for kind in KINDS))
        for (cpus, cells, guests), own in found.items()
    ]
    by_cpus = {size[0]: own for size, own in found.items()}
    goals = [
        Goal(f"{kind}, {GOAL_AT} pCPUs", by_cpus[GOAL_AT][kind], goal, "ms")
        for kind, goal in GOALS.items()
    ]
    lines = [(kind, [(float(n), own[kind]) for n, own in by_cpus.items()]) for kind in KINDS]
    about = "milliseconds of the processor, with up to 2,000 guests"
    return Findings(
        goals,
        [Table("A plan, ms of CPU time", ("pCPUs", "cells", "guests", *KINDS), rows)],
        [Chart("planning", "A plan takes", about, "pCPUs", [("ms", lines)])],
        figures={str(cpus): own for cpus, own in by_cpus.items()},
    )
