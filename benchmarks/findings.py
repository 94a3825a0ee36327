"""What a benchmark found, as values: goals, tables, charts, and the figures behind them.

A goal is met when its value is at most its limit (or at least, where `least` says so). The figures
are the raw medians and spreads by name; tables hold the same as text, so that whoever shows them
need not know what was measured.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent import chart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure that was to be reached; `why` tells of a missed one what is known of the cause."""

    what: str
    value: float
    limit: float
    unit: str = ""
    least: bool = False
    why: str = ""

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under names of columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture called `name`: panels, each a title and its lines; `across` names the x axis."""

    name: str
    title: str
    subtitle: str
    across: str
    panels: Sequence[tuple[str, Sequence[tuple[str, Points]]]]

    def draw(self) -> str:
        """Return it as SVG."""
        panels = [
            chart.Panel(title, [chart.Line(name, points, stairs=False) for name, points in lines])
            for title, lines in self.panels
        ]
        ends = [x for _, lines in self.panels for _, points in lines for x, _ in points]
        end = max(ends, default=1.0)
        return chart.draw(self.title, self.subtitle, panels, end, unit=(1.0, self.across))


@dataclass(frozen=True, slots=True)
class Findings:
    """All that one benchmark found; `notes` say how it was measured, or what could not be."""

    goals: Sequence[Goal] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()
    figures: dict[str, Any] = field(default_factory=dict)


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile; of less than a hundred values, the largest but for rounding."""
    return sorted(values)[max(0, round(0.99 * len(values)) - 1)]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third: the spread."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return what is kept of repeated measurements."""
    first, third = quartiles(values)
    return {
        "turns": len(values),
        "median": statistics.median(values),
        "q1": first,
        "q3": third,
        "p99": p99(values),
        "most": max(values),
    }


def ms(seconds: float) -> str:
    """Write seconds as milliseconds, with three digits that matter."""
    value = seconds * 1e3
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def times_of(ratio: float) -> str:
    """Write a ratio with the digits that matter."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


def compared(
    title: str, times: Mapping[str, Sequence[float]], floor: str = "floor"
) -> tuple[Table, dict[str, dict[str, float]]]:
    """Return a table of contestants with their ratios to the floor, and the figures of each."""
    figures = {name: summary(own) for name, own in times.items()}
    least = figures[floor]
    rows = []
    for name, own in figures.items():
        own["ratio"] = own["median"] / least["median"]
        own["p99_ratio"] = own["p99"] / least["p99"]
        rows.append(
            (
                name,
                f"{own['turns']:.0f}",
                ms(own["median"]),
                f"{ms(own['q1'])} to {ms(own['q3'])}",
                ms(own["p99"]),
                times_of(own["ratio"]),
                times_of(own["p99_ratio"]),
            )
        )
    columns = ("", "turns", "median ms", "half within", "p99 ms", "median ratio", "p99 ratio")
    return Table(title, columns, rows), figures
