"""The help: of the program and of each command, as it is read on a terminal of 80 columns."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

import click
import pytest

from agent import cli
from agent.cli.sections import REST, SECTIONS

if TYPE_CHECKING:
    from pathlib import Path

GROUP: Final = cli.emupool
COMMANDS: Final = GROUP.commands
WIDTH: Final = 80


def context(*names: str) -> click.Context:
    """Return the context of a command as the program makes it."""
    made = GROUP.make_context("emupool", ["frob"])
    for name in names:
        made = click.Context(COMMANDS[name], info_name=name, parent=made)
    return made


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def lines(*names: str) -> list[str]:
    return context(*names).get_help().splitlines()


@pytest.mark.parametrize("name", ["", *sorted(COMMANDS)])
@pytest.mark.parametrize("width", [WIDTH, 200])
def test_no_line_is_wider_than_80_columns(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = lines(*([name] if name else []))
    assert [line for line in shown if len(line) > WIDTH] == []
    assert len(shown) > 5


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_and_option_says_what_it_is_for(name: str) -> None:
    command = COMMANDS[name]
    text = command.help or ""
    first = text.partition("\n\n")[0]
    assert first.endswith(".")
    assert first[0].isupper()
    for parameter in command.get_params(context(name)):
        if isinstance(parameter, click.Option):
            assert parameter.help
            assert parameter.help.endswith((".", "?"))
        else:
            assert parameter.make_metavar(context(name)) in text, "an argument is explained"


def test_each_command_has_one_heading_and_its_whole_first_sentence() -> None:
    shown = lines()
    for name, command in COMMANDS.items():
        if not command.hidden:
            first = " ".join((command.help or "").partition("\n\n")[0].split())
            assert [line.split(maxsplit=1)[1] for line in shown if line.split()[:1] == [name]] == [
                first
            ]
    assert f"{REST}:" not in shown, "a new command wants a heading in agent/cli/sections.py"
    placed = [name for names in SECTIONS.values() for name in names]
    assert len(placed) == len(set(placed))


def test_the_headings_are_in_the_order_in_which_they_are_met() -> None:
    shown = [line for line in lines() if line.endswith(":") and not line.startswith(" ")]
    assert shown == ["Options:", *(f"{heading}:" for heading in SECTIONS)]


EXAMPLES: Final = [
    pytest.param(name, line.strip().partition("    ")[0], id=line.strip())
    for name, command in sorted(COMMANDS.items())
    for line in (command.epilog or "").splitlines()
    if line.strip().startswith("emupool")
]


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_each_example_is_a_command(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("root", "domains"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    program, command, *arguments = shlex.split(line.partition(" > ")[0])
    assert (program, command) == ("emupool", name)
    COMMANDS[name].make_context(name, arguments)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5
