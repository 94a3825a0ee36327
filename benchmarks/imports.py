"""Where start-up time and memory go: what the daemon imports, by package.

A daemon is started on libvirt's in-process test driver, under `-X importtime`; that tells what it
imports, in which order, and what each takes. The times are inflated by the measuring, all alike.
Then the packages are imported in that order by a process that reads its own resident memory after
each; what one imports of another counts for whoever came first.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.findings import Findings, Table
from tests.guests import wait_until
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.suite import Effort

MARK: Final = "import time:"
FEW: Final = 1.0  # a package that takes less, in ms and in MiB, is told of in a sum
SIZES: Final = """\
import importlib, sys
def resident():
    with open("/proc/self/smaps_rollup") as rows:
        return next(int(row.split()[1]) for row in rows if row.startswith("Rss:"))
print("the interpreter", resident())
for name in sys.argv[1:]:
    before = resident()
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    print(name, resident() - before)
"""


def run(effort: Effort) -> Findings:
    """Measure the start of a daemon."""
    turns = effort.of(5, 1)
    with tempfile.TemporaryDirectory() as folder:
        traces = [trace(Path(folder), number) for number in range(turns)]
    packages = order(traces[0])
    times = {name: statistics.median(by_package(one)[name] for one in traces) for name in packages}
    sizes = measured(modules(traces[0]))
    rows: list[tuple[str, float, float]] = []
    others = (0.0, 0.0)
    for name in packages:
        own = times[name] / 1e3, sizes[name] / 1024
        if max(own) < FEW:
            others = others[0] + own[0], others[1] + own[1]
        else:
            rows.append((name, *own))
    rows.sort(key=lambda row: -row[1])
    rows = [("the interpreter", 0.0, sizes["the interpreter"] / 1024), *rows]
    rows.append(("all others", *others))
    total = sum(times.values()) / 1e3
    table = Table(
        "What the daemon imports",
        ("package", "ms", "MiB resident"),
        [(name, f"{ms:.1f}", f"{mib:.1f}") for name, ms, mib in rows]
        + [("in all", f"{total:.0f}", f"{sum(sizes.values()) / 1024:.1f}")],
    )
    figures = {"ms": {k: v / 1e3 for k, v in times.items()}, "kib": dict(sizes)}
    return Findings(tables=[table], figures=figures)


def trace(folder: Path, number: int) -> list[tuple[str, int]]:
    """Return the modules that a daemon imported, in their order, and the own time of each in us."""
    own = folder / str(number)
    own.mkdir()
    within = ("setpriv", "--pdeathsig", "KILL", "env", "PYTHONPROFILEIMPORTTIME=1")
    service = Service("test:///default", own, within=within)
    process = service.spawn()
    try:
        wait_until(
            lambda: b"daemon.ready" in service.log.read_bytes() or process.poll() is not None,
            60,
            "the daemon is ready",
        )
        assert process.poll() is None, service.log.read_text()[-300:]
    finally:
        process.terminate()
        process.wait()
    rows = (
        line.removeprefix(MARK).split("|")
        for line in service.log.read_text().splitlines()
        if line.startswith(MARK) and "[us]" not in line
    )
    return [(row[2].strip(), int(row[0])) for row in rows]


def package(module: str) -> str:
    """Return what a module belongs to: a package of others, ours, or Python's library."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "site" or top.startswith(("_", "encodings")):
        return "python's library"
    return top


def by_package(found: Iterable[tuple[str, int]]) -> Counter[str]:
    times: Counter[str] = Counter()
    for module, own in found:
        times[package(module)] += own
    return times


def order(found: Iterable[tuple[str, int]]) -> list[str]:
    return list(dict.fromkeys(package(module) for module, _ in found))


def modules(found: Iterable[tuple[str, int]]) -> list[str]:
    return [module for module, _ in found]


def measured(names: list[str]) -> Counter[str]:
    """Return the KiB that the modules add, by package, when imported in this order."""
    command = [sys.executable, "-c", SIZES, *names]
    lines = subprocess.check_output(command, text=True).splitlines()
    sizes: Counter[str] = Counter()
    for line in lines:
        name, _, kib = line.rpartition(" ")
        sizes[name if name == "the interpreter" else package(name)] += int(kib)
    return sizes
