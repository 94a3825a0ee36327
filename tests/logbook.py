"""What is logged, and what docs/logs.md says of it.

with Logbook() as book:
    ...
    assert book.told("fault.began") == [...]
"""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from agent import logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "logs.md"

_HEADING: Final = re.compile(
    r"^### `([a-z.]+)`\n\nLevel: ([^.]+)\. Logger: `([a-z]+)`\.\n", re.MULTILINE
)
_FIELDS: Final = re.compile(r"^\| field \|.*\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)


TYPES: Final[dict[str, Callable[[Any], bool]]] = {
    "any": lambda _: True,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "list of strings": lambda value: (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    ),
    "map of strings": lambda value: (
        isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    ),
    "map of integers": lambda value: (
        isinstance(value, dict) and all(isinstance(item, int) for item in value.values())
    ),
}


@dataclass(frozen=True)
class Documented:
    """What the document says of one event."""

    levels: frozenset[str]
    logger: str
    fields: dict[str, str]  # types by name
    text: str


@cache
def documented() -> dict[str, Documented]:
    """Return what the document says, by event."""
    text = DOCUMENT.read_text()
    found = list(_HEADING.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    events = {}
    for match, end in zip(found, ends, strict=True):
        body = text[match.end() : end].partition("\n## ")[0]
        levels = frozenset(re.findall(r"`([a-z]+)`", match[2]))
        events[match[1]] = Documented(levels, match[3], fields(body), body)
    return events


def fields(text: str) -> dict[str, str]:
    """Return the types of the fields in the first table of fields, by name."""
    table = _FIELDS.search(text)
    rows = table[1].splitlines() if table else []
    cells = ([cell.strip() for cell in row.strip("|").split(" | ")] for row in rows)
    return {name.strip("` "): kind for name, kind, unit, meaning in cells if unit and meaning}


def read(line: str) -> dict[str, Any]:
    """Return the event of one line; one that is not as the document has it fails the test."""
    event: dict[str, Any] = json.loads(line)
    about = documented()[event["event"]]
    assert event["level"] in about.levels
    assert event["logger"] == about.logger
    for name, value in event.items():
        kind = {**_common(), **about.fields}[name]
        assert TYPES[kind](value), (event["event"], name, value)
    return event


@cache
def _common() -> dict[str, str]:
    return fields(DOCUMENT.read_text())


class Logbook:
    """Keeps all that is logged while it is open, from debug on."""

    def __init__(self, form: str = "json") -> None:
        self._stream = io.StringIO()
        self._form = form

    def __enter__(self) -> Self:
        logs.configure("debug", self._form, self._stream)
        return self

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def __exit__(self, *_: object) -> None:
        logs.configure("warning", "auto", sys.__stderr__ or io.StringIO())

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield all events; one that is not as the document has it fails the test."""
        return map(read, self.text.splitlines())

    def told(self, *names: str, least: str = "debug") -> list[dict[str, Any]]:
        """Return the events of these names, of all if none are given, from a level on."""
        return [
            event
            for event in self.events()
            if (not names or event["event"] in names)
            and logs.LEVELS[event["level"]] >= logs.LEVELS[least]
        ]

    def clear(self) -> None:
        """Forget what was logged so far."""
        self._stream.seek(0)
        self._stream.truncate()
