"""`make bench`: what the agent costs and gains, against floors and rivals of the same run.

    python -m benchmarks [NAME...] [--quick] [--turns N] [--large] [--fresh]

Without names it runs everything but the largest, writes benchmarks/results/latest.json after each
benchmark, and at the end docs/benchmarks.md with its pictures. A run that was broken off is taken
up where it was, if code and machine are the same; `--fresh` begins anew. With names, or `--quick`,
nothing is written unless `--to FILE` says where. Exits 1 if a benchmark failed or missed a goal.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from benchmarks import document, results, suite
from tests.libvirtd import missing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.findings import Findings
    from benchmarks.suite import Benchmark, Effort

PATIENCE: Final = 30.0
"""Seconds that cleaning up may take."""
LIMIT: Final = 1800.0
"""Seconds after which a benchmark counts as hung, and ends everything with a traceback."""
LIMIT_LARGE: Final = 7200.0
INTERRUPTED: Final = 130


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    asked = argparse.ArgumentParser(prog="benchmarks", description="Measure, and say what was met.")
    asked.add_argument("names", nargs="*", metavar="NAME", help="by default all but the largest")
    asked.add_argument("--quick", action="store_true", help="prove that it works, in minutes")
    asked.add_argument("--turns", type=int, help="of each contestant")
    asked.add_argument("--large", action="store_true", help="the largest storms, and only those")
    asked.add_argument("--fresh", action="store_true", help="do not take up what was broken off")
    asked.add_argument("--to", type=Path, help="where to write the results")
    asked.add_argument("--list", action="store_true", help="name the benchmarks")
    asked.add_argument("--document", action="store_true", help="only write docs/benchmarks.md anew")
    return asked.parse_args(given)


def main() -> int:
    """Run what is asked for."""
    options = arguments()
    if options.list:
        for one in suite.BENCHMARKS:
            print(f"{one.name:10} {one.title}")
        return 0
    if options.document:
        document.write()
        return 0
    insist()
    try:
        wanted = suite.chosen(options.names, large=options.large)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    whole = not options.names and not options.quick
    kept = results.LARGE if options.large else results.LATEST
    path = options.to or (kept if whole else None)
    done = measure(
        wanted, suite.Effort(options.quick, options.turns), path, fresh=options.fresh or not whole
    )
    print(document.summary(done))
    if whole and not options.to:
        document.write()
    return 0 if document.succeeded(done) else 1


def measure(
    wanted: Sequence[Benchmark], effort: Effort, path: Path | None, *, fresh: bool
) -> results.Document:
    """Run benchmarks, one after the other, and keep what they found in `path`."""
    now = results.begin(quick=effort.quick)
    before = None if fresh or path is None else results.read(path)
    if before is not None and results.continues(before, now, [one.name for one in wanted]):
        now = before
    for one in wanted:
        entry = now["benchmarks"].get(one.name)
        if entry is not None and entry["error"] is None:
            continue
        print(f"# {one.name}: {one.title}", flush=True)
        faulthandler.dump_traceback_later(LIMIT_LARGE if one.large else LIMIT, exit=True)
        began = time.monotonic()
        found = attempt(one, effort)
        now = results.add(now, one.name, one.title, time.monotonic() - began, found)
        print(document.text(now["benchmarks"][one.name]), flush=True)
        if path is not None:
            results.write(now, path)
    faulthandler.cancel_dump_traceback_later()
    return now


def attempt(one: Benchmark, effort: Effort) -> Findings | str:
    """Run a benchmark; return in a line why it failed, if it does."""
    if one.real and (lacks := missing()):
        return lacks
    try:
        return one.run(effort)
    except Exception as error:  # noqa: BLE001 - the others are worth running all the same
        traceback.print_exc()
        return f"{type(error).__name__}: {str(error).partition(os.linesep)[0]}"


def insist() -> None:
    """Clean up when we are asked to end; end all the same if that takes long.

    Who waits for a libvirt that hangs hears of no signal. All that we started ends with us.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while os.read(reader, 1)[0] not in {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}:
            pass
        time.sleep(PATIENCE)
        os._exit(INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()


def interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
