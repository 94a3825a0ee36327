"""What is short or odd on the host: the clock, the CPU, room for the state file."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lab.inside import host
from lab.inside.waiting import check, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.inside.lab import Figures, Lab

_HOUR = 3600.0


def clock_steps(lab: Lab) -> Figures:
    """The clock is stepped by an hour, forth and back: nothing waits for it, nothing is ended."""
    lab.use("2")
    lab.populate(4)
    lab.settle()
    main = lab.agent.pid()
    for step in (_HOUR, -_HOUR):
        time.clock_settime(time.CLOCK_REALTIME, time.time() + step)
        lab.start(lab.newcomer())
        lab.settle("a guest to be pinned after a step of the clock")
        lab.agent.reconciled()
    check(lab.agent.pid() == main, "it was started anew")
    return {}


@contextmanager
def _starved(main: int, cpu: int) -> Iterator[None]:
    """Leave the agent one pCPU, and what four processes that come first leave of it."""
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
    main = lab.agent.pid()
    with _starved(lab.agent.pid(), max(host.online())):
        lab.start(lab.newcomer())
        took = lab.settle("a guest to be pinned by an agent that starves", 400)
    check(lab.agent.pid() == main, "it was started anew")
    return {"pinned": f"{took:.0f}s"}


def full_state(lab: Lab) -> Figures:
    """The state directory is full: that is told, pins go on, and with room again all is kept."""
    lab.use("2")
    lab.agent.stop()
    lab.clear()
    folder = lab.agent.state.parent
    host.run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder))
    try:
        lab.use("2")
        lab.populate(4)
        lab.settle()
        cursor = lab.agent.now()
        filler = folder / "filler"
        size = _fill(filler)
        lab.start(lab.newcomer())
        lab.settle("a guest to be pinned that cannot be recorded")
        wait_for(
            lambda: _told(lab, "fault.began", cursor), "the log to say that nothing can be kept"
        )
        filler.unlink()
        lab.start(lab.newcomer())
        lab.settle()
        wait_for(
            lambda: _told(lab, "fault.ended", cursor), "the log to say that it can be kept again"
        )
        kept = set(json.loads(lab.agent.state.read_text())["guests"])
        missing = {guest.uuid for guest in lab.present if guest.managed} - kept
        check(not missing, f"not kept: {missing}")
    finally:
        lab.agent.stop()
        lab.clear()
        host.run("umount", str(folder))
    return {"filled": f"{size // 1024}KiB"}


def _fill(file: Path) -> int:
    """Write until there is no room left, and return how much that took."""
    with suppress(OSError), file.open("wb", buffering=0) as full:
        while full.write(bytes(1024)):
            pass
    return file.stat().st_size


def _told(lab: Lab, event: str, cursor: str) -> bool:
    return any(fault["about"][0] == "state" for fault in lab.agent.events(event, cursor))
