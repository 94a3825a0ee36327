"""Guests come and go by the thousand, and the daemon holds what it held."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from agent.pinner import LIMIT
from tests.effort import SOAK, examples

if TYPE_CHECKING:
    from pathlib import Path

MARKS = [examples(some, some * 100) for some in (100, 200, 300, 400, 500)]
ROOM = 1024  # KiB; what caches and the allocator's leavings still vary by


@pytest.mark.soak
def test_guests_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.endurance", str(tmp_path), *map(str, MARKS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    costs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [cost["guests"] for cost in costs] == MARKS
    assert len({cost["fds"] for cost in costs}) == 1
    assert max(cost["threads"] for cost in costs) < costs[0]["threads"] + LIMIT
    if SOAK:  # before, caches are still filling up
        assert costs[-1]["rss_kib"] <= costs[0]["rss_kib"] + ROOM
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sum(event.get("pins", 0) for event in events) == MARKS[-1]
    assert {event["level"] for event in events} <= {"info", "warning"}
