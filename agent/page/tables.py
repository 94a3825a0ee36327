"""Guests, steps and warnings of the status page, what needs the operator first."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

from agent import words
from agent.picture import moves, urgency

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from agent.picture import Move
    from agent.words import Json

_NAMES: Final = 20
"""Guests that one row of steps names."""


def guests(status: Json) -> str:
    """Return the table of guests."""
    if not status["guests"]:
        return "<h2>Guests</h2><p>No guests.</p>"
    rows = (_guest(row) for row in sorted(status["guests"], key=urgency))
    return "".join(_table("guests", "Guests", rows))


def steps(status: Json) -> str:
    """Return what is still to be done, or nothing; guests that move alike in one row."""
    if not status["steps"]:
        return ""
    return "".join(_table("steps", "Still to do", map(_move, moves(status))))


def warnings(status: Json) -> str:
    """Return the list of warnings, or nothing."""
    items = "".join(f"<li>{escape(_warning(row))}</li>" for row in status["warnings"])
    return f"<h2>Warnings</h2><ul>{items}</ul>" if items else ""


def _table(name: str, title: str, rows: Iterable[str]) -> Iterator[str]:
    """Yield a table that scrolls by itself where it is too wide, by keyboard too."""
    yield f'<h2 id="{name}">{title}</h2><div class="wide" role="region" aria-labelledby="{name}" '
    yield f'tabindex="0"><table class="{name}"><thead><tr>'
    yield from (f'<th scope="col">{column}</th>' for column in COLUMNS[name])
    yield from ("</tr></thead><tbody>", *rows, "</tbody></table></div>")


def _guest(row: Json) -> str:
    style = "" if row["state"] in {None, "placed"} else ' class="amiss"'
    return _row(words.name(row), (value(row) for value in _GUEST.values()), style)


def _move(move: Move) -> str:
    who = words.listed(move.who, _NAMES)
    return _row(move.reason, (move.why, move.origin, move.target, who))


def _row(name: str, values: Iterable[object], style: str = "") -> str:
    cells = "".join(f"<td>{'' if one is None else escape(str(one))}</td>" for one in values)
    return f'<tr{style}><th scope="row">{escape(name)}</th>{cells}</tr>'


def _verified(row: Json) -> str:
    stuck = f", {row['stuck']} stuck" if row["stuck"] else ""
    verified = "yes" if row["verified"] else "no"
    return (verified if row["managed"] else "-") + stuck


def _warning(row: Mapping[str, Any]) -> str:
    guest, field = words.plain(row["guest"] or "host"), words.plain(row["field"])
    return f"{guest}: {field}: {words.plain(row['text'], words.TEXT)}"


_GUEST: Final[Mapping[str, Callable[[Json], object]]] = {
    "state": lambda row: row["state"] or "not managed",
    "cell": lambda row: row["cell"],
    "policy": lambda row: f"{row['policy']} ({row['source']})",
    "wanted": lambda row: words.few(row["emulator_pcpus"] or ""),
    "libvirt": lambda row: words.few(row["live"] or "unpinned"),
    "kernel": lambda row: words.few(row["kernel"] or "-"),
    "verified": _verified,
    "why": lambda row: words.plain(row["reason"], words.TEXT),
}
"""What is told of a guest beside its name, by column."""
COLUMNS: Final = {
    "guests": ("guest", *_GUEST),
    "steps": ("step", "because", "from", "to", "guests"),
}
"""The columns of each table; the first one names the row."""
