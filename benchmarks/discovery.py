"""The host read from sysfs, against lscpu on the same tree.

Whole processes are compared, by the CPU time that the kernel counts for them. What each takes to
start, before it reads anything, is measured by `--version` and told apart: one is an interpreter.
Then, in one process: how discovery grows, and what a refresh takes after one pCPU went off line.
The trees lie in memory. On a live /sys an open costs more, for both.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.cpuset import CpuSet
from agent.sysfs import Sysfs
from benchmarks.findings import Chart, Findings, Goal, Table
from tests.hosts import MEMORY, Machine, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.suite import Effort

GOAL_PEER: Final = 1.0
GOAL_GROWTH: Final = 1.5  # of the time for each pCPU, from the smallest host to the largest
SIZES: Final = (512, 1024, 2048, 4096, 8192)
CELLS: Final = 8

OURS: Final = (sys.executable, "-m", "agent")
PEER: Final = ("lscpu",)
CPUINFO: Final = "processor\t: {}\nvendor_id\t: none\nmodel name\t: none\n\n"  # or it gives up
COLUMNS: Final = "CPU,NODE,SOCKET,CORE,CACHE,ONLINE"


def machine(pcpus: int) -> Machine:
    """Return a host of two sockets and eight cells, with an L3 for eight cores."""
    return Machine(
        packages=2,
        cells=CELLS // 2,
        cores=pcpus // CELLS // 2,
        threads=2,
        numbering="interleaved",
        l3_cores=8,
    )


def spent(*command: str) -> float:
    """Return the seconds of CPU that a process took, user's and kernel's."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_utime + usage.ru_stime


def against_lscpu(folder: Path, turns: int) -> tuple[Table, float]:
    """Compare whole processes, in turns; return a table, and the ratio of the work."""
    pcpus = SIZES[0]
    root = write(machine(pcpus), folder / "whole", whole=True)
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text("".join(map(CPUINFO.format, range(pcpus))))
    commands: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "agent": ((*OURS, "topology", "--json", "--sysfs-root", str(root)), (*OURS, "--version")),
        "lscpu": ((*PEER, f"-p={COLUMNS}", "--sysroot", str(root)), (*PEER, "--version")),
    }
    agree(commands["agent"][0], commands["lscpu"][0])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(turns):
        for name, (work, start) in commands.items():
            times[name].append((spent(*work), spent(*start)))
    rows, work_ms = [], {}
    for name, own in times.items():
        whole = statistics.median(turn[0] for turn in own) * 1e3
        began = statistics.median(turn[1] for turn in own) * 1e3
        work_ms[name] = whole - began
        rows.append((name, f"{whole:.1f}", f"{began:.1f}", f"{work_ms[name]:.1f}"))
    title = f"{pcpus} pCPUs in {CELLS} cells read from sysfs, ms of CPU time"
    table = Table(title, ("", "whole process", "its start", "work"), rows)
    return table, work_ms["agent"] / work_ms["lscpu"]


def agree(ours: tuple[str, ...], peer: tuple[str, ...]) -> None:
    """A wrong fast run fails: both must see the same pCPUs in the same cells."""
    host = json.loads(subprocess.check_output(ours))
    rows = subprocess.check_output(peer, text=True).splitlines()
    theirs = [row.split(",")[:2] for row in rows if not row.startswith("#")]
    if [[str(cpu["id"]), str(cpu["cell"])] for cpu in host["cpus"]] != theirs:
        raise AssertionError("the two do not see the same host")


def discovered(folder: Path, pcpus: int, turns: int) -> tuple[float, float]:
    """Return what a discovery takes, and a refresh when one pCPU went or came."""
    whole = machine(pcpus)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        root = Path(made) / "root"
        trees = [
            write(replace(whole, offline=CpuSet(off)), Path(made) / name)
            for name, off in (("all", ()), ("but one", (pcpus // 2 + 1,)))
        ]
        root.symlink_to(trees[0])
        sysfs = Sysfs(root)
        times, again = [], []
        for turn in range(1, turns + 1):
            times.append(taken(sysfs.discover))
            root.unlink()
            root.symlink_to(trees[turn % 2])
            again.append(taken(sysfs.refresh))
    return statistics.median(times), statistics.median(again)


def taken(call: Callable[[], object]) -> float:
    """Return the seconds of CPU that a call took."""
    began = time.process_time()
    call()
    return time.process_time() - began


def run(effort: Effort) -> Findings:
    """Measure against lscpu, and with hosts of all sizes."""
    turns, sizes = effort.of(15, 2), effort.pick(SIZES, SIZES[:2])
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        peers, ratio = against_lscpu(Path(folder), turns)
        found = {pcpus: discovered(Path(folder), pcpus, turns) for pcpus in sizes}
    each = {pcpus: whole / pcpus for pcpus, (whole, _) in found.items()}
    rows = [
        (f"{pcpus}", f"{whole * 1e3:.1f}", f"{each[pcpus] * 1e6:.1f}", f"{again * 1e3:.1f}")
        for pcpus, (whole, again) in found.items()
    ]
    columns = ("pCPUs", "discovery, ms", "for each pCPU, us", "refresh, ms")
    growth = each[sizes[-1]] / each[sizes[0]]
    goals = [
        Goal("work, agent to lscpu", ratio, GOAL_PEER, "times lscpu's"),
        Goal("share of a pCPU", growth, GOAL_GROWTH, f"{sizes[-1]} pCPUs to {sizes[0]}"),
    ]
    panels = [
        ("ms of CPU time", [
            ("discovery", [(float(n), one[0] * 1e3) for n, one in found.items()]),
            ("refresh", [(float(n), one[1] * 1e3) for n, one in found.items()]),
        ])
    ]  # fmt: skip
    return Findings(
        goals,
        [peers, Table("In one process, CPU time", columns, rows)],
        [Chart("discovery", "The host is read", "all of it; after a pCPU went", "pCPUs", panels)],
        figures={"lscpu": ratio, **{str(n): list(one) for n, one in found.items()}},
    )
