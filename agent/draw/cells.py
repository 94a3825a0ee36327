"""The NUMA cells of a host side by side, with a letter for each pCPU.

A letter says what a pCPU is used for; colour only repeats it. In small cells each pCPU is written
with its number, and the threads of a core stand in brackets. In larger ones, which are *dense*,
the letters of a core touch, and a row begins with the number of its first pCPU, as in a hex dump.
`L3` marks the first row of each cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from agent.draw import words
from agent.draw.pictures import Use

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import RenderableType

    from agent.draw.pictures import CellPicture, Core
    from agent.draw.words import Paper

_NARROWEST: Final = 36
"""Columns that a cell needs."""
_EDGES: Final = 3
"""Columns of a cell's frame: a line, and a space on each side."""
_TAG: Final = "L3 "

_STYLES: Final = {
    Use.POOL: "bold black on green",
    Use.JOINS: "bold black on bright_green",
    Use.LEAVES: "black on yellow",
    Use.TAKEN: "bold white on red",
    Use.CLAIMED: "white on blue",
    Use.REALTIME: "bold black on cyan",
    Use.CANDIDATE: "green",
    Use.RESERVED: "cyan",
    Use.ISOLATED: "yellow",
    Use.OFFLINE: "red",
    Use.ONLINE: "dim",
    Use.UNTOLD: "",
}
IN_PLAN: Final = {
    Use.POOL: "pool",
    Use.JOINS: "joins it",
    Use.LEAVES: "leaves it",
    Use.TAKEN: "leaves it, claimed",
    Use.CLAIMED: "claimed",
    Use.REALTIME: "claimed, real-time",
    Use.CANDIDATE: "could join",
    Use.RESERVED: "reserved",
    Use.ISOLATED: "isolated",
    Use.OFFLINE: "offline",
    Use.ONLINE: "not the pool's",
}
IN_TOPOLOGY: Final = {
    Use.ISOLATED: "isolated by the kernel",
    Use.OFFLINE: "offline",
    Use.ONLINE: "online",
}


def draw(
    pictures: Sequence[CellPicture], paper: Paper, meanings: Mapping[Use, str]
) -> RenderableType:
    """Return the cells side by side, or one below the other, and the legend."""
    if not pictures:
        return Text("no NUMA cell of this host has pCPUs online")
    across = _across(len(pictures), paper.width) if paper.framed else 1
    inner = max(1, (paper.width - 1) // across - _EDGES)
    dense = any(not one.cored or _spelled_width(one) > inner for one in pictures)
    bodies = [_body(picture, _Tokens(picture, dense), inner) for picture in pictures]
    legend = words.packed(_legend(pictures, meanings, dense=dense), paper.width)
    if paper.framed:
        return Group(_framed(bodies, across, inner), legend)
    return Group(*(part for body in bodies for part in (body, Text())), legend)


def strip(picture: CellPicture) -> Text:
    """Return the pCPUs of one cell in one line."""
    return Text(" ").join(map(_Tokens(picture, dense=False).core, picture.cores))


class _Tokens:
    """Writes the cores of one cell."""

    def __init__(self, picture: CellPicture, dense: bool) -> None:  # noqa: FBT001 - a form, not a switch
        self._uses = picture.uses
        self.dense = dense
        self.digits = len(str(max(picture.uses, default=0)))

    def core(self, core: Core) -> Text:
        """Return the letters of a core, with numbers unless dense."""
        tiles = [Text(self._tile(cpu), _STYLES[self._uses[cpu]]) for cpu in core]
        if self.dense:
            return Text("").join(tiles)
        return Text.assemble(("[", "dim"), Text(" ").join(tiles), ("]", "dim"))

    def label(self, first: Core) -> str:
        """Return what a row of cores begins with."""
        return f"{first[0]:>{self.digits}} " if self.dense else ""

    def _tile(self, cpu: int) -> str:
        letter = self._uses[cpu].value
        return letter if self.dense else f"{cpu:>{self.digits}}{letter}"


def _across(cells: int, width: int) -> int:
    """Return how many cells fit side by side, in rows as even as can be."""
    most = max(1, (width - 1) // (_NARROWEST + _EDGES))
    return -(-cells // -(-cells // most))


def _framed(bodies: Sequence[RenderableType], across: int, inner: int) -> RenderableType:
    table = Table(box=box.ROUNDED, show_header=False, show_lines=True)
    for _ in range(across):
        table.add_column(width=inner)
    for first in range(0, len(bodies), across):
        table.add_row(*bodies[first : first + across])
    return table


def _body(picture: CellPicture, tokens: _Tokens, width: int) -> RenderableType:
    facts = Table.grid(padding=(0, 1))
    facts.add_column(style="dim", no_wrap=True, min_width=8)
    facts.add_column(overflow="fold")
    for key, value in picture.facts:
        facts.add_row(key, value)
    return Group(words.heading(picture.title), facts, *_rows(picture, tokens, width))


def _rows(picture: CellPicture, tokens: _Tokens, width: int) -> Iterator[Text]:
    """Yield the pCPUs in rows that fit `width`."""
    tagged = _is_tagged(picture)
    across = _cores_across(picture, tokens, width - len(_TAG) * tagged)
    for block in picture.blocks:
        if len(picture.blocks) > 1:
            yield Text(block.title, style="dim")
        for cache in block.caches:
            for first in range(0, len(cache.cores), across):
                row = cache.cores[first : first + across]
                tag = _TAG if cache.told and not first else " " * len(_TAG)
                label = (tag if tagged else "") + tokens.label(row[0])
                line = Text(no_wrap=True, end="\n").append(label, "dim")
                yield line.append_text(Text(" ").join(map(tokens.core, row)))


def _is_tagged(picture: CellPicture) -> bool:
    """Tell whether the cell has several L3s, so that it matters which core has which."""
    return sum(cache.told for block in picture.blocks for cache in block.caches) > 1


def _cores_across(picture: CellPicture, tokens: _Tokens, width: int) -> int:
    """Return how many cores go in a row; in a dense one a power of two."""
    widest = max((tokens.core(core).cell_len for core in picture.cores), default=1)
    if not tokens.dense:
        return max(1, (width + 1) // (widest + 1))
    fitting = max(1, (width - tokens.digits) // (widest + 1))
    return 1 << fitting.bit_length() - 1


def _spelled_width(picture: CellPicture) -> int:
    """Return the columns of the longest row if it were not dense, and each cache had one row."""
    tokens = _Tokens(picture, dense=False)
    rows = (
        sum(tokens.core(core).cell_len + 1 for core in cache.cores) - 1
        for block in picture.blocks
        for cache in block.caches
    )
    return max(rows, default=0) + len(_TAG) * _is_tagged(picture)


def _legend(
    pictures: Sequence[CellPicture], meanings: Mapping[Use, str], *, dense: bool
) -> Iterator[Text]:
    seen = {use for picture in pictures for use in picture.uses.values()}
    for use in Use:
        if use in seen and use in meanings:
            yield Text.assemble((use.value, _STYLES[use]), f" {meanings[use]}")
    if dense and any(len(core) > 1 for picture in pictures for core in picture.cores):
        yield Text("touching: one core", "dim")
