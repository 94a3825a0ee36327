"""Text for a terminal: harmless, exact, and breaking where it may.

Names and warnings hold what tenants wrote. None of it is ever read as markup (texts are rich's
`Text`), and what could drive the terminal, reorder a line or hide is replaced.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

Json = dict[str, Any]

NAME: Final = 40
"""Characters kept of a name."""
TEXT: Final = 300
"""Characters kept of a sentence."""
WIDE: Final = 120
"""Columns at least where nobody looks at the width: in a file or a pipe."""

# Controls, formats (direction of reading, zero width), surrogates, private, unassigned, separators.
_HOSTILE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SHORT: Final = 16
_LONG: Final = 60
_FEWEST: Final = 8
"""Rows that a table has on the smallest terminal."""


@dataclass(frozen=True, slots=True)
class Paper:
    """What is drawn on: columns, whether boxes are drawn, and rows of a table (None: all)."""

    width: int
    framed: bool
    rows: int | None

    @classmethod
    def of(cls, console: Console) -> Paper:
        """Return the terminal, or a wide page without frames."""
        if console.is_terminal:
            return cls(console.width, framed=True, rows=max(_FEWEST, console.height // 3))
        return cls(max(console.width, WIDE), framed=False, rows=None)

    def shown(self, count: int) -> int:
        """Return how many of `count` rows to draw; a row is not left out for a line about it."""
        if self.rows is None or count <= self.rows + 1:
            return count
        return self.rows


def plain(value: object, length: int = NAME) -> str:
    """Return a value as one line of at most `length` harmless characters."""
    text = str(value)
    kept = text if len(text) <= length else text[: length - 3] + "..."
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in _HOSTILE else char
        for char in kept
    )


def name(row: Json) -> str:
    """Return what an operator calls a guest."""
    return plain(row.get("name") or row["uuid"])


def cpus(text: str | None, none: str = "-") -> str:
    """Return a set of pCPUs; a long one may be broken after a comma, never within a number."""
    if not text:
        return none
    return text if len(text) <= _SHORT else text.replace(",", ", ")


def few(text: str) -> str:
    """Return a set of pCPUs like `cpus`; of a very long one, which a picture shows, the start."""
    if len(text) <= _LONG:
        return cpus(text)
    return f"{cpus(text[: text.rindex(',', 0, _LONG)])} and more"


def decimal(text: object) -> str:
    """Return an exact number that is not negative with three decimals, halves rounded up."""
    thousandths = (Fraction(str(text)) * 2000 + 1) // 2
    return f"{thousandths // 1000}.{thousandths % 1000:03}"


def listed(names: Iterable[str], most: int | None) -> str:
    """Return names parted by commas; past `most` they are only counted."""
    every = list(names)
    if most is None or len(every) <= most:
        return ", ".join(every)
    return f"{', '.join(every[:most])} and {len(every) - most} more"


def counted(number: int, noun: str) -> str:
    """Return `1 guest`, `2 guests`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def packed(parts: Iterable[Text], width: int, gap: int = 3) -> Text:
    """Return the parts in as few lines as `width` allows, none of them broken."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + gap + part.cell_len <= width:
            lines[-1].append(" " * gap).append_text(part)
        else:
            lines.append(part.copy())
    return Text("\n").join(lines)


def heading(text: str) -> Text:
    """Return the title of a part of the page."""
    return Text(text, style="bold")
