"""A whole host as one SVG picture that stands alone: for a document or a slide.

The tiles are those of the status page. Nothing wraps by itself in SVG, so all is laid out here, in
a picture of one width: cells side by side if that leaves each enough, cores in rows.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from agent import words
from agent.page import tiles

if TYPE_CHECKING:
    from agent.picture import Cache, CellPicture, Picture

WIDTH: Final = 880
_MARGIN: Final = 24
_PAD: Final = 14
_GAP: Final = 6
_LINE: Final = 20
_NARROWEST: Final = 340
_LETTER: Final = 7.4
"""Pixels that a letter of a fact takes, on the whole."""
_FACT: Final = 80
"""Where the text of a fact begins."""
_MARK: Final = 20

_STYLE: Final = """\
.b{fill:var(--paper)}
.o{fill:none;stroke:var(--faint)}
.s,.n,.h,.m{font:14px system-ui,'Segoe UI',Helvetica,Arial,sans-serif;fill:var(--ink)}
.s{fill:var(--soft)}
.m{font-size:11px;fill:var(--soft)}
.h{font-size:16px;font-weight:bold}
.strong{font-weight:bold}
.odd,.wrong{font-weight:bold}
.wrong{fill:var(--wrong)}
"""


def draw(title: str, subtitle: str, picture: Picture) -> str:
    """Return the picture as the text of a file."""
    sheet = _Sheet(picture)
    sheet.text(_MARGIN, 36, title, "h")
    sheet.text(_MARGIN, 36 + _LINE, subtitle, "s")
    bottom = _legend(sheet, _cells(sheet, 76) + 8)
    size = f'width="{WIDTH}" height="{bottom}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {bottom}" '
        f'role="img" aria-labelledby="title told"><title id="title">{escape(title)}</title>'
        f'<desc id="told">{escape(_described(picture))}</desc>'
        f"<style>{tiles.STYLE}{_STYLE}</style>{tiles.PATTERNS}\n"
        f'<rect class="b" {size}/>\n' + "\n".join(sheet.parts) + "\n</svg>\n"
    )


class _Sheet:
    """What has been drawn so far."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, style: str) -> None:
        self.parts.append(f'<text class="{style}" x="{x}" y="{y}">{escape(text)}</text>')

    def frame(self, x: float, y: float, wide: float, high: float) -> None:
        box = f'x="{x + 0.5}" y="{y + 0.5}" width="{wide}" height="{high}" rx="8"'
        self.parts.append(f'<rect class="o" {box}/>')

    def group(self, x: float, y: float, inner: str) -> None:
        self.parts.append(f'<g transform="translate({x} {y})">{inner}</g>')


def _cells(sheet: _Sheet, top: int) -> int:
    """Draw the cells in rows that are as even as can be; return where they end."""
    cells = sheet.picture.cells
    most = (WIDTH - 2 * _MARGIN) // _NARROWEST
    across = max(1, -(-len(cells) // -(-len(cells) // most))) if cells else 1
    wide = (WIDTH - 2 * _MARGIN - (across - 1) * _PAD) // across
    for first in range(0, len(cells), across):
        row = cells[first : first + across]
        left = [_MARGIN + place * (wide + _PAD) for place in range(across)]
        ends = [_cell(sheet, cell, x, top, wide) for cell, x in zip(row, left, strict=False)]
        for x, _ in zip(left, row, strict=False):
            sheet.frame(x, top, wide, max(ends) - top)
        top = max(ends) + _PAD
    return top


def _cell(sheet: _Sheet, cell: CellPicture, x: int, top: int, wide: int) -> int:
    left, y = x + _PAD, top + _PAD + 14
    sheet.text(left, y, f"NUMA {cell.title}", "h")
    letters = int((wide - 2 * _PAD - _FACT) / _LETTER)
    for fact in cell.facts:
        y += _LINE
        sheet.text(left, y, fact.name, "s")
        sheet.text(left + _FACT, y, words.plain(fact.text, letters), f"n {fact.tone.value}")
    y += _PAD
    for block in cell.blocks:
        if len(cell.blocks) > 1:
            sheet.text(left, y + 14, block.title, "s")
            y += _LINE
        for cache in block.caches:
            y = _cache(sheet, cell, cache, left, y, wide - 2 * _PAD)
    return y + _PAD - _GAP


def _cache(sheet: _Sheet, cell: CellPicture, cache: Cache, left: int, top: int, wide: int) -> int:
    edge = _GAP if cache.told else 0
    threads = max(map(len, cache.cores))
    step = tiles.width(threads) + _GAP
    across = max(1, (wide - 2 * edge + _GAP) // step)
    y = top + edge
    if cache.told:
        sheet.text(left + edge, top + 14, "L3", "m")
        y = top + _LINE
    rows = [cache.cores[first : first + across] for first in range(0, len(cache.cores), across)]
    for row in rows:
        for place, core in enumerate(row):
            tile = tiles.core(sheet.picture, cell, core)
            sheet.group(left + edge + place * step, y, tile)
        y += tiles.CORE_HIGH + _GAP
    if cache.told:
        widest = min(across, len(cache.cores)) * step - _GAP + 2 * edge
        sheet.frame(left, top, widest, y - top)
        y += _GAP
    return y


def _legend(sheet: _Sheet, top: int) -> int:
    """Draw what the letters mean, in as many lines as that takes; return where all ends."""
    x = _MARGIN
    for use, meaning in sheet.picture.legend():
        wide = _MARK + 8 + int(len(meaning) * _LETTER) + 18
        if x + wide > WIDTH - _MARGIN and x > _MARGIN:
            x, top = _MARGIN, top + _MARK + 8
        sheet.group(x, top, tiles.mark(use))
        sheet.text(x + _MARK + 8, top + 15, meaning, "n")
        x += wide
    return top + _MARK + _MARGIN


def _described(picture: Picture) -> str:
    """Return the picture in words."""
    return " ".join(f"{cell.title}: {_uses(picture, cell)}." for cell in picture.cells)


def _uses(picture: Picture, cell: CellPicture) -> str:
    uses = cell.by_use()
    return "; ".join(f"{picture.meaning(use)}: {cpus}" for use, cpus in uses)
