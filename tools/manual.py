"""Writes the manual pages, from what the program says of itself: python -m tools.manual FOLDER.

emupool.8 has its commands and options from the command line, emupool.toml.5 its tables and keys
from config.example.toml; the prose around them is in man/, as mdoc(7), the language of the pages.
So neither can tell of a thing that is not there, or forget one that is.
"""

from __future__ import annotations

import os
import re
import sys
from datetime import UTC, datetime
from inspect import cleandoc
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from agent import __version__
from agent.cli import emupool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT: Final = Path(__file__).parents[1]
EXAMPLE: Final = ROOT / "config.example.toml"

KEY: Final = re.compile(r"#?([a-z_]+ = .*)")
INDENT: Final = "  "
"""What begins a line that is no prose: a row of a list, or an example."""
WIDE: Final = 16
"""From this width on, a list's terms stand on lines of their own."""
COLUMNS: Final = re.compile(r" {2,}")
SENTENCE: Final = re.compile(r"(?<=[.?]) (?=[A-Z])")
QUOTED: Final = re.compile(r"`([^`]+)`")
ESCAPES: Final = str.maketrans(
    {
        "\\": r"\e",
        '"': r"\(dq",
        "'": r"\(aq",
        "-": r"\-",
        "^": r"\(ha",
        "`": r"\(ga",
        "~": r"\(ti",
    }
)


def pages(written: datetime) -> dict[str, str]:
    """Return the pages by their file names, dated as they are asked to be."""
    head = {"DATE": f"{written:%B} {written.day}, {written.year}", "VERSION": __version__}
    return {
        "emupool.8": _filled("emupool.8", {**head, "COMMANDS": _lines(commands(emupool))}),
        "emupool.toml.5": _filled(
            "emupool.toml.5", {**head, **configuration(EXAMPLE.read_text(encoding="utf-8"))}
        ),
    }


def _filled(name: str, parts: dict[str, str]) -> str:
    template = (ROOT / "man" / f"{name}.in").read_text(encoding="utf-8")
    filled = re.sub("@([A-Z]+)@", lambda found: parts[found[1]], template)
    return re.sub(r"(?m)^(\.Ss .*\n)\.Pp\n", r"\1", filled)


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)


# --- the command line ---


def commands(group: click.Group) -> Iterator[str]:
    """Say of each command how it is called, what it does, and what its options are."""
    for name, command in group.commands.items():
        yield f".Ss {literal(name)}"
        yield ".Nm"
        yield f".Cm {literal(name)}"
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        yield from (f".Op {_call(option)}" for option in options)
        yield from (f".Ar {p.human_readable_name}" for p in command.params if p not in options)
        yield ".Pp"
        yield from prose(cleandoc(command.help or "").splitlines())
        if options:
            yield ".Bl -tag -width Ds"
            for option in options:
                yield f".It {_call(option)}"
                yield from _sentences(option.help or "")
            yield ".El"


def _call(option: click.Option) -> str:
    value = "" if option.is_flag else f" Ar {_value(option)}"
    names = (f"Fl {literal(name[1:])}" for name in (*option.opts, *option.secondary_opts))
    more = " ..." if option.multiple else ""
    return " | ".join(name + value for name in names) + more


def _value(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    return option.metavar or option.type.name.split()[0]


# --- the configuration ---


def configuration(example: str) -> dict[str, str]:
    """Return what the file says before its first table, and of each table."""
    blocks = [block.splitlines() for block in re.split(r"\n{2,}", example.strip())]
    first = next(number for number, block in enumerate(blocks) if block[0].startswith("["))
    introduction = [line for block in blocks[:first] for line in _comment([*block, "#"])]
    return {
        "INTRODUCTION": _lines(prose(introduction[2:])),  # its first line is a title, then "#"
        "TABLES": _lines(line for block in blocks[first:] for line in _block(block)),
    }


def _block(block: list[str]) -> Iterator[str]:
    """Say what stands between two empty lines: a table's name, a remark, or keys with one."""
    if block[0].startswith("["):
        yield f".Ss {literal(block[0])}"
        block = block[1:]
    keys = [found[1] for line in block if (found := KEY.fullmatch(line))]
    remark = list(prose(_comment(block)))
    if keys:
        yield ".Bl -tag -width Ds"
        yield from map(_item, keys)
        yield from remark
        yield ".El"
    elif remark:
        yield ".Pp"
        yield from remark


def _comment(block: Iterable[str]) -> list[str]:
    return [line[2:] for line in block if re.match("#( |$)", line)]


# --- text ---


def prose(lines: Iterable[str]) -> Iterator[str]:
    """Set paragraphs, lists of two columns, and examples, as indentation tells them apart."""
    begun = False
    for (empty, indented), group in groupby(lines, lambda line: (not line, line[:2] == INDENT)):
        if empty:
            continue
        rows = list(group)
        if not indented:
            block = _sentences(" ".join(rows))
        elif len(COLUMNS.split(rows[0].strip())) % 2:
            block = [".Bd -literal -offset indent", *map(literal, rows), ".Ed"]
        else:
            block = _list(rows)
        if begun and not block[0].startswith(".Bd"):
            yield ".Pp"
        yield from block
        begun = True


def _sentences(text: str) -> list[str]:
    """Return a line for each sentence, as mdoc(7) wants them."""
    marked = QUOTED.sub(r"\\(oq\1\\(cq", text.replace("\\", r"\e")).replace("--", r"\-\-")
    return [rf"\&{line}" if line[0] in ".'" else line for line in SENTENCE.split(marked)]


def _list(rows: list[str]) -> list[str]:
    """Set rows of term and meaning, once or more; a row of one column goes on with the meaning."""
    items: list[tuple[str, str]] = []
    for row in rows:
        columns = COLUMNS.split(row.strip())
        if len(columns) % 2:
            items[-1] = (items[-1][0], f"{items[-1][1]} {columns[0]}")
        else:
            items += zip(columns[::2], columns[1::2], strict=True)
    width = max(len(term) for term, _ in items)
    hung = "x" * width if width < WIDE else "Ds"
    return [
        f".Bl -tag -width {hung} -offset indent -compact",
        *(line for term, meaning in items for line in (_item(term), *_sentences(meaning))),
        ".El",
    ]


def _item(term: str) -> str:
    return f'.It Li "{literal(term)}"'


def literal(text: str) -> str:
    """Return text that is shown as it is, also as an argument of a macro."""
    return text.removeprefix(INDENT).translate(ESCAPES)


def main(folder: Path) -> None:
    """Write the pages, dated by SOURCE_DATE_EPOCH: built again, they are the same."""
    written = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages(written).items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
