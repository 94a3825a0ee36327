"""`make bench-plan`: how long a plan takes, against the size of the host and the number of guests.

Three plans of each host: nothing changed since the last, one guest has arrived, everything is new.
Time is the processor's, so that a busy machine does not count; the median of some runs. Exits 1 if
a goal is missed. `--svg FILE` plots it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.chart import Line, Panel, draw
from tests.builders import guest, host, pool_settings
from tests.worlds import World

if TYPE_CHECKING:
    from collections.abc import Callable

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


def median(call: Callable[[], object], runs: int = 15) -> float:
    """Return the milliseconds of the processor that `call` takes."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        call()
        times.append((time.process_time() - start) * 1000)
    return statistics.median(times)


def measure(cpus: int, cells: int, guests: int) -> dict[str, float]:
    """Return the milliseconds of each kind of plan."""
    new = crowd(cpus, cells, guests)
    settled = new.settle()
    newcomer = guest(guests + 1, memnode=[0], emulator="1", pins=[str(cpus // cells // 2)])
    arrived = settled.having(*settled.guests, newcomer)
    return dict(zip(KINDS, (median(w.plan) for w in (settled, arrived, new)), strict=True))


def main() -> int:
    """Print the table, and plot it if asked."""
    asked = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    asked.add_argument("--svg", type=Path)
    options = asked.parse_args()
    print(f"{'pCPUs':>6} {'cells':>6} {'guests':>7} " + " ".join(f"{k:>16}" for k in KINDS))
    found = {}
    for cpus, cells, guests in SIZES:
        found[cpus] = measure(cpus, cells, guests)
        row = " ".join(f"{found[cpus][kind]:13.2f} ms" for kind in KINDS)
        print(f"{cpus:6} {cells:6} {guests:7} {row}", flush=True)
    if options.svg is not None:
        options.svg.write_text(plot(found), encoding="utf-8")
    met = all(found[GOAL_AT][kind] <= goal for kind, goal in GOALS.items())
    print(f"goals at {GOAL_AT} pCPUs: " + ", ".join(f"{k} {g:g} ms" for k, g in GOALS.items()))
    print("met" if met else "MISSED")
    return 0 if met else 1


def plot(found: dict[int, dict[str, float]]) -> str:
    """Return the picture: milliseconds against pCPUs."""
    lines = [
        Line(kind, [(cpus, found[cpus][kind]) for cpus in found], stairs=False) for kind in KINDS
    ]
    about = "milliseconds of the processor against pCPUs, with up to 2000 guests"
    return draw("A plan takes", about, [Panel("ms", lines)], max(found), unit=(1.0, "pCPUs"))


if __name__ == "__main__":
    sys.exit(main())
