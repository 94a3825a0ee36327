"""The two changes to the agent that gained most: the one before it and the one after, in one run.

The agent of before is that of the commit's parent, taken out of the repository's history. Both are
the daemons of their trees, with the same settings, in turns with the bare client.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from benchmarks.arrivals import Ground
from benchmarks.findings import Findings, compared
from benchmarks.results import ROOT
from benchmarks.stage import CLAIM, ISOLATE, Client, Stage, placed
from benchmarks.storms import restarts

if TYPE_CHECKING:
    from benchmarks.findings import Table
    from benchmarks.suite import Effort

AHEAD: Final = "98f1b42"
"""Decide a guest's pin while libvirt still starts it."""
SOONER: Final = "190775b"
"""Try guests that found no room again within a quarter of a second."""

Compared = tuple["Table", dict[str, dict[str, float]]]

BEFORE, AFTER, FLOOR = "before", "now", "floor"


def run(effort: Effort) -> Findings:
    """Compare the agent with what it was before each of the two changes."""
    with TemporaryDirectory() as folder, Stage() as stage:
        arrived = arrivals(stage, source(AHEAD, Path(folder, "ahead")), effort)
        moved = restart(stage, source(SOONER, Path(folder, "sooner")), effort)
    return Findings(tables=[arrived[0], moved[0]], figures={AHEAD: arrived[1], SOONER: moved[1]})


def source(commit: str, folder: Path) -> Path:
    """Return `folder` with the agent of before a commit; RuntimeError in a clone without it."""
    command = ("git", "-C", str(ROOT), "archive", f"{commit}^", "agent")
    packed = subprocess.run(command, capture_output=True, check=False)
    if packed.returncode:
        raise RuntimeError(f"the history of this clone has no {commit}: fetch all of it")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder)  # noqa: S202 - made by git of what we wrote
    return folder


def arrivals(stage: Stage, tree: Path, effort: Effort) -> Compared:
    """Have guests arrive one by one among others, each other one started paused."""
    count = effort.pick(50, 2)
    there = stage.crowd("there", count, **ISOLATE, **CLAIM)
    times: dict[str, list[float]] = {FLOOR: [], BEFORE: [], AFTER: []}
    with ExitStack() as own:
        before = own.enter_context(stage.service(name="ahead-before", tree=tree))
        after = own.enter_context(stage.service(name="ahead-now"))
        floor = own.enter_context(Client("floor", stage.libvirtd.uri))
        watch = own.enter_context(stage.watch())
        for agent in (before, after):
            placed(agent, count)
        pids = {FLOOR: floor.process.pid, BEFORE: before.process.pid, AFTER: after.process.pid}
        for number in range(effort.of(40, 2)):
            for name, taken in times.items():
                service = before if name == BEFORE else after
                others = [pid for other, pid in pids.items() if other != name]
                turn = Ground(stage, service, floor, watch).turn
                isolate, paused = name != FLOOR, bool(number % 2)
                taken.append(turn(name, number, isolate=isolate, others=others, paused=paused))
    stage.leave(there)
    return compared(f"single arrivals among {count}, before and after {AHEAD}", times)


def restart(stage: Stage, tree: Path, effort: Effort) -> Compared:
    """Restart libvirtd under 100 guests that are to move."""
    guests = stage.crowd("many", effort.pick(100, 6), **ISOLATE)
    trees = {BEFORE: tree, AFTER: None}
    times = restarts(stage, guests, effort.of(3, 1), "sooner", trees)
    return compared(f"libvirtd restarts, before and after {SOONER}", times)
