"""The lab's own words: its scenarios exist, the guide installs what it says, its judge can say no.

What it shows is shown by `make lab`; nothing is booted here.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import image
from lab.inside import install, judge
from lab.inside.guests import Guest, Thread
from lab.inside.judge import Rules
from lab.machine import MACHINES
from lab.scenarios import SCENARIOS, Scenario

if TYPE_CHECKING:
    from collections.abc import Sequence

GUIDE = (Path(__file__).parents[1] / install.GUIDE).read_text()
CELL = frozenset(range(8))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_each_scenario_is_a_function_that_says_what_it_shows(scenario: Scenario) -> None:
    function = getattr(import_module(f"lab.scenarios.{scenario.module}"), scenario.function)
    assert function.__doc__
    assert {*scenario.machines} <= {machine.name for machine in MACHINES}


def test_the_cache_keeps_one_of_each_kind_however_kinds_are_called(tmp_path: Path) -> None:
    for kind, inputs in (("older-package", "1"), ("older", "1"), ("older", "2"), ("older", "2")):
        with image.made(kind, [inputs], tmp_path) as folder:
            (folder / "product").touch()
    kept = sorted(path.parent.name.rpartition("-")[0] for path in tmp_path.glob("*/product"))
    assert kept == ["older", "older-package"]


def test_the_guide_installs_the_wheel_and_the_unit() -> None:
    steps = install.steps(GUIDE)
    assert "/opt/emupool/bin/pip install ." in steps
    assert any(step.endswith("/etc/systemd/system/emupool.service") for step in steps)
    assert "systemctl enable --now emupool" not in steps


def guest(number: int, claim: int, *, policy: str = "isolate") -> Guest:
    return Guest(f"guest-{number}", 0, (claim,), frozenset({7}), frozenset({7}), policy)


def seen(emulator: Sequence[set[int]], iothread: set[int]) -> list[Thread]:
    masks = [("emulator", mask) for mask in emulator] + [("iothread1", iothread)]
    return [Thread(n, "t", role, frozenset(mask)) for n, (role, mask) in enumerate(masks)]


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        (seen([{4}, {4}], {4}), seen([{4}], {4}), None),
        (seen([{4}, {5}], {4}), seen([{4}], {4}), "are apart"),
        (seen([{4}], {7}), seen([{4}], {4}), "its iothread is not on [4]"),
        (seen([{0}], {0}), seen([{0}], {0}), "[0] may not be in the pool"),
        (seen([{4, 5}], {4, 5}), seen([{4, 5}], {4, 5}), "has not 1 pCPUs"),
        (seen([{4}], {4}), seen([{5}], {5}), "has not 1 pCPUs"),
    ],
    ids=[
        "all on one pCPU",
        "a thread elsewhere",
        "an iothread left behind",
        "on a claim",
        "a pool too large",
        "two pools of one",
    ],
)
def test_the_judge_sees_what_is_wrong(
    first: list[Thread],
    second: list[Thread],
    word: str | None,
) -> None:
    here = {guest(1, 0): first, guest(2, 1): second}
    rules = Rules(cpus=CELL)
    said = list(judge.of_cell(0, CELL, here, list(here), rules, core=lambda cpu: frozenset({cpu})))
    assert bool(said) == (word is not None)
    assert word is None or any(word in line for line in said)
