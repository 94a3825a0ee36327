"""Results as text: for the terminal, and for docs/benchmarks.md with its pictures.

The document's prose is written by hand. What lies between `<!-- results: NAME -->` and
`<!-- end -->` is written by `write`, from benchmarks/results: NAME is `goals`, `run`, or that of a
benchmark. A test holds the document to the results.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from benchmarks import results
from benchmarks.findings import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.findings import Goal
    from benchmarks.results import Document

DOCUMENT: Final = results.ROOT / "docs/benchmarks.md"
PICTURES: Final = results.ROOT / "docs/benchmarks"
NOTHING: Final = "Not measured yet."
_BLOCK: Final = re.compile(r"(?s)(<!-- results: (\w+) -->\n).*?(<!-- end -->)")


def write() -> None:
    """Write the document's tables and pictures anew."""
    found = on_file()
    DOCUMENT.write_text(renewed(DOCUMENT.read_text(encoding="utf-8"), found), encoding="utf-8")
    for name, svg in pictures(found).items():
        PICTURES.mkdir(exist_ok=True)
        (PICTURES / f"{name}.svg").write_text(svg, encoding="utf-8")


def on_file() -> list[Document]:
    """Return the results that there are: of `make bench`, and of `make bench-large`."""
    read = (results.read(path) for path in (results.LATEST, results.LARGE))
    return [one for one in read if one is not None]


def renewed(old: str, found: Sequence[Document]) -> str:
    """Return the document with its tables as `found` says."""
    return _BLOCK.sub(lambda match: match[1] + block(match[2], found) + match[3], old)


def block(name: str, found: Sequence[Document]) -> str:
    """Return what stands in a place of the document."""
    entries = {key: one for doc in found for key, one in doc["benchmarks"].items()}
    if name == "run" and found:
        return "\n".join(described(one) for one in found)
    if name == "goals" and found:
        return _markdown(_goals(entries))
    if name in entries:
        return "\n".join(_sections(entries[name]))
    return NOTHING + "\n"


def pictures(found: Sequence[Document]) -> dict[str, str]:
    """Return the pictures by name, as SVG."""
    entries = (entry for doc in found for entry in doc["benchmarks"].values())
    return {chart.name: chart.draw() for entry in entries for chart in results.charts(entry)}


def described(found: Document) -> str:
    """Say where and when a run was made."""
    machine, versions = found["machine"], found["versions"]
    kind = "virtual machine" if machine["virtual"] else "machine"
    commit = f"{found['commit'][:12]}{' with changes' if found['changed'] else ''}"
    lines = [
        f"| taken | {found['taken']}, in {found['seconds'] / 60:.0f} minutes |",
        f"| commit | {commit} |",
        f"| {kind} | {machine['pcpus']} pCPUs ({machine['model']}), {machine['memory_gib']} GiB |",
        f"| kernel | {machine['kernel']}, cpusets of {machine['cpuset']} |",
        f"| load when it began | {', '.join(map(str, machine['load']))} |",
        f"| versions | {', '.join(f'{key} {value}' for key, value in versions.items())} |",
    ]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def _sections(entry: dict[str, Any]) -> Iterator[str]:
    if entry["error"] is not None:
        yield f"**Failed**: {entry['error']}\n"
        return
    for table in results.tables(entry):
        yield f"{table.title}:\n\n{_markdown(table)}"
    for chart in results.charts(entry):
        yield f"![{chart.title}](benchmarks/{chart.name}.svg)\n"
    for note in entry["notes"]:
        yield f"- {note}"
    if entry["notes"]:
        yield ""


def _goals(entries: dict[str, dict[str, Any]], *, reasons: bool = True) -> Table:
    rows = []
    for entry in entries.values():
        if entry["error"] is not None:
            rows.append((entry["title"], "", "", "", f"**failed**: {entry['error']}"))
        for goal in results.goals(entry):
            why = f": {goal.why}" if goal.why and reasons else ""
            met = "met" if goal.met else f"**missed**{why}"
            rows.append((entry["title"], goal.what, _value(goal), _limit(goal), met))
    return Table("Goals", ("", "goal", "found", "limit", ""), rows)


def _value(goal: Goal) -> str:
    digits = 3 if goal.limit < 10 else 1 if goal.limit < 1000 else 0
    return f"{goal.value:,.{digits}f} {goal.unit}".strip()


def _limit(goal: Goal) -> str:
    return f"{'at least' if goal.least else 'at most'} {goal.limit:,g}"


def _markdown(table: Table) -> str:
    ruled = [table.columns, ["---" if n == 0 else "---:" for n in range(len(table.columns))]]
    if table.title == "Goals":
        ruled[1] = ["---"] * len(table.columns)
    return "".join(f"| {' | '.join(row)} |\n" for row in (*ruled, *table.rows))


# for the terminal


def text(entry: dict[str, Any]) -> str:
    """Return what one benchmark found."""
    if entry["error"] is not None:
        return f"FAILED after {entry['seconds']:.0f} s: {entry['error']}\n"
    lines = [line for table in results.tables(entry) for line in _plain(table)]
    lines += [f"  {note}" for note in entry["notes"]]
    lines += [f"  {_judged(goal)}" for goal in results.goals(entry)]
    return "\n".join([*lines, f"  {entry['seconds']:.0f} s", ""])


def summary(found: Document) -> str:
    """Return the table of goals and results of a whole run."""
    table = _goals(found["benchmarks"], reasons=False)
    return "\n".join([*_plain(table), f"{found['seconds']:.0f} s in all"])


def succeeded(found: Document) -> bool:
    """Tell whether everything ran and all goals were met."""
    entries = found["benchmarks"].values()
    return all(
        entry["error"] is None and all(goal.met for goal in results.goals(entry))
        for entry in entries
    )


def _judged(goal: Goal) -> str:
    return f"{goal.what}: {_value(goal)}, {_limit(goal)}: {'met' if goal.met else 'MISSED'}"


def _plain(table: Table) -> Iterator[str]:
    rows = [table.columns, *table.rows]
    widths = [max(len(row[n]) for row in rows) for n in range(len(table.columns))]
    yield table.title
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        cells = [f"{first[0]:{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)]
        yield "  " + "  ".join(cells).rstrip()
