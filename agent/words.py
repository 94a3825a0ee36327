"""Values as text for people, on a terminal and in a page: harmless, exact, breaking where it may.

Names and warnings hold what tenants wrote: what could drive a terminal, reorder a line or hide is
replaced. Whoever shows a text as HTML escapes it besides.
"""

from __future__ import annotations

import unicodedata
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

Json = dict[str, Any]

NAME: Final = 40
"""Characters kept of a name."""
TEXT: Final = 300
"""Characters kept of a sentence."""

# Controls, formats (direction of reading, zero width), surrogates, private, unassigned, separators.
_HOSTILE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SHORT: Final = 16
_LONG: Final = 60


def plain(value: object, length: int = NAME) -> str:
    """Return a value as one line of at most `length` harmless characters."""
    text = str(value)
    kept = text if len(text) <= length else text[: length - 3] + "..."
    if kept.isascii() and kept.isprintable():
        return kept
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
