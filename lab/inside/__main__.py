"""Carries out what the outside asked for, and tells of it line by line.

`python3 -m lab.inside` runs the scenarios of /lab/in/asked.json; with names it runs those, and
tells of them on the terminal: `make lab-shell`.
"""

from __future__ import annotations

import json
import platform
import shutil
import signal
import sys
import tarfile
import time
import traceback
import tty
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from lab import scenarios
from lab.inside import host, install, systemd
from lab.inside.agent import uptime
from lab.inside.lab import Lab

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from lab.scenarios import Scenario

REPORT: Final = "/dev/ttyS1"
RESULTS: Final = "/dev/vdc"
OUT: Final = Path("/lab/out")


class Report:
    """Lines of JSON for the outside."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream

    def tell(self, event: str, **fields: object) -> None:
        """Write one line."""
        print(json.dumps({"event": event, **fields}, default=str), file=self._stream, flush=True)


def main() -> None:
    """Run what was asked for."""
    asked: dict[str, Any] = json.loads((install.IN / "asked.json").read_text())
    with Path(REPORT).open("w") if len(sys.argv) == 1 else sys.stdout as stream:
        if stream is not sys.stdout:
            tty.setraw(stream.fileno())
        report = Report(stream)
        lab = Lab(asked["machine"], full=asked["full"])
        report.tell(
            "booted",
            seconds=round(uptime()),
            kernel=platform.release(),
            cells={cell: host.show(cpus) for cell, cpus in lab.cells.items()},
        )
        names = sys.argv[1:] or asked["scenarios"]
        if _told(report, "installation", asked["seconds"], lambda: _install(lab)):
            for name in names:
                _run(report, lab, scenarios.find(name), asked["seconds"])
        report.tell("done")


def _install(lab: Lab) -> dict[str, object]:
    if shutil.which("emupool"):
        return {"by": "what was there"}
    by = install.install(lab.agent)
    install.start(lab.agent)
    return {"by": by}


def _run(report: Report, lab: Lab, scenario: Scenario, seconds: int) -> None:
    cursor = lab.agent.now()
    if not _told(report, scenario.name, seconds, lambda: scenario.run(lab)):
        _collect(lab, scenario.name, cursor)
    with suppress(Exception):  # the next one says what is wrong
        host.all_online()


def _told(report: Report, name: str, seconds: int, work: Callable[[], dict[str, object]]) -> bool:
    """Do `work` within a time, tell how it went, and return whether it went well."""
    report.tell("began", name=name)
    began = time.monotonic()
    figures: dict[str, object] = {}
    wrong = None
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(seconds)
    try:
        figures = work()
    except AssertionError as error:
        wrong = f"{error}\n{_where(error)}"
    except Exception:  # noqa: BLE001 - the other scenarios go on
        wrong = traceback.format_exc()
    finally:
        signal.alarm(0)
    took = round(time.monotonic() - began, 1)
    report.tell("ended", name=name, seconds=took, figures=figures, wrong=wrong)
    return wrong is None


def _late(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError("the scenario's time is over")


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return "  at " + " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames)
    )


def _collect(lab: Lab, name: str, cursor: str) -> None:
    """Gather what tells why a scenario failed, and hand it out at once."""
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    sources: dict[str, Callable[[], str]] = {
        "journal": lambda: lab.agent.journal(cursor),
        "system": lambda: systemd.journal(f"--after-cursor={cursor}"),
        "metrics": lambda: lab.agent.get("/metrics")[1],
        "status.json": lambda: lab.agent.get("/api/v1/status")[1],
        "state.json": lab.agent.state.read_text,
        "config.toml": lab.agent.config.read_text,
        "unit": lambda: host.status_of("systemctl", "--no-pager", "status", systemd.UNIT)[1],
        "processes": lambda: host.run("ps", "-eLo", "pid,tid,psr,stat,pcpu,time,comm"),
        "guests": lambda: "\n".join(
            f"{guest}\n" + "".join(f"  {thread}\n" for thread in lab.node.threads(guest))
            for guest in lab.present
        ),
    }
    for file, content in sources.items():
        try:
            text = content()
        except Exception as error:  # noqa: BLE001 - the rest is collected all the same
            text = f"{error!r}\n"
        (folder / file).write_text(text)
    with Path(RESULTS).open("wb") as disk, tarfile.open(fileobj=disk, mode="w|") as archive:
        archive.add(OUT, arcname=".")


if __name__ == "__main__":
    main()
