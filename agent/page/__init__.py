"""The status page: one host by use, as plain HTML with its cores drawn as SVG.

No script and nothing from elsewhere; the browser asks again by itself, unless it is asked to hold
still: a page that is read out must not begin anew. It is drawn when somebody
asks, from one frozen document, and by the thread that serves it. Whoever sees no picture finds all
of it in words: each core has a text, and beside the cores of each cell a table says the same. All
text is escaped and tamed: names and reasons are a tenant's.

A page grows with pCPUs and guests, by some 250 bytes for each pCPU and 400 for each guest.
"""

from __future__ import annotations

import time
from html import escape
from typing import TYPE_CHECKING, Any, Final

from agent import picture as pictures
from agent import words
from agent.cpuset import CpuSet
from agent.page import tiles
from agent.page.markup import prose, text
from agent.page.style import STYLE
from agent.page.tables import guests, steps, warnings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.picture import Cache, CellPicture, Core, Fact, Picture

REFRESH: Final = 5
"""Seconds until the browser asks again."""

_IN_TABLE: Final = frozenset(
    {"pool", "room", "claimed", "real-time", "reserved", "isolated", "offline"}
)
"""Facts that the table of uses tells."""


_AGAIN: Final = f'<meta http-equiv="refresh" content="{REFRESH}">'


def page(document: Mapping[str, Any], *, still: bool = False) -> str:
    """Return the page for a `status` document; one that is `still` does not ask again."""
    plan = dict(document)
    picture = pictures.of_plan(plan, document["topology"])
    body = [
        *_head(document, still=still),
        '<main><ul class="legend" aria-label="What the letters mean">',
    ]
    body += (_legend(*pair) for pair in picture.legend())
    body.append('</ul><div class="cells">')
    for cell in picture.cells:
        body += _cell(picture, cell)
    body.append("</div>")
    if picture.homeless:
        told = f"In no cell that has pCPUs online: {picture.homeless}"
        body.append(f'<p class="wrong">{prose(told)}</p>')
    body += (steps(plan), guests(plan), warnings(plan), "</main>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"{'' if still else _AGAIN}"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_title(document)}</title><style>{STYLE}</style></head><body>"
        f'<svg width="0" height="0" aria-hidden="true" class="patterns">{tiles.PATTERNS}</svg>'
        f"{''.join(body)}</body></html>"
    )


# the top


def _title(document: Mapping[str, Any]) -> str:
    """Return what a tab of the browser says: whether one has to look."""
    short = sum(cell["shortage"] for cell in document["cells"])
    if not document["libvirt"]["connected"]:
        return "libvirt is away: emupool"
    return f"short of {words.counted(short, 'pCPU')}: emupool" if short else "emupool"


def _head(document: Mapping[str, Any], *, still: bool) -> Iterator[str]:
    version, uri = (text(document["version"]), text(document["libvirt"]["uri"], 80))
    yield f"<header><h1>Emulator pools</h1><p>emupool {version} on {uri}. "
    yield f"{_last_cycle(document['last_cycle'])} "
    if still:
        yield f'This page stands still: <a href="?">ask again each {REFRESH} seconds</a>.</p>'
    else:
        yield f'Asks again each {REFRESH} seconds: <a href="?still">hold still</a>.</p>'
    if not document["libvirt"]["connected"]:
        yield '<p class="wrong">libvirt is away: pins stay as they are.</p>'
    if document["dry_run"]:
        yield '<p class="wrong">Dry run: nothing is pinned.</p>'
    cells, guests = document["cells"], document["guests"]
    pooled = sum(len(CpuSet.parse(cell["pool"])) for cell in cells)
    at_home = sum(cell["guests"] for cell in cells)
    short = sum(cell["shortage"] for cell in cells)
    yield f"<p>{words.counted(pooled, 'pool pCPU')} for {words.counted(at_home, 'guest')} in "
    yield f"{words.counted(len(cells), 'cell')}; {len(guests) - at_home} not managed.</p>"
    if short:
        yield f'<p class="wrong">Short of {words.counted(short, "pCPU")} at this ratio.</p>'
    yield "</header>"


def _last_cycle(last: Mapping[str, Any] | None) -> str:
    if last is None:
        return "No cycle yet."
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(last["at"] or 0))
    done = f"{words.counted(last['steps'], 'step')}, {words.counted(last['errors'], 'error')}"
    return f"Last cycle: {when}, {text(last['event'])}, {last['seconds'] * 1000:.0f} ms, {done}."


def _legend(use: pictures.Use, meaning: str) -> str:
    mark = f'<svg width="20" height="20" aria-hidden="true">{tiles.mark(use)}</svg>'
    return f"<li>{mark} {escape(meaning)}</li>"


# a cell


def _cell(picture: Picture, cell: CellPicture) -> Iterator[str]:
    name = f"cell-{cell.id}"
    yield f'<section aria-labelledby="{name}"><h2 id="{name}">NUMA {cell.title}</h2><dl>'
    yield from (_fact(fact) for fact in cell.facts if fact.name not in _IN_TABLE)
    yield '</dl><div class="drawn"><div>'
    for block in cell.blocks:
        if len(cell.blocks) > 1:
            yield f"<h3>{escape(block.title)}</h3>"
        yield '<div class="caches">'
        for cache in block.caches:
            yield from _cache(picture, cell, cache)
        yield "</div>"
    yield f"</div><table><caption>The pCPUs of {cell.title} by use</caption><thead><tr>"
    yield from (f'<th scope="col">{column}</th>' for column in ("use", "how many", "which"))
    yield "</tr></thead><tbody>"
    for use, cpus in cell.by_use():
        yield f'<tr><th scope="row">{escape(picture.meaning(use))}</th><td>{len(cpus)}</td>'
        yield f"<td>{prose(str(cpus))}</td></tr>"
    yield "</tbody></table></div></section>"


def _fact(fact: Fact) -> str:
    return f'<dt>{fact.name}</dt><dd class="{fact.tone.value}">{prose(fact.text)}</dd>'


def _cache(picture: Picture, cell: CellPicture, cache: Cache) -> Iterator[str]:
    if cache.told:
        yield '<div class="cache told" role="group" aria-label="cores that share an L3">'
        yield '<span aria-hidden="true">L3</span>'
    else:
        yield '<div class="cache">'
    yield from (_core(picture, cell, core) for core in cache.cores)
    yield "</div>"


def _core(picture: Picture, cell: CellPicture, core: Core) -> str:
    label = "; ".join(tiles.told(picture, cell, cpu) for cpu in core)
    wide, high = tiles.width(len(core)), tiles.CORE_HIGH
    return (
        f'<svg role="img" aria-label="core of {escape(label)}" width="{wide}" height="{high}">'
        f"{tiles.core(picture, cell, core)}</svg>"
    )
