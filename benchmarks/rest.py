"""At rest: what the agent takes while nothing happens, with 0, 100 and 300 guests.

Three libvirtds, each with an agent of default settings (a reconcile every 30 s), rest at the same
time: they take so little that they do not disturb each other, and five minutes are five minutes
only once. CPU time is what the kernel counts for each thread (schedstat, in nanoseconds),
wake-ups are its voluntary context switches. The calls are counted by a relay, which costs the agent
nothing; libvirtd's own time is not looked at.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.findings import Chart, Findings, Goal, Table
from benchmarks.stage import ISOLATE, ZERO, Stage, placed, verify
from benchmarks.storms import rested
from benchmarks.tap import Tap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.suite import Effort
    from tests.guests import Guest
    from tests.service import Service

GOAL_CPU: Final = 0.1  # per cent of one pCPU
GOAL_MEMORY: Final = 50.0  # MiB
GOAL_EVEN: Final = 1.2
WHY_CPU: Final = (
    "each guest's definition and threads are read each 30 s, which repairs what no event told of; "
    "the share depends on how fast the pCPU is"
)
AT: Final = 100
INTERVAL: Final = 30.0  # the default


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used, at one moment."""

    at: float
    cpu: float
    wakes: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Sum over its threads; those that ended since it began are lost, and none does at rest."""
        cpu, wakes = 0, 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            cpu += int((task / "schedstat").read_text().split()[0])
            status = (task / "status").read_text()
            wakes += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
        return cls(time.monotonic(), cpu / 1e9, wakes)


def memory(pid: int) -> dict[str, float]:
    """Return MiB: resident, and what is this process's own."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {row.split(":")[0]: int(row.split()[1]) for row in rows}
    return {
        "resident": kib["Rss"] / 1024,
        "private": (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024,
    }


@dataclass(frozen=True, slots=True)
class Rester:
    """An agent that rests among its guests."""

    service: Service
    tap: Tap
    guests: Sequence[Guest]
    ready: float  # seconds from its start until it was ready

    @classmethod
    def within(cls, stack: ExitStack, count: int, interval: float) -> Rester:
        stage = stack.enter_context(Stage())
        guests = stage.crowd("at-rest", count, **ISOLATE)
        tap = stack.enter_context(
            Tap(stage.folder / "tap.sock", stage.libvirtd.home / "libvirt-sock")
        )
        service = stage.service(tap.uri, reconcile={"interval": interval})
        began = time.monotonic()
        stack.enter_context(service)
        ready = time.monotonic() - began
        placed(service, count)
        verify(guests, ZERO)
        return cls(service, tap, guests, ready)

    @property
    def pid(self) -> int:
        return self.service.process.pid


def run(effort: Effort) -> Findings:
    """Let agents rest, and look at what they took."""
    counts = effort.pick((0, 100, 300), (0, 4, 8))
    seconds, interval = effort.pick((300.0, INTERVAL), (4.0, 1.0))
    found: dict[int, dict[str, float]] = {}
    with ExitStack() as stack:
        resters = {count: Rester.within(stack, count, interval) for count in counts}
        for rester in resters.values():
            if not effort.quick:
                rested(rester.service)
            rester.tap.taken()
        before = {count: Usage.of(rester.pid) for count, rester in resters.items()}
        time.sleep(seconds)
        for count, rester in resters.items():
            after, used = Usage.of(rester.pid), memory(rester.pid)
            whole = after.at - before[count].at
            calls = rester.tap.taken()
            found[count] = {
                "cpu": 100 * (after.cpu - before[count].cpu) / whole,
                "wakes": 60 * (after.wakes - before[count].wakes) / whole,
                "calls": 60 * sum(calls.values()) / whole,
                "ready": rester.ready,
                **used,
            }
            verify(rester.guests, ZERO)
    return findings(found, seconds)


def findings(found: Mapping[int, Mapping[str, float]], seconds: float) -> Findings:
    least, middle, most = sorted(found)
    judged = AT if AT in found else middle
    cpu, size = found[judged]["cpu"], found[judged]["resident"]
    each = [(found[n]["cpu"] - found[least]["cpu"]) / n for n in (middle, most)]
    goals = [
        Goal(f"CPU at {judged} guests", cpu, GOAL_CPU, "% of one pCPU", why=WHY_CPU),
        Goal(f"resident memory at {judged} guests", size, GOAL_MEMORY, "MiB"),
        Goal(
            f"CPU for a guest among {most}", each[1] / each[0], GOAL_EVEN, f"times that of {middle}"
        ),
    ]
    rows = [
        (
            f"{count}",
            f"{own['cpu']:.3f}",
            f"{own['wakes']:.0f}",
            f"{own['calls']:.0f}",
            f"{own['resident']:.1f}",
            f"{own['private']:.1f}",
            f"{own['ready'] * 1e3:.0f}",
        )
        for count, own in sorted(found.items())
    ]
    columns = (
        "guests",
        "% of a pCPU",
        "wake-ups a minute",
        "calls a minute",
        "resident MiB",
        "of its own MiB",
        "start to ready ms",
    )
    panels = [
        ("% of one pCPU", [("agent", [(float(n), found[n]["cpu"]) for n in sorted(found)])]),
        ("MiB resident", [("agent", [(float(n), found[n]["resident"]) for n in sorted(found)])]),
    ]
    chart = Chart("rest", "The agent at rest", f"over {seconds:.0f} s", "guests", panels)
    table = Table(f"The agent at rest, over {seconds:.0f} s", columns, rows)
    figures = {str(count): dict(own) for count, own in found.items()}
    return Findings(goals, [table], [chart], figures=figures)
