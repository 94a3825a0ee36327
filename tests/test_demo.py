"""The demo: played to its end in a process of its own, piped and on a terminal, and its parts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import pytest

from agent import domainxml
from agent.cpuset import CellId
from agent.demo.sample import SCRIPT, NoKernel, SampleHost
from agent.demo.witness import Witness
from tests.hosts import TWO_CELLS_EIGHT_CPUS, host

PICTURE: Final = Path(__file__).parents[1] / "docs/picture.svg"
PLAY: Final = """\
import sys
from rich.console import Console
from agent.demo import run_demo
console = Console(force_terminal={terminal}, width={width}, height=24)
sys.exit(run_demo(console{pace}))
"""


def play(*, terminal: bool = False, width: int = 80, pace: str = "") -> list[str]:
    """Run the demo, which has to succeed, and return what it wrote."""
    code = PLAY.format(terminal=terminal, width=width, pace=pace)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"TERM": "xterm"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def piped() -> list[str]:
    return play()


@pytest.fixture(scope="module")
def scenes(piped: list[str]) -> dict[str, list[str]]:
    """The lines of each scene, by its title."""
    told = "\n".join(piped).split("\n\n")
    return {part.splitlines()[0]: part.splitlines()[1:] for part in told[1:-1]}


def scene(scenes: dict[str, list[str]], number: int) -> list[str]:
    return scenes[SCRIPT[number].title]


def test_every_scene_is_played_to_its_end(scenes: dict[str, list[str]]) -> None:
    assert list(scenes)[1:] == [one.title for one in SCRIPT]


def test_a_pool_is_shared_up_to_the_ratio_and_then_grows(scenes: dict[str, list[str]]) -> None:
    assert scene(scenes, 0)[0] == "  cell 0  [0C 1o] [2+ 3o]  need 1, pool 2"
    assert scene(scenes, 1)[0] == "  cell 0  [0C 1C] [2P 3o]  need 1, pool 2"
    assert scene(scenes, 2)[0] == "  cell 0  [0C 1C] [2P 3+]  need 2, pool 2-3"
    assert "  web-1: 2 to 2-3 (widen)" in scene(scenes, 2)


def test_a_claimed_pcpu_leaves_the_pool_away_from_real_time(scenes: dict[str, list[str]]) -> None:
    assert scene(scenes, 4)[1:] == [
        "  cell 1  [4R 5o] [6! 7+]  need 1, pool 7",
        "  radio: 6 to 7 (evacuate)",
        "  db: unpinned to 7 (arrive)",
    ]


def test_a_pool_shrinks_when_the_delay_has_passed(scenes: dict[str, list[str]]) -> None:
    assert scene(scenes, 5)[0] == "  cell 0  [0C 1C] [2P 3P]  need 1, pool 2-3"
    assert scene(scenes, 6)[0] == "  cell 0  [0C 1C] [2P 3-]  need 1, pool 2"


def test_the_pools_at_the_end_are_what_is_needed(scenes: dict[str, list[str]]) -> None:
    assert scene(scenes, -1)[:2] == [
        "  cell 0  [0C 1o] [2P 3o]  need 1, pool 2",
        "  cell 1  [4R 5o] [6C 7P]  need 1, pool 7",
    ]


def test_the_last_line_says_what_was_seen(piped: list[str]) -> None:
    seen = re.fullmatch(
        r"Seen: cell 0's pool grew 1 -> 2, shrank 2 -> 1; 1 evacuated; nobody on a claimed pCPU "
        r"after any of [0-9]+ cycles; ([0-9]+) of ([0-9]+) pins confirmed by libvirt\.",
        piped[-1],
    )
    assert seen is not None
    assert int(seen[1]) == int(seen[2]) >= 20


def test_a_pipe_gets_plain_text(piped: list[str]) -> None:
    assert "\n".join(piped).isascii()
    assert "\x1b" not in "".join(piped)


def test_on_a_terminal_one_picture_changes_and_fits(piped: list[str]) -> None:
    written = "\n".join(play(terminal=True, pace=", pace=0.05"))
    seen = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written).split())
    assert "[0C 1C] [2P 3+]" in seen
    assert piped[-1].partition(" after")[0] in seen
    redrawn = re.findall(r"(?:\x1b\[1A\x1b\[2K)+", written)
    assert len(redrawn) >= len(SCRIPT)
    assert max(rows.count("1A") for rows in redrawn) < 24


def test_the_picture_in_the_documentation_is_what_the_demo_draws(tmp_path: Path) -> None:
    file = tmp_path / "picture.svg"
    done = drawn(file)
    assert (done.returncode, done.stderr) == (0, "")
    assert file.read_text() == PICTURE.read_text()
    assert scene_told_in(file.read_text()) == SCRIPT[4].title


def drawn(file: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "agent", "demo", "--svg", str(file)]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)


def scene_told_in(svg: str) -> str | None:
    """Return the title of a picture."""
    return ET.fromstring(svg).findtext("{http://www.w3.org/2000/svg}title")


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    done = drawn(tmp_path / "none" / "picture.svg")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("picture.svg: No such file or directory")


# its parts


def test_the_sample_host_is_the_host_that_the_tests_know() -> None:
    found = SampleHost().discover()
    known = host(TWO_CELLS_EIGHT_CPUS)
    assert found.problems == ()
    assert found.host.cells == known.cells
    assert SampleHost().online() == known.online
    assert [cpu.siblings for cpu in found.host.cpus] == [cpu.siblings for cpu in known.cpus]


def test_the_sample_guests_say_what_they_are() -> None:
    guests = [one.starts for one in SCRIPT if one.starts]
    domains = {guest.name: domainxml.parse(guest.xml) for guest in guests}
    assert {name: str(domain.claims) for name, domain in domains.items()} == {
        "web-1": "0",
        "web-2": "1",
        "batch": "",
        "radio": "4",
        "db": "6",
    }
    assert str(domains["radio"].realtime_claims) == "4"
    assert all(not domain.flaws and domain.own for domain in domains.values())
    assert [domain.memnode for domain in domains.values()] == [
        frozenset({guest.cell}) for guest in guests
    ]


def test_without_a_kernel_no_guest_is_found() -> None:
    kernel = NoKernel()
    assert kernel.partition() is None
    assert kernel.locate("uuid", 1) is None


def witness() -> Witness:
    """One that saw what it should."""
    made = Witness()
    made.sizes[CellId(0)] = [0, 1, 2, 1]
    made.evacuated, made.pins, made.cycles = 1, 20, 9
    return made


def test_a_witness_who_saw_all_of_it_is_content() -> None:
    assert witness().content


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        pytest.param("wrong", 1, "19 of 20 pins", id="libvirt says otherwise"),
        pytest.param("intruders", 1, "1 times somebody", id="somebody is on a claimed pCPU"),
        pytest.param("evacuated", 0, "0 evacuated", id="nobody was evacuated"),
        pytest.param("sizes", {CellId(0): [0, 1, 0]}, "no pool changed", id="no pool changed"),
        pytest.param("sizes", {CellId(0): [0, 1, 2]}, "grew 1 -> 2;", id="no pool shrank"),
    ],
)
def test_a_witness_who_missed_something_says_so(field: str, value: object, words: str) -> None:
    doubting = witness()
    setattr(doubting, field, value)
    assert not doubting.content
    assert words in doubting.verdict()
