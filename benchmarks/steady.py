"""One steady cycle, counted instead of timed: no noise, so that a regression shows on any machine.

The cycle is the daemon's own, over the tests' hypervisor in memory (tests/fake.py), after a few
that had something to do; nothing has changed since. What is counted:

    calls          functions of Python that were called, and of C
    instructions   of the processor, by valgrind where there is one: those of a process that runs
                   many cycles, less those of one that runs few
    libvirt        calls of libvirt, reads of guests' threads and of the host

The first and the last are exact, and tests/test_steady.py holds them to `BUDGETS`.
`python -m benchmarks.steady CAUSE GUESTS CYCLES` is what valgrind runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agent.cycle import Cause
from agent.events import Named
from benchmarks.findings import Chart, Findings, Goal, Table
from tests.node import Node, pools

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.suite import Effort

RATIO: Final = 50
CAUSES: Final = (Cause.EVENT, Cause.RECONCILE)
AT: Final = 100
FEW, MANY = 5, 25
VALGRIND: Final = ("valgrind", "--tool=cachegrind", "--cache-sim=no")
_REFERENCES: Final = re.compile(r"I\s+refs:\s+([\d,]+)")


@dataclass(frozen=True, slots=True)
class Budget:
    """What a steady cycle may take: some calls, and some more for each guest there is."""

    cycle: int
    guest: int

    def of(self, guests: int) -> int:
        return self.cycle + guests * self.guest


# A tenth above what it was when it was set. Who lowers the cost lowers the budget.
BUDGETS: Final = {
    Cause.EVENT: Budget(437, 23),
    Cause.RECONCILE: Budget(778, 222),
}


@contextmanager
def steady(guests: int) -> Iterator[tuple[Node, str]]:
    """Yield a node on which nothing is left to do, and the guest that an event will name."""
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder) / "state.json", pools(RATIO))
        try:
            started = [node.start(f"guest-{number}") for number in range(guests)]
            node.react()
            for _ in range(2):
                node.cycle(Cause.RECONCILE)
            yield node, started[0] if started else ""
        finally:
            node.stop()


def cycle(node: Node, cause: Cause, guest: str) -> None:
    """Run one cycle; AssertionError if it found something to do."""
    named = Named({guest} if cause is Cause.EVENT and guest else set())
    node.fake.log.clear()
    result = node.rebalancer.cycle(node.link, cause, named)
    assert not result.steps, "the cycle is not steady"
    assert not result.errors, result.errors


def counted(cause: Cause, guests: int) -> tuple[int, Counter[str]]:
    """Return the functions that one cycle calls, of Python and C, and what it asks outside."""
    events: Counter[str] = Counter()

    def profile(_frame: object, event: str, _argument: Any) -> None:
        events[event] += 1

    with steady(guests) as (node, guest):
        cycle(node, cause, guest)
        threading.setprofile(profile)
        sys.setprofile(profile)
        try:
            cycle(node, cause, guest)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        asked = Counter(call.name for call in node.fake.log)
    return events["call"] + events["c_call"], asked


def instructions(cause: Cause, guests: int) -> float | None:
    """Return the instructions of one cycle; None without valgrind."""
    if shutil.which(VALGRIND[0]) is None:
        return None
    few, many = (_referenced(cause, guests, cycles) for cycles in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def _referenced(cause: Cause, guests: int, cycles: int) -> int:
    command = [*VALGRIND, "--cachegrind-out-file=/dev/null", sys.executable, "-m"]
    command += ["benchmarks.steady", cause, str(guests), str(cycles)]
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    found = _REFERENCES.search(done.stderr)
    assert found is not None, done.stderr
    return int(found[1].replace(",", ""))


def run(effort: Effort) -> Findings:
    """Count cycles among more and more guests."""
    sizes = effort.pick((0, 10, 50, 100, 200, 400), (0, 10))
    counts = {c: {n: counted(c, n) for n in sizes} for c in CAUSES}
    at = AT if AT in sizes else max(sizes)
    wanted = effort.pick(CAUSES, CAUSES[:1])
    taken = {c: instructions(c, at) if c in wanted else None for c in CAUSES}
    goals, rows = [], []
    for cause in CAUSES:
        calls, asked = counts[cause][at]
        budget = BUDGETS[cause].of(at)
        goals.append(Goal(f"calls of an idle {cause} cycle, {at} guests", calls, budget))
        spent = taken[cause]
        rows.append(
            (
                str(cause),
                f"{calls:,}",
                f"{budget:,}",
                "not counted" if spent is None else f"{spent / 1e6:.2f} million",
                ", ".join(f"{times} {name}" for name, times in sorted(asked.items())),
            )
        )
    columns = ("cause", "calls", "budget", "instructions", "asks")
    lines = [(str(c), [(float(n), float(counts[c][n][0])) for n in sizes]) for c in CAUSES]
    chart = Chart(
        "cycle",
        "An idle cycle",
        "functions called, of Python and of C",
        "guests",
        [("functions called", lines)],
    )
    figures = {
        str(c): {"calls": {str(n): counts[c][n][0] for n in sizes}, "instructions": taken[c]}
        for c in CAUSES
    }
    table = Table(f"An idle cycle among {at} guests", columns, rows)
    return Findings(goals, [table], [chart], figures=figures)


def main() -> None:
    """Run cycles, and nothing else, for whoever counts instructions."""
    cause, guests, cycles = Cause(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with steady(guests) as (node, guest):
        for _ in range(cycles):
            cycle(node, cause, guest)


if __name__ == "__main__":
    main()
