"""The cores of a host as SVG: a tile for each pCPU, with colour, pattern and letter of its use.

The same tiles stand in the status page, a small picture for each core that wraps as words do, and
in the one picture of a whole host. A tile has the number of its pCPU, the letter of its use and,
in a pool, how many guests it carries; a title says it in words. Colours are told by `STYLE`, once
for light and once for dark; what differs in hue differs in letter and pattern too.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from agent import words

if TYPE_CHECKING:
    from agent.picture import CellPicture, Core, Picture, Use

TILE: Final = 36
"""Width of a tile; it is `HIGH` pixels high."""
HIGH: Final = 38
_GAP: Final = 2
_EDGE: Final = 4
"""Around the tiles of a core, its outline included."""
CORE_HIGH: Final = HIGH + 2 * _EDGE

_LIGHT: Final = """\
--ink:#1b1f24;--soft:#57606a;--paper:#fff;--line:#8c959f;--faint:#d0d7de;
--pool:#0b57a4;--on-pool:#fff;--pale:#cfe3fa;--claimed:#f3c76b;--on-claimed:#2b1c00;
--stripe:#b97800;--taken:#8f1320;--on-taken:#fff;--grey:#e4e7eb;--dot:#8c959f;--wrong:#a40e26;"""
_DARK: Final = """\
--ink:#e6edf3;--soft:#9aa5b1;--paper:#0d1117;--line:#7d8793;--faint:#30363d;
--pool:#6cb6ff;--on-pool:#04182e;--pale:#173a5e;--claimed:#7a5410;--on-claimed:#fff1d6;
--stripe:#d9a441;--taken:#ff8f8f;--on-taken:#330004;--grey:#262c34;--dot:#6e7781;--wrong:#ff8f8f;"""

STYLE: Final = f"""\
:root{{{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
.t rect{{fill:var(--paper);stroke:var(--line)}}
.t text{{fill:var(--ink);font:11px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;\
text-anchor:middle}}
.t text+text{{font-size:12px;font-weight:bold}}
.core{{fill:none;stroke:var(--line);stroke-width:1}}
.pool rect,.joins rect{{fill:var(--pool);stroke:var(--pool)}}
.pool text,.joins text{{fill:var(--on-pool)}}
.joins rect{{stroke:var(--ink);stroke-width:2;stroke-dasharray:4 2}}
.leaves rect{{fill:var(--pale);stroke:var(--pool);stroke-width:2;stroke-dasharray:2 2}}
.taken rect{{fill:var(--taken);stroke:var(--taken)}}
.taken text{{fill:var(--on-taken)}}
.claimed rect{{fill:var(--claimed);stroke:var(--claimed)}}
.realtime rect{{fill:url(#realtime);stroke:var(--stripe);stroke-width:2}}
.claimed text,.realtime text{{fill:var(--on-claimed)}}
.realtime text{{paint-order:stroke;stroke:var(--claimed);stroke-width:5px}}
.reserved rect{{fill:url(#reserved)}}
.reserved text{{paint-order:stroke;stroke:var(--grey);stroke-width:4px}}
.isolated rect{{stroke-dasharray:6 2}}
.offline rect{{fill:url(#offline);stroke-dasharray:2 3}}
.offline text{{fill:var(--soft);paint-order:stroke;stroke:var(--paper);stroke-width:4px}}
.online rect{{stroke:var(--faint)}}
.online text{{fill:var(--soft)}}
"""

PATTERNS: Final = """\
<defs>\
<pattern id="realtime" width="10" height="10" patternUnits="userSpaceOnUse" \
patternTransform="rotate(45)"><path fill="var(--claimed)" d="M0 0h10v10H0z"/>\
<path fill="var(--stripe)" d="M0 0h2v10H0z"/></pattern>\
<pattern id="reserved" width="6" height="6" patternUnits="userSpaceOnUse">\
<path fill="var(--grey)" d="M0 0h6v6H0z"/><circle cx="3" cy="3" r="1" fill="var(--dot)"/></pattern>\
<pattern id="offline" width="12" height="12" patternUnits="userSpaceOnUse">\
<path fill="var(--paper)" d="M0 0h12v12H0z"/>\
<path stroke="var(--faint)" d="M0 12L12 0M0 0l12 12"/></pattern>\
</defs>"""


def width(threads: int) -> int:
    """Return the pixels that a core of so many threads takes."""
    return threads * (TILE + _GAP) - _GAP + 2 * _EDGE


def core(picture: Picture, cell: CellPicture, cpus: Core) -> str:
    """Return the tiles of one core, from the origin on."""
    outline = f'<rect class="core" x=".5" y=".5" width="{width(len(cpus)) - 1}" '
    tiles = (_tile(picture, cell, cpu, place) for place, cpu in enumerate(cpus))
    return f'{outline}height="{CORE_HIGH - 1}" rx="6"/>{"".join(tiles)}'


def told(picture: Picture, cell: CellPicture, cpu: int) -> str:
    """Return what a tile says, in words."""
    use = cell.uses[cpu]
    carried = f", {words.counted(cell.guests[cpu], 'guest')}" if cpu in cell.guests else ""
    return f"pCPU {cpu}: {picture.meaning(use)}{carried}"


def mark(use: Use) -> str:
    """Return a tile without a number, for a legend; 20 pixels wide and high."""
    return (
        f'<g class="t {_style(use)}"><rect x="1" y="1" width="18" height="18" rx="3"/>'
        f'<text x="10" y="14">{escape(use.value)}</text></g>'
    )


def _tile(picture: Picture, cell: CellPicture, cpu: int, place: int) -> str:
    use = cell.uses[cpu]
    x = _EDGE + place * (TILE + _GAP)
    carried = f"{cell.guests[cpu]:>3}" if cpu in cell.guests else ""
    middle = x + TILE // 2
    return (
        f'<g class="t {_style(use)}"><title>{escape(told(picture, cell, cpu))}</title>'
        f'<rect x="{x}" y="{_EDGE}" width="{TILE}" height="{HIGH}" rx="3"/>'
        f'<text x="{middle}" y="18">{cpu}</text>'
        f'<text x="{middle}" y="35">{escape(use.value)}{carried}</text></g>'
    )


def _style(use: Use) -> str:
    return use.name.lower()
