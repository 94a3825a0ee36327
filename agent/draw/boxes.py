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

from agent import words
from agent.draw.paper import heading, packed
from agent.picture import Tone, Use

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from agent.draw.paper import Paper
    from agent.picture import CellPicture, Core, Picture

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
_TONES: Final = {
    Tone.PLAIN: "",
    Tone.STRONG: "bold",
    Tone.ODD: "yellow",
    Tone.WRONG: "bold red",
}


def draw(picture: Picture, paper: Paper) -> RenderableType:
    """Return the cells side by side, or one below the other, and the legend."""
    if not picture.cells:
        return Text("no NUMA cell of this host has pCPUs online")
    across = _across(len(picture.cells), paper.width) if paper.framed else 1
    inner = max(1, (paper.width - 1) // across - _EDGES)
    dense = any(not one.cored or _spelled_width(one) > inner for one in picture.cells)
    bodies = [_body(cell, _Tokens(cell, dense), inner) for cell in picture.cells]
    legend = (packed(_legend(picture, dense=dense), paper.width), *_homeless(picture))
    if paper.framed:
        return Group(_framed(bodies, across, inner), *legend)
    return Group(*(part for body in bodies for part in (body, Text())), *legend)


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
    for fact in picture.facts:
        facts.add_row(Text(fact.name), Text(fact.text, _TONES[fact.tone]))
    return Group(heading(picture.title), facts, *_rows(picture, tokens, width))


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


def _legend(picture: Picture, *, dense: bool) -> Iterator[Text]:
    for use, meaning in picture.legend():
        yield Text.assemble((use.value, _STYLES[use]), f" {meaning}")
    if dense and any(len(core) > 1 for cell in picture.cells for core in cell.cores):
        yield Text("touching: one core", "dim")


def _homeless(picture: Picture) -> Iterator[Text]:
    if picture.homeless:
        cpus = words.cpus(str(picture.homeless))
        yield Text(f"in no cell that has pCPUs online: {cpus}", "red")
