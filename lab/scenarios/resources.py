"""What is short or odd on the host: the clock, the CPU."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lab.inside import agent, host
from lab.inside.waiting import check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.inside.lab import Figures, Lab

_HOUR = 3600.0


def clock_steps(lab: Lab) -> Figures:
    """The clock is stepped by an hour, forth and back: nothing waits for it, nothing is ended."""
    lab.use("2")
    lab.populate(4)
    lab.settle()
    main = agent.pid()
    for step in (_HOUR, -_HOUR):
        time.clock_settime(time.CLOCK_REALTIME, time.time() + step)
        lab.start(lab.newcomer())
        lab.settle("a guest to be pinned after a step of the clock")
        agent.reconciled()
    check(agent.pid() == main, "it was started anew")
    return {}


@contextmanager
def _starved(cpu: int) -> Iterator[None]:
    """Leave the agent one pCPU, and what four processes that come first leave of it."""
    main = agent.pid()
    loads = [
        subprocess.Popen(("nice", "-n", "-10", "taskset", "-c", str(cpu), "sha1sum", "/dev/zero"))
        for _ in range(4)
    ]
    try:
        _confine(main, {cpu})
        yield
    finally:
        for load in loads:
            load.kill()
            load.wait()
        _confine(main, host.online())


def _confine(process: int, cpus: set[int] | host.Cpus) -> None:
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cpus)


def starved(lab: Lab) -> Figures:
    """Load starves the agent: it is late, but right, and the watchdog lets it live."""
    lab.use("2")
    lab.populate(6)
    lab.settle()
    main = agent.pid()
    with _starved(max(host.online())):
        lab.start(lab.newcomer())
        took = lab.settle("a guest to be pinned by an agent that starves", 400)
    check(agent.pid() == main, "it was started anew")
    return {"pinned": f"{took:.0f}s"}
