"""From a file to the tree, or to one error that says all that is wrong with it."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any, Final

from agent.config.tables import Walk
from agent.config.values import shown
from agent.errors import ConfigError, Problem

if TYPE_CHECKING:
    from pathlib import Path

    from agent.config.settings import Config

MAX_BYTES: Final = 1 << 20
"""A larger file is not a configuration."""

_PLACE = re.compile(r" \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)\Z")


def load(path: Path) -> Config:
    """Read the file; ConfigError names it, and has every problem of it."""
    name = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        remedy = "give a readable file, such as a copy of config.example.toml"
        raise _refused(name, "file", why, remedy) from None
    if len(data) > MAX_BYTES:
        raise _refused(name, "file", f"over {MAX_BYTES} bytes", "this is no configuration")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        broken = shown(data[error.start : error.end])
        raise _refused(name, f"line {line}", broken, "save the file as UTF-8") from None
    return parse(text, name)


def parse(text: str, name: str) -> Config:
    """Read the text of a file; `name` is what a ConfigError calls it."""
    walk = Walk(_document(text, name))
    config = walk.config()
    problems = walk.problems()
    if problems:
        raise ConfigError(name, problems)
    return config


def _document(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax(text, name, str(error)) from None
    except (ValueError, RecursionError) as error:
        # tomllib lets through what Python says of an integer of 4300 digits, of lists in lists.
        raise _refused(name, "file", shown(str(error)), "not readable as TOML") from None


def _syntax(text: str, name: str, message: str) -> ConfigError:
    """Return the error for `message` of tomllib, with the line that it speaks of."""
    lines = text.replace("\r\n", "\n").split("\n")
    found = _PLACE.search(message)
    line, column = len(lines), len(lines[-1]) + 1
    if found and found[1]:
        line, column = int(found[1]), int(found[2])
    remedy = "not TOML: " + _PLACE.sub("", message)
    return _refused(name, f"line {line}, column {column}", shown(lines[line - 1]), remedy)


def _refused(name: str, path: str, value: str, remedy: str) -> ConfigError:
    return ConfigError(name, (Problem(path, value, remedy),))
