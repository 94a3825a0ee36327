"""`emupool advise`: what it prints and ends with, and what it says of guests at work."""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import pytest
from rich.cells import cell_len

from agent import client, draw, loadtext, report
from agent.advice import Because, advise
from agent.checkpoint import Checkpoint
from agent.load import History
from agent.pool import NOTHING
from tests.documents import pipe, screen
from tests.node import HOME
from tests.schemas import validated
from tests.service import Service, wait, wait_on
from tests.test_advice import ROWS, slot
from tests.test_cli import emupool
from tests.test_state_file import DRIVER
from tests.web import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent.load import Slot
    from tests.documents import Output
    from tests.guests import Guest
    from tests.libvirtd import Libvirtd

Json = dict[str, Any]

HASTY: Final = (sys.executable, "-m", "tests.hasty")
SUM: Final = "sum 0 8000000"
"""A command of QEMU's monitor that keeps the main thread busy for some tenths of a second."""
RATIO: Final = 64
"""What idle guests bear, whoever else is on the machine, and busy ones do not."""


# --- what it prints ------------------------------------------------------------------------------


class Cell:
    """What the report needs of a pool."""

    def __init__(self, number: int, ratio: str) -> None:
        self.id, self.ratio = number, Fraction(ratio)


def advised() -> Json:
    """Return a document with a cell for each kind of answer."""
    cells = [Cell(number, row.present) for number, row in enumerate(ROWS.values())]
    answers = [advise(Fraction(row.present), row.guests, row.window) for row in ROWS.values()]
    method = History().method
    rows: Any = zip(cells, answers, strict=True)
    document: Json = validated("advice", {"schema": 1, **report.advice(rows, method)})
    return document


def read(output: Output) -> str:
    """Return what is read, wherever lines end."""
    return f" {' '.join(output.text.split())} "


def test_every_answer_is_drawn_and_fits_a_terminal() -> None:
    document = advised()
    assert {row["because"] for row in document["cells"]} == set(Because)
    shown, piped = screen(), pipe()
    for output in (shown, piped):
        draw.advice(output.console, document)
    assert max(map(cell_len, shown.lines)) <= 80
    assert not set(piped.raw) & {"\x1b", "\u2502", "\u2500"}
    for line in (
        "0 8 raise: 16 it never was that full: 8.0 guests per pCPU, and more than 2 times that",
        "4 8 lower: 6 threads use 0.080 pCPUs per guest; with 6.2 guests the pool is at 50%",
        "10 8 lower: 6 a guest waits 1.2 s for each second that it runs; 1.0 is the limit",
        "12 8 keep: 8 a guest waits 500.0 s for each second that it runs, but for others, which",
        "29 8 - no guests",
        "31 8 - not enough data: 11 of 12 slots of 5 minutes",
        "34 8 - not enough data: 1.0 guests on average, 2 are needed",
        "4 24.0 8.0 8.0 64.0% 0.00 8.0% 0%",
    ):
        assert f" {line} " in read(piped)


def test_the_hint_names_each_ratio_that_differs_once() -> None:
    output = pipe()
    draw.advice(output.console, advised())
    hint = read(output).partition("emupool plan")[2].partition(":")[0]
    ratios = [float(word) for word in hint.split()[1::2]]
    assert ratios == sorted(set(ratios))
    assert {0.01, 0.66, 5, 16, 1000} <= set(ratios)


def test_where_nothing_would_change_nothing_is_hinted_at() -> None:
    document = advised()
    same = [row for row in document["cells"] if row["verdict"] in {None, "keep"}]
    for rows in ([], same):
        output = pipe()
        draw.advice(output.console, document | {"cells": rows})
        assert "emupool" not in output.text
        assert "cell ratio advice because" in read(output)


# --- what it ends with ---------------------------------------------------------------------------


def remembered(folder: Path, *window: Slot) -> None:
    """Leave a state file in `folder` whose last slots were these."""
    now = int(time.monotonic() // History().method.slot)
    numbered = [
        replace(one, number=now - age)
        for age, one in zip(range(len(window), 0, -1), window, strict=True)
    ]
    checkpoint = Checkpoint(folder / "state.json")
    checkpoint.usage = loadtext.encode(History(cells={HOME: tuple(numbered)}))
    checkpoint.save(NOTHING, 0.0)


def asked(service: Service) -> tuple[str, Json, int]:
    """Return what is printed, as text and as JSON, and the status that both end with."""
    shown = emupool("advise", "--url", service.url)
    told = emupool("advise", "--url", service.url, "--json")
    assert (shown.stderr, told.stderr) == ("", "")
    assert shown.returncode == told.returncode
    return shown.stdout, validated("advice", json.loads(told.stdout)), told.returncode


def test_advice_is_status_0_and_its_data_outlive_a_restart(tmp_path: Path) -> None:
    remembered(tmp_path, *[slot(used=0.1)] * 12)
    with Service(DRIVER, tmp_path, pool={"emulator_overcommit_ratio": 8}) as service:
        shown, document, ended = asked(service)
        assert document["cells"] == service.status()["advice"]["cells"]
        assert service.stop() == 0
    assert ended == 0
    assert "lower: 5" in shown
    assert len(json.loads(service.state.read_text())["usage"]["cells"]["0"]) == 12


def test_too_little_data_is_status_1_and_no_error(tmp_path: Path) -> None:
    remembered(tmp_path, *[slot(used=0.1)] * 11)
    with Service(DRIVER, tmp_path) as service:
        shown, document, ended = asked(service)
    assert ended == 1
    assert "11 of 12 slots" in shown
    assert [row["because"] for row in document["cells"]] == [Because.TOO_SHORT]
    assert [row["suggested"] for row in document["cells"]] == [None]


def test_a_daemon_without_advice_is_one_line_and_status_1() -> None:
    with running() as server:
        assert server.address is not None
        asked = emupool("advise", "--url", "http://{}:{}".format(*server.address))
    assert (asked.returncode, asked.stdout) == (1, "")
    (line,) = asked.stderr.splitlines()
    assert "no advice" in line


# --- real guests ---------------------------------------------------------------------------------


@contextmanager
def working(libvirtd: Libvirtd, guests: list[Guest]) -> Iterator[None]:
    """Keep the emulator threads of guests busy."""
    enough = threading.Event()

    def work(guest: Guest) -> None:
        while not enough.is_set():
            libvirtd.virsh("qemu-monitor-command", guest.name, "--hmp", SUM)

    with ThreadPoolExecutor(len(guests)) as pool:
        jobs = [pool.submit(work, guest) for guest in guests]
        try:
            yield
        finally:
            enough.set()
        for job in jobs:
            job.result()


def cell_of(service: Service) -> Json:
    row: Json = client.fetch_advice(service.url)["cells"][0]
    return row


def test_guests_at_work_lower_the_ratio_and_idle_ones_do_not(
    libvirtd: Libvirtd, tmp_path: Path, start: Callable[..., Guest]
) -> None:
    guests = [start(name) for name in ("a", "b", "c")]
    pool = {"cpus": "0", "emulator_overcommit_ratio": RATIO}
    timing = {"reconcile": {"interval": 0.1}}
    with Service(libvirtd.uri, tmp_path, within=HASTY, pool=pool, **timing) as service:
        wait_on(frozenset({0}), *guests)
        wait(lambda: cell_of(service)["suggested"] is not None, "enough data")
        idle = cell_of(service)
        assert idle["evidence"]["weight_per_cpu"] == pytest.approx(3, rel=1e-3)
        with working(libvirtd, guests):
            wait(lambda: cell_of(service)["verdict"] == "lower", "a lower ratio")
        busy = cell_of(service)
        assert busy["because"] in {Because.LOAD, Because.WAITING}
        assert Fraction(busy["suggested"]) < Fraction(idle["suggested"])
        assert busy["load_bears"] < (idle["load_bears"] or 1000) / 2
        assert service.stop() == 0
        service.start()
        again = cell_of(service)
        assert again["evidence"]["busiest_guest"] >= busy["evidence"]["busiest_guest"]
        assert again["verdict"] == "lower"
