"""From a file to the tree, or to one error that says all that is wrong with it."""

from __future__ import annotations

import codecs
import os
import re
import stat
import tomllib
from typing import TYPE_CHECKING, Any, Final

from agent.config.tables import Walk
from agent.config.values import shown
from agent.errors import ConfigError, Problem

if TYPE_CHECKING:
    from pathlib import Path

    from agent.config.settings import Config

MAX_BYTES: Final = 1 << 18
"""A larger file is not a configuration; thousands of rules are less."""

_PARTS: Final = 50
_PART: Final = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_DEEP = re.compile(rf"(?<![\w-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{_PARTS},}}+")
"""A dotted key that is no key of ours. tomllib takes hours for one of a few thousand parts."""

_PLACE = re.compile(r" \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)\Z")


def load(path: Path) -> Config:
    """Read the file; ConfigError names it, and has every problem of it."""
    name = str(path)
    try:
        data = _content(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        remedy = "give a readable file, such as a copy of config.example.toml"
        raise _refused(name, "file", why, remedy) from None
    if len(data) > MAX_BYTES:
        raise _refused(name, "file", f"over {MAX_BYTES} bytes", "this is no configuration")
    if data.startswith(codecs.BOM_UTF8):
        remedy = "save the file as UTF-8 without a byte order mark"
        raise _refused(name, "line 1", shown(codecs.BOM_UTF8), remedy)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        broken = shown(data[error.start : error.end])
        raise _refused(name, f"line {line}", broken, "save the file as UTF-8") from None
    return parse(text, name)


def _content(path: Path) -> bytes:
    """Return what a regular file holds, little more than `MAX_BYTES` of it; waits for nobody."""
    # Opening a FIFO waits for a writer, unless told not to.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("not a regular file")
        return file.read(MAX_BYTES + 1)


def parse(text: str, name: str) -> Config:
    """Read the text of a file; `name` is what a ConfigError calls it."""
    walk = Walk(_document(text, name))
    config = walk.config()
    problems = walk.problems()
    if problems:
        raise ConfigError(name, problems)
    return config


def _document(text: str, name: str) -> dict[str, Any]:
    deep = _DEEP.search(text)
    if deep:
        line = text.count("\n", 0, deep.start()) + 1
        remedy = f"a key of over {_PARTS} parts: the longest here are like pool.cell.0.cpus"
        raise _refused(name, f"line {line}", shown(deep[0]), remedy)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax(text, name, str(error)) from None
    except RecursionError:  # lists in lists; Python's text depends on where in them it gave up
        told = "beyond the recursion limit"
        raise _refused(name, "file", shown(told), "not readable as TOML") from None
    except ValueError as error:
        # tomllib lets through what Python says of an integer of 4300 digits.
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
