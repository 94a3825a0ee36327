"""docs/logs.md against the code: each event that is written is described there, as it is."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from agent import logs
from tests.logbook import DOCUMENT, TYPES, documented, fields

if TYPE_CHECKING:
    from collections.abc import Iterator

AGENT: Final = Path(__file__).parents[1] / "agent"
NAME: Final = re.compile(r"[a-z]+\.[a-z]+")


class Written(NamedTuple):
    """One call that writes an event."""

    where: str
    event: str
    levels: frozenset[str]
    fields: frozenset[str]


def levels_of(function: ast.expr, names: dict[str, ast.expr]) -> frozenset[str]:
    """Return the levels at which a call of `function` logs; none if it does not."""
    match function:
        case ast.Attribute(value, "exception") if is_logger(value):
            return frozenset({"error"})
        case ast.Attribute(value, level) if level in logs.LEVELS and is_logger(value):
            return frozenset({level})
        case ast.IfExp(_, one, other):
            return levels_of(one, names) | levels_of(other, names)
        case ast.Name(name) if name in names:
            return levels_of(names[name], {})
    return frozenset()


def is_logger(value: ast.expr) -> bool:
    """Tell whether an expression is a logger: `log`, `self._log`, `logs.get("http")`."""
    match value:
        case ast.Name(name) | ast.Attribute(_, name):
            return name.strip("_") == "log"
        case ast.Call(ast.Attribute(ast.Name("logs"), "get")):
            return True
    return False


def fields_of(call: ast.Call) -> frozenset[str]:
    given = {keyword.arg or "**" for keyword in call.keywords}
    trace = isinstance(call.func, ast.Attribute) and call.func.attr == "exception"
    if trace or "exc_info" in given:
        given.add("exception")
    return frozenset(given - {"exc_info"})


def calls(function: ast.AST, where: str) -> Iterator[Written]:
    names = {
        target.id: node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and levels_of(node.value, {})
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and (levels := levels_of(node.func, names)):
            event = node.args[0]
            assert isinstance(event, ast.Constant), f"{where}:{node.lineno}: no constant name"
            assert isinstance(event.value, str)
            yield Written(f"{where}:{node.lineno}", event.value, levels, fields_of(node))


def written() -> frozenset[Written]:
    """Return all calls in agent/ that write an event."""
    return frozenset(
        call
        for path in AGENT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for call in calls(node, path.relative_to(AGENT).as_posix())
    )


WRITTEN: Final = written()
DOCUMENTED: Final = documented()


def test_an_event_is_a_noun_and_a_verb() -> None:
    assert [call for call in WRITTEN if not NAME.fullmatch(call.event)] == []


def test_the_document_and_the_code_know_the_same_events() -> None:
    assert sorted({call.event for call in WRITTEN}) == sorted(DOCUMENTED)


@pytest.mark.parametrize("event", sorted({call.event for call in WRITTEN}))
def test_the_document_has_an_events_levels_and_fields(event: str) -> None:
    same = [call for call in WRITTEN if call.event == event]
    assert DOCUMENTED[event].levels == frozenset().union(*(call.levels for call in same))
    assert set(DOCUMENTED[event].fields) == set().union(*(call.fields for call in same))


@pytest.mark.parametrize("event", sorted(DOCUMENTED))
def test_the_document_says_when_an_event_is_written_and_what_to_do(event: str) -> None:
    about = DOCUMENTED[event]
    assert set(about.fields.values()) <= TYPES.keys()
    assert len(re.findall(r"^When: \w", about.text, re.MULTILINE)) == 1
    assert len(re.findall(r"^Do: \w", about.text, re.MULTILINE)) == 1


def test_the_fields_of_all_events_are_documented() -> None:
    assert list(fields(DOCUMENT.read_text())) == ["timestamp", "level", "event", "logger"]


def test_each_line_that_looks_like_a_call_is_read_as_one() -> None:
    looks = re.compile(r"log(?:\(.*\))?\.(?:debug|info|warning|error|exception)\(")
    lines = [
        f"{path.relative_to(AGENT).as_posix()}:{number}"
        for path in AGENT.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if looks.search(line)
    ]
    assert set(lines) <= {call.where for call in WRITTEN}
    assert len(lines) > 10


def test_no_fields_are_bound_to_a_logger_out_of_sight() -> None:
    bound = [path.name for path in AGENT.rglob("*.py") if ".bind(" in path.read_text()]
    # two are sockets', one is of the logger's name
    assert sorted(bound) == ["doorkeeper.py", "listener.py", "logs.py"]
