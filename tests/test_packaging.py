"""What the Debian package is made of: manual pages, completion, scripts, and what it promises.

That all of it works once installed is for `make test-deb` to prove.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from agent import cli
from agent.config import Config, parse, to_json
from agent.config.keys import RULE
from tools import manual

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1]
DEBIAN: Final = ROOT / "debian"
RULES: Final = (DEBIAN / "rules").read_text()
CONTROL: Final = (DEBIAN / "control").read_text()
PAGES: Final = manual.pages(datetime(2017, 6, 21, tzinfo=UTC))
COMMANDS: Final = cli.emupool.commands
MACROS: Final = frozenset(re.findall("..", "ArBdBlCmDdDlDtDvEdElFlItLiNdNmOpOsPaPpShSsXr"))
"""Those of mdoc(7) that a line may begin with; another word there is text gone astray."""
SHELLS: Final = ("bash", "fish", "zsh")
SCRIPTS: Final = (
    *(DEBIAN / name for name in ("postinst", "prerm", "postrm")),
    *sorted((ROOT / "tools").glob("*.sh")),
)


# --- the manual pages ---


def sections(page: str) -> dict[str, str]:
    """Return what stands below each heading of either depth."""
    parts = re.split(r"^\.S[hs] (.*)\n", PAGES[page], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def subsections(page: str) -> list[str]:
    return re.findall(r"^\.Ss (.*)$", PAGES[page], re.MULTILINE)


def terms(section: str) -> list[str]:
    return re.findall(r"^\.It (.*)$", section, re.MULTILINE)


def keys(section: str) -> set[str]:
    """Return the terms that are a key and its default; the others are values of one."""
    return {found[1] for term in terms(section) if (found := re.match(r'Li "(\w+) = ', term))}


def plain(text: str) -> str:
    """Return the words of a section, as they are read."""
    text = re.sub(r"^\.\w+.*$", "", text, flags=re.MULTILINE)
    return " ".join(re.sub(r"\\(\(oq|\(cq|&)", "", text.replace(r"\-", "-")).split())


def test_the_page_has_each_command_and_no_other() -> None:
    assert subsections("emupool.8") == [manual.literal(name) for name in COMMANDS]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_is_described_with_each_of_its_options(command: click.Command) -> None:
    section = sections("emupool.8")[manual.literal(command.name or "")]
    described = terms(section)
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert len(described) == len(options)
    for option, term in zip(options, described, strict=True):
        for name in option.opts:
            assert f"Fl {manual.literal(name[1:])}" in term
        assert option.help
        assert plain(option.help.replace("`", "")) in plain(section)
    assert command.help
    assert plain(command.help.split(".")[0]) in plain(section)
    for argument in set(command.params) - set(options):
        assert f".Ar {argument.human_readable_name}" in section


def test_the_page_has_each_key_in_its_table_and_no_other() -> None:
    tree = to_json(Config())
    found = {
        heading[1:-1]: keys(text)
        for heading, text in sections("emupool.toml.5").items()
        if heading.startswith("[")
    }
    assert found == {name: set(table) - {"cell", "rule"} for name, table in tree.items()}


def test_the_page_shows_the_defaults_of_the_example() -> None:
    for line in re.findall(r"^#([a-z_]+ = .*)$", manual.EXAMPLE.read_text(), re.MULTILINE):
        assert f'.It Li "{manual.literal(line)}"' in PAGES["emupool.toml.5"]


@pytest.mark.parametrize("key", RULE)
def test_the_page_speaks_of_each_key_of_a_rule(key: str) -> None:
    assert re.search(rf"\b{key}\b", plain(sections("emupool.toml.5")["[guests]"]))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole(page: str) -> None:
    lines = PAGES[page].splitlines()
    assert not [line for line in lines if line.startswith("'") or "@" in line or not line]
    used = [line.split()[0][1:] for line in lines if line.startswith(".")]
    assert set(used) <= MACROS
    assert used.count("Bl") == used.count("El")
    assert used.count("Bd") == used.count("Ed")
    assert lines[0] == ".Dd June 21, 2017"


PROSE: Final[dict[str, tuple[list[str], list[str]]]] = {
    "a line that looks like a request": ([".so x"], [r"\&.so x"]),
    "one that looks like another": (["'so x"], [r"\&'so x"]),
    "a backslash": ([r"a\b"], [r"a\eb"]),
    "an option": (["give --json"], [r"give \-\-json"]),
    "two sentences in two lines": (["One. Two", "more."], ["One.", "Two more."]),
    "two paragraphs": (["One.", "", "Two."], ["One.", ".Pp", "Two."]),
    "an example": (["So:", "", "   a = 1"], ["So:", ".Bd -literal -offset indent"]),
}


@pytest.mark.parametrize(("text", "lines"), PROSE.values(), ids=PROSE)
def test_prose_is_set_as_it_is_meant(text: list[str], lines: list[str]) -> None:
    assert list(manual.prose(text))[: len(lines)] == lines


# --- completion ---


def complete(shell: str, words: str = "", ask: str = "source") -> str:
    """Return what the program answers to a shell that asks it, as the package's build does too."""
    wish = {"_EMUPOOL_COMPLETE": f"{shell}_{ask}", "COMP_WORDS": words, "COMP_CWORD": "1"}
    asked = subprocess.run(
        [sys.executable, "-m", "agent"],
        env={**os.environ, **wish},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=ROOT,
    )
    return asked.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_is_given_a_script(shell: str) -> None:
    assert f"_EMUPOOL_COMPLETE={shell}_source $(python) -m agent" in RULES
    assert f"_EMUPOOL_COMPLETE={shell}_complete" in complete(shell)


def test_each_command_completes() -> None:
    answers = complete("bash", "emupool ", "complete").splitlines()
    assert set(answers) == {f"plain,{name}" for name in COMMANDS}


# --- the scripts ---


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_one(script: Path) -> None:
    first = script.read_text().splitlines()[0]
    shell = "sh" if first == "#!/bin/sh" else "bash"
    assert first in {"#!/bin/sh", "#!/bin/bash", "# shellcheck shell=bash"}
    checked = subprocess.run([shell, "-n", script], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_purge_takes_what_the_daemon_wrote() -> None:
    assert f"rm -rf {Config().state.path.parent}\n" in (DEBIAN / "postrm").read_text()


# --- what it promises ---


def test_its_configuration_differs_in_the_dry_run_alone() -> None:
    made = subprocess.run(
        ["sed", "-f", DEBIAN / "config.sed", manual.EXAMPLE],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert parse(made, "config.toml") == replace(
        Config(), reconcile=replace(Config().reconcile, dry_run=True)
    )
    assert "systemctl reload emupool\ndry_run = true\n" in made


def test_unit_and_user_are_those_of_the_repository() -> None:
    for name, original in {
        "emupool.service": "emupool.service",
        "emupool.sysusers": "emupool.sysusers.conf",
    }.items():
        assert (DEBIAN / name).resolve() == ROOT / "systemd" / original


def test_it_is_for_the_python_that_it_was_built_with() -> None:
    (minor,) = set(re.findall(r"python3\.(\d+)", RULES))
    bounds = f"python3 (>= 3.{minor}),\n python3 (<< 3.{int(minor) + 1})"
    assert CONTROL.count(bounds) == 2  # to build it, and to run it


def pins() -> dict[str, str]:
    rows = re.findall(r"^(\S+)==(\S+) ", (DEBIAN / "requirements.txt").read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in rows}


def wishes() -> Iterator[Requirement]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        yield from map(Requirement, tomllib.load(file)["project"]["dependencies"])


def test_it_brings_what_the_project_needs_and_takes_libvirt_from_debian() -> None:
    brought = pins()
    for wish in wishes():
        if wish.name == "libvirt-python":
            assert wish.name not in brought
            debian = f"python3-libvirt ({wish.specifier})".replace(">=", ">= ")
            assert CONTROL.count(debian) == 2
        else:
            assert wish.specifier.contains(brought[canonicalize_name(wish.name)])


def test_each_that_it_brings_has_its_licence_told() -> None:
    told = re.findall(r"^Files: (\w+)/\*$", (DEBIAN / "copyright").read_text(), re.MULTILINE)
    for name in pins():
        assert [folder for folder in told if name.startswith(canonicalize_name(folder))], name
    assert len(told) == len(pins())


def test_the_documents_that_it_has_are_there() -> None:
    for kind in ("docs", "examples"):
        for name in (DEBIAN / f"emupool.{kind}").read_text().split():
            assert (ROOT / name).exists()
