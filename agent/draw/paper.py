"""What is drawn on, and texts as they are laid out there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

WIDE: Final = 120
"""Columns at least where nobody looks at the width: in a file or a pipe."""
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
