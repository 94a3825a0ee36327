"""Lines over time as an SVG picture, for a slide: one panel for each quantity, one line a ratio.

Pure text, no font and nothing from elsewhere; each line is named at its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIDTH: Final = 1120
_LEFT, _RIGHT, _TOP, _GAP, _PANEL = 70, 200, 96, 66, 230
_COLOURS: Final = ("#0b6bcb", "#d9480f", "#2b8a3e", "#862e9c", "#c2255c", "#087f5b")
_GREY: Final = "#868e96"
_UNITS: Final = (
    (86400.0 * 3, 86400.0, "days"),
    (3600.0 * 3, 3600.0, "hours"),
    (180.0, 60.0, "minutes"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """Points in order of time; `plain` lines are what the others are compared with."""

    name: str
    points: Sequence[tuple[float, float]]
    plain: bool = False
    stairs: bool = True  # each value holds until the next point


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity over time."""

    title: str
    lines: Sequence[Line]


def draw(
    title: str,
    subtitle: str,
    panels: Sequence[Panel],
    end: float,
    unit: tuple[float, str] | None = None,
) -> str:
    """Return the picture; all panels go from 0 to `end`: seconds, or what `unit` says they are.

    A unit is how much one of it is, and its name.
    """
    height = _TOP + len(panels) * (_PANEL + _GAP) + 10
    size = f'width="{WIDTH}" height="{height}"'
    box = f'viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, sans-serif"'
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box}>',
        f'<rect {size} fill="#ffffff"/>',
        _text(_LEFT, 42, title, size=26, weight="bold"),
        _text(_LEFT, 68, subtitle, size=15, fill="#495057"),
    ]
    for number, panel in enumerate(panels):
        top = _TOP + number * (_PANEL + _GAP) + 24
        body += _panel(panel, top, max(end, 1.0), unit or _clock(end))
    return "\n".join([*body, "</svg>"]) + "\n"


def _panel(panel: Panel, top: float, end: float, unit: tuple[float, str]) -> Iterator[str]:
    highest = max((value for line in panel.lines for _, value in line.points), default=1.0) or 1.0
    step = _step(highest, 4)
    most = ceil(highest / step) * step
    width = WIDTH - _LEFT - _RIGHT
    yield _text(_LEFT, top - 8, panel.title, size=15, weight="bold")
    for tick in range(round(most / step) + 1):
        y = top + _PANEL * (1 - tick * step / most)
        yield f'<path d="M{_LEFT} {y:.1f}h{width}" stroke="#e9ecef"/>'
        yield _text(_LEFT - 8, y + 5, f"{tick * step:g}", size=13, fill=_GREY, anchor="end")
    yield from _across(top + _PANEL, end, width, unit)
    labels = []
    for number, line in enumerate(panel.lines):
        colour = _GREY if line.plain else _COLOURS[number % len(_COLOURS)]
        scaled = [
            (_LEFT + width * at / end, top + _PANEL * (1 - value / most))
            for at, value in line.points
        ]
        if scaled:
            yield _path(line, scaled, _LEFT + width, colour)
            labels.append((scaled[-1][1], line.name, colour))
    yield from _labels(labels, _LEFT + width + 10, top)


def _path(line: Line, points: Sequence[tuple[float, float]], right: float, colour: str) -> str:
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    if line.stairs:
        path += "".join(f"H{x:.1f}V{y:.1f}" for x, y in points[1:]) + f"H{right:.1f}"
    else:
        path += "".join(f"L{x:.1f} {y:.1f}" for x, y in points[1:])
    dash = ' stroke-dasharray="2 3" stroke-width="1.5"' if line.plain else ' stroke-width="2.2"'
    return f'<path d="{path}" fill="none" stroke="{colour}"{dash} stroke-linejoin="round"/>'


def _labels(labels: Sequence[tuple[float, str, str]], x: float, top: float) -> Iterator[str]:
    """Name the lines beside their ends, without one name upon another."""
    last = top - 14
    for y, name, colour in sorted(labels):
        last = max(last + 18, y + 5)
        yield _text(x, last, name, size=14, fill=colour, weight="bold")


def _clock(end: float) -> tuple[float, str]:
    """Return the unit of time that suits a picture of `end` seconds."""
    return next(((one, name) for least, one, name in _UNITS if end >= least), (1.0, "seconds"))


def _across(y: float, end: float, width: float, named: tuple[float, str]) -> Iterator[str]:
    unit, name = named
    step = _step(end / unit, 8)
    for tick in range(floor(end / unit / step) + 1):
        x = _LEFT + width * tick * step * unit / end
        yield f'<path d="M{x:.1f} {y:.1f}v5" stroke="{_GREY}"/>'
        yield _text(x, y + 20, f"{tick * step:g}", size=13, fill=_GREY, anchor="middle")
    yield _text(_LEFT + width, y + 36, name, size=13, fill=_GREY, anchor="end")


def _step(highest: float, parts: int) -> float:
    """Return a round number (1, 2 or 5 and zeros) that divides `highest` into some `parts`."""
    rough = highest / parts
    power = 10.0 ** floor(log10(rough))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= rough)


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int,
    fill: str = "#212529",
    weight: str = "normal",
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
