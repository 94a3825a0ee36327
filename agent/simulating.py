"""A trace file through the planner, at several ratios in one pass; and the picture of it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from agent import chart, offline, report, trace
from agent.chart import Line, Panel
from agent.errors import Refused
from agent.generator import Demand, generate
from agent.pool import PoolSource
from agent.simulation import Simulation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from agent.pool import CellSettings, PoolSettings
    from agent.topology import Host

_EACH: Final = 5000  # events between two reports of progress
_DAY: Final = 86400.0
_MUCH: Final = 0.8  # of the pCPUs of a host, which a made-up trace asks for


def simulate(
    host: Host,
    pool: PoolSettings,
    ratios: Sequence[Fraction],
    rows: Iterable[str],
    name: str,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Return the `simulate` document; Refused names the line of the trace that is wrong."""
    settings = [offline.with_ratio(_free(pool), ratio) for ratio in dict.fromkeys(ratios)]
    runs = [Simulation(host, one) for one in settings]
    for number, event in enumerate(trace.read(rows, name), 1):
        for run in runs:
            run.feed(event)
        if number % _EACH == 0:
            days = (event.time - (runs[0].outcome.first or 0.0)) / _DAY
            progress(f"{number:,} events, day {days:.1f} of the trace")
    return report.simulation((run.outcome for run in runs), len(host.online))


def untold(pool: PoolSettings) -> str | None:
    """Return what of the settings a simulation does not follow."""
    if PoolSource.RESERVED not in {own.source for own in (pool.default, *pool.cells.values())}:
        return None
    return "pool.source: 'reserved' is taken for 'free', since guests of a trace set nothing aside"


def _free(pool: PoolSettings) -> PoolSettings:
    """Return the settings with pools of free pCPUs where they would be of what guests set aside.

    A guest of a trace sets nothing aside: that is what is asked about.
    """

    def free(own: CellSettings) -> CellSettings:
        reserved = own.source is PoolSource.RESERVED
        return replace(own, source=PoolSource.FREE) if reserved else own

    cells = {cell: free(own) for cell, own in pool.cells.items()}
    return replace(pool, default=free(pool.default), cells=cells)


def lines(host: Host, file: Path | None, events: int | None, seed: int) -> Iterator[str]:
    """Return those of the trace in `file`, or of one that is made up, and then kept there."""
    if events is not None:
        return _made_up(host, events, seed, file)
    return _read(file) if file is not None else iter(())


def _read(file: Path) -> Iterator[str]:
    """Yield the lines of a trace file; Refused if it cannot be read."""
    try:
        with file.open(encoding="utf-8", newline="") as text:
            yield from text
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no text of UTF-8"
        raise Refused(f"{file}: {why}") from error


def _made_up(host: Host, events: int, seed: int, keep: Path | None) -> Iterator[str]:
    """Yield a trace that keeps the host busy; it is written to `keep` on the way."""
    busy = max(1, int(len(host.online) * _MUCH))
    made = generate(Demand(events, vcpus=busy, seed=seed))
    if keep is None:
        yield from made
        return
    try:
        with keep.open("w", encoding="utf-8", newline="") as file:
            for line in made:
                file.write(line)
                yield line
    except OSError as error:
        raise Refused(f"{keep}: {error.strerror}") from error


def draw(document: dict[str, Any]) -> str:
    """Return the chart of a `simulate` document."""
    rows = document["ratios"]
    panels = [
        Panel("Emulator pCPUs", [*_isolated(rows[0]), *_lines(rows, "pool_cpus")]),
        Panel("Guests running", _lines(rows[:1], "guests", "guests")),
    ]
    if any(row["shortage"]["peak"] for row in rows):
        panels.append(Panel("pCPUs that pools were short of", _lines(rows, "shortage")))
    best = min(rows, key=lambda row: row["pool_cpus"]["mean"])
    saved = best["isolated_cpus"]["mean"] - best["pool_cpus"]["mean"]
    title = f"{saved:.1f} of {document['cpus']} pCPUs given back at ratio {_ratio(best)}"
    each, pooled = best["isolated_cpus"]["mean"], best["pool_cpus"]["mean"]
    subtitle = (
        f"{best['guests']:,} guests; a pCPU of its own for each would take {each:.1f} on average, "
        f"pools take {pooled:.1f}"
    )
    return chart.draw(title, subtitle, panels, document["seconds"])


def _lines(rows: Sequence[dict[str, Any]], key: str, name: str = "") -> list[Line]:
    return [
        Line(name or f"ratio {_ratio(row)}", [(p["time"], p[key]) for p in row["series"]])
        for row in rows
    ]


def _isolated(row: dict[str, Any]) -> list[Line]:
    points = [(point["time"], point["isolated_cpus"]) for point in row["series"]]
    return [Line("one for each guest", points, plain=True)]


def _ratio(row: dict[str, Any]) -> str:
    return f"{float(Fraction(row['ratio'])):g}"
