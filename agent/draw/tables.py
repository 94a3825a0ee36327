"""Guests, steps and warnings as tables that fold rather than flood a terminal; and bills."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from agent import words
from agent.cpuset import CpuSet
from agent.draw.paper import heading
from agent.picture import moves, urgency

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rich.console import RenderableType

    from agent.draw.paper import Paper
    from agent.words import Json

_STATES: Final = {
    "collision": "bold red",
    "left": "red",
    "busy": "yellow",
    "remote": "yellow",
    "overcommitted": "yellow",
    "placed": "green",
}
_NAMES: Final = 4
"""Guests that one line of steps names on a terminal."""

Row = tuple[str | Text, ...]


def guests(plan: Json, paper: Paper) -> RenderableType:
    """Return what each guest has and gets; those that are left alone come last."""
    table = _table("guest", "cell", "policy", "weight", "started on", "gets", "state")
    return _filled("Guests", table, plan["guests"], _planned, paper)


def truths(status: Json, paper: Paper) -> RenderableType:
    """Return where each guest should be, and what libvirt and the kernel say."""
    table = _table("guest", "cell", "wanted", "libvirt", "kernel", "verified", "state")
    return _filled("Guests", table, status["guests"], _true, paper)


def steps(plan: Json, paper: Paper, title: str = "Steps") -> RenderableType:
    """Return what moves, from where to where and why; guests that move alike in one row."""
    if not plan["steps"]:
        return Group()
    alike = moves(plan)
    table = _table("step", "because", "from", "to", "guests")
    kept = alike[: paper.shown(len(alike))]
    for move in kept:
        who = words.listed(move.who, _NAMES if paper.rows else None)
        _add(table, move.reason, move.why, move.origin, move.target, who)
    return Group(heading(title), table, *_rest(len(alike) - len(kept)))


def warnings(plan: Json, paper: Paper) -> RenderableType:
    """Return the warnings, and why guests are not simply in their pool."""
    lines = [
        f"{words.plain(row['guest'] or 'host')}: {words.plain(row['field'])}: "
        f"{words.plain(row['text'], words.TEXT)}"
        for row in plan["warnings"]
    ]
    lines += [
        f"{words.name(row)}: {words.plain(row['reason'], words.TEXT)}"
        for row in plan["guests"]
        if row["state"] not in {None, "placed", "overcommitted"}
    ]
    if not lines:
        return Group()
    kept = lines[: paper.shown(len(lines))]
    table = Table.grid(padding=(0, 1))
    for line in kept:
        table.add_row(Text("!", "bold yellow"), Text(line, overflow="fold"))
    return Group(heading("Warnings"), table, *_rest(len(lines) - len(kept)))


def account(document: Json) -> RenderableType:
    """Return what each guest is billed, and the sums of the cells."""
    kinds = ("dedicated", "shared", "emulator", "total")
    table = _table("guest", "cell")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for row in sorted(document["guests"], key=_billed):
        _add(table, _name(row), _cell(row["cell"]), *(words.decimal(row[kind]) for kind in kinds))
    for row in document["cells"]:
        sums = (words.decimal(row[kind]) for kind in kinds)
        _add(table, "all", _cell(row["id"]), *sums, style="bold")
    return table


def comparison(document: Json) -> RenderableType:
    """Return one row per ratio: each cell's pool, who moves, and what one pCPU each would cost."""
    rows = document["ratios"]
    cells = [cell["id"] for cell in rows[0]["cells"]]
    table = _table("ratio", *(f"pool of cell {cell}" for cell in cells))
    for column in ("pool pCPUs", "guests", "moved", "freed", "short of"):
        table.add_column(column, justify="right")
    for row in rows:
        pools = (_counted_pool(cell) for cell in row["cells"])
        numbers = ("pool_cpus", "guests", "guests_moved", "cpus_freed", "shortage")
        style = "red" if row["shortage"] else ""
        counted = (str(row[key]) for key in numbers)
        _add(table, _ratio(row["ratio"]), *pools, *counted, style=style)
    note = "freed: pCPUs, against one of its own for each guest"
    return Group(table, Text(note, "dim"))


def _counted_pool(cell: Json) -> str:
    cpus = CpuSet.parse(cell["pool"])
    return f"{len(cpus)}: {words.cpus(cell['pool'])}" if cpus else "-"


def simulation(document: Json) -> RenderableType:
    """Return one column per ratio: pools, what one pCPU for each guest would take, and repins."""
    rows = document["ratios"]
    table = _table("over the trace")
    for row in rows:
        table.add_column(f"ratio {_ratio(row['ratio'])}", justify="right")
    for name, value in _SIMULATED:
        _add(table, name, *(value(row) for row in rows))
    hours = document["seconds"] / 3600
    counted = f"{document['events']:,} events in {hours:,.1f} hours, {document['cpus']} pCPUs"
    return Group(Text(counted, "bold"), table)


def _mean_and_peak(key: str) -> Callable[[Json], str]:
    return lambda row: f"{row[key]['mean']:.1f} ({row[key]['peak']})"


_SIMULATED: Final[tuple[tuple[str, Callable[[Json], str]], ...]] = (
    ("guests that fitted", lambda row: f"{row['guests']:,}"),
    ("guests refused", lambda row: f"{row['guests_refused']:,}"),
    ("more than with a pCPU each", lambda row: f"{row['more_guests']:+,}"),
    ("pool pCPUs, mean (peak)", _mean_and_peak("pool_cpus")),
    ("one for each guest, mean (peak)", _mean_and_peak("isolated_cpus")),
    ("pCPUs given back, mean", lambda row: f"{_given_back(row):.1f}"),
    ("occupancy of pools", lambda row: f"{row['occupancy']:.0%}"),
    ("repins", lambda row: f"{sum(row['repins'].values()):,}"),
    ("repins for each guest", lambda row: f"{_each(row):.2f}"),
    ("pools grew, shrank", lambda row: f"{row['growths']:,}, {row['shrinks']:,}"),
    ("short of pCPUs, at most", lambda row: f"{row['shortage']['peak']:,}"),
    ("cell hours short", lambda row: f"{row['shortage']['cell_seconds'] / 3600:.1f}"),
)


def _given_back(row: Json) -> float:
    given_back: float = row["isolated_cpus"]["mean"] - row["pool_cpus"]["mean"]
    return given_back


def _each(row: Json) -> float:
    repins: int = sum(row["repins"].values())
    return repins / max(1, int(row["guests"]))


def advice(document: Json) -> RenderableType:
    """Return what ratio each cell bears, and why."""
    table = _table("cell", "ratio", "advice", "because")
    for row in document["cells"]:
        why = _BECAUSE[row["because"]](row["evidence"], document["method"] | row)
        _add(table, str(row["id"]), _ratio(row["ratio"]), _advised(row), why)
    changes = {
        _ratio(row["suggested"])
        for row in document["cells"]
        if row["verdict"] not in {None, "keep"}
    }
    asked = " ".join(f"--ratio {ratio}" for ratio in sorted(changes, key=float))
    hint = [Text(f"emupool plan {asked}: what that would change", "dim")] if changes else []
    return Group(table, *hint)


def evidence(document: Json) -> RenderableType:
    """Return what was measured in each cell that has guests, now or before."""
    columns = ("cell", "hours", "guests", "per pCPU", "pool used", "waited", "busiest", "others")
    table = _table()
    for column in columns:
        table.add_column(column, justify="right")
    rows = [row for row in document["cells"] if row["evidence"]["slots"]]
    for row in rows:
        seen = row["evidence"]
        _add(
            table,
            str(row["id"]),
            f"{seen['hours']:.1f}",
            f"{seen['guests']:.1f}",
            f"{seen['weight_per_cpu']:.1f}",
            f"{seen['pool_used_high']:.1%}",
            f"{seen['waited_per_run_high']:.2f}",
            f"{seen['busiest_guest']:.1%}",
            f"{seen['others']:.0%}",
        )
    note = (
        "pool used: by emulator threads; waited: seconds for each second run, by the guest that"
        f" waited most (both kept to in {document['method']['quantile']:.0%} of the slots);"
        " busiest: pCPU time of one guest; others: what else ran on the pool's pCPUs"
    )
    return Group(heading("Evidence"), table, Text(note, "dim")) if rows else Group()


def _advised(row: Json) -> Text:
    if row["suggested"] is None:
        return Text("-", "dim")
    styles = {"raise": "green", "keep": "", "lower": "bold red"}
    verdict = row["verdict"]
    return Text(f"{words.plain(verdict)}: {_ratio(row['suggested'])}", styles.get(verdict, ""))


def _ratio(text: object) -> str:
    return words.decimal(text).rstrip("0").rstrip(".")


_BECAUSE: Final[Mapping[str, Callable[[Json, Json], str]]] = {
    "load": lambda seen, told: (
        f"threads use {seen['used_per_weight_high']:.3f} pCPUs per guest; with"
        f" {told['load_bears']:.1f} guests the pool is at {told['target']:.0%}"
    ),
    "waiting": lambda seen, told: (
        f"a guest waits {seen['waited_per_run_high']:.1f} s for each second that it runs;"
        f" {told['patience']:.1f} is the limit"
    ),
    "others": lambda seen, _told: (
        f"a guest waits {seen['waited_per_run_high']:.1f} s for each second that it runs, but for"
        f" others, which take {seen['others']:.0%} of the pool: see to them"
    ),
    "seen": lambda seen, told: (
        f"it never was that full: {seen['weight_per_cpu_lasting']:.1f} guests per pCPU, and"
        f" more than {told['stretch']:g} times that is a guess"
        if seen["weight_per_cpu_lasting"]
        else "no guest was in its pool for long: a dry run shows no waiting"
    ),
    "no-guests": lambda _seen, _told: "no guests",
    "too-short": lambda seen, told: (
        f"not enough data: {seen['slots']} of {told['slots_needed']} slots of"
        f" {told['slot_seconds'] / 60:g} minutes"
    ),
    "too-few-guests": lambda seen, told: (
        f"not enough data: {seen['guests']:.1f} guests on average,"
        f" {told['guests_needed']:g} are needed"
    ),
}


def _billed(row: Json) -> tuple[str, str, int]:
    return row["name"], row["uuid"], -1 if row["cell"] is None else row["cell"]


def _planned(row: Json) -> Row:
    return (
        _name(row),
        _cell(row["cell"]),
        f"{row['policy']} ({row['source']})",
        row["weight"],
        words.cpus(row["original"], "unpinned"),
        words.cpus(row["emulator_pcpus"]),
        _state(row),
    )


def _true(row: Json) -> Row:
    stuck = f", {row['stuck']} stuck" if row["stuck"] else ""
    verified = "yes" if row["verified"] else "no"
    return (
        _name(row),
        _cell(row["cell"]),
        words.cpus(row["emulator_pcpus"]),
        words.cpus(row["live"], "unpinned"),
        words.cpus(row["kernel"]),
        (verified if row["managed"] else "-") + stuck,
        _state(row),
    )


def _filled(
    title: str, table: Table, rows: Sequence[Json], drawn: Callable[[Json], Row], paper: Paper
) -> RenderableType:
    """Return `table` with the rows that matter most, and a count of those left out."""
    if not rows:
        return Text("No guests.")
    ordered = sorted(rows, key=urgency)
    kept, left_out = ordered[: paper.shown(len(rows))], ordered[paper.shown(len(rows)) :]
    for row in kept:
        _add(table, *drawn(row), style="" if row["managed"] else "dim")
    alone = sum(not row["managed"] for row in left_out)
    note = f", {alone} of them not managed" if alone else ""
    return Group(heading(title), table, *_rest(len(left_out), note))


def _state(row: Json) -> Text:
    state = row["state"] or "not managed"
    return Text(state, _STATES.get(state, ""))


def _name(row: Mapping[str, object]) -> Text:
    return Text(words.name(dict(row)), overflow="fold")


def _cell(cell: object) -> str:
    return "-" if cell is None else str(cell)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add(table: Table, *cells: str | Text, style: str = "") -> None:
    """Add a row; a plain string would be read as markup."""
    texts = (Text(cell) if isinstance(cell, str) else cell for cell in cells)
    table.add_row(*texts, style=style)


def _rest(left_out: int, note: str = "") -> Iterable[Text]:
    if left_out > 0:
        yield Text(f"... and {left_out} more{note}; --json has all", "dim")
