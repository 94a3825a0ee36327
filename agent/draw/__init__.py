"""Pictures for a terminal, drawn from the JSON documents of the command line.

Pure but for `console`: what is drawn is told by the documents alone, so that the picture of a
daemon elsewhere is the same as one of this host. On a terminal it has colour and fits the width;
in a pipe it is plain text, wide and without frames. Nothing needs colour to be understood.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from agent import picture as pictures
from agent import words
from agent.draw import boxes, tables
from agent.draw.paper import Paper

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console, RenderableType

    from agent.words import Json

__all__ = [
    "Paper",
    "account",
    "advice",
    "comparison",
    "legend",
    "picture",
    "plan",
    "status",
    "status_text",
    "strips",
    "topology",
]


def topology(console: Console, host: Json) -> None:
    """Print the host: cells side by side, distances, packages, L3 caches, cores, threads."""
    paper = Paper.of(console)
    _print(console, [boxes.draw(pictures.of_topology(host), paper)], paper)


def plan(console: Console, document: Json, host: Json | None = None) -> None:
    """Print a plan: pools, what moves and why, guests, warnings."""
    paper = Paper.of(console)
    parts = [
        picture(document, host, paper),
        tables.steps(document, paper) if document["steps"] else Text("Nothing to move."),
        tables.guests(document, paper),
        tables.warnings(document, paper),
    ]
    _print(console, parts, paper)


def status(console: Console, document: Json, host: Json | None = None) -> None:
    """Print what the daemon says of itself, pools, and what each guest really has.

    The host is the document's own `topology` if it has one; without any, cores are not drawn.
    """
    paper = Paper.of(console)
    _print(console, _status(document, host, paper), paper)


def status_text(console: Console, document: Json | None, note: Text) -> str:
    """Return what `status` would print on `console`, below a note; without a status, the note."""
    paper = Paper.of(console)
    parts = [] if document is None else _status(document, None, paper)
    return _written(console, [note, *parts], paper)


def _status(document: Json, host: Json | None, paper: Paper) -> list[RenderableType]:
    host = document.get("topology") if host is None else host
    return [
        _daemon(document),
        picture(document, host, paper),
        tables.steps(document, paper, "Still to do"),
        tables.truths(document, paper),
        tables.warnings(document, paper),
    ]


def account(console: Console, document: Json) -> None:
    """Print what each guest is billed, in pCPUs."""
    _print(console, [tables.account(document)], Paper.of(console))


def advice(console: Console, document: Json) -> None:
    """Print what ratio each cell bears, why, and what was measured."""
    _print(console, [tables.advice(document), tables.evidence(document)], Paper.of(console))


def comparison(console: Console, document: Json) -> None:
    """Print what each ratio would come to, side by side."""
    _print(console, [tables.comparison(document)], Paper.of(console))


def simulation(console: Console, document: Json) -> None:
    """Print what a trace came to at each ratio."""
    _print(console, [tables.simulation(document)], Paper.of(console))


def picture(document: Json, host: Json | None, paper: Paper) -> RenderableType:
    """Return the cells of a plan or status, with the legend."""
    return boxes.draw(pictures.of_plan(document, host), paper)


def legend() -> Text:
    """Return what all letters of a plan mean, in one line."""
    return Text("; ".join(f"{use} {meaning}" for use, meaning in pictures.IN_PLAN.items()))


def strips(document: Json, host: Json) -> Iterable[Text]:
    """Yield one line per cell of a plan: its pCPUs."""
    for found in pictures.of_plan(document, host).cells:
        yield Text(f"{found.title}  ") + boxes.strip(found)


def _daemon(status: Json) -> Text:
    libvirt, last = status["libvirt"], status["last_cycle"]
    connected = "connected" if libvirt["connected"] else "NOT CONNECTED"
    text = Text(f"emupool {words.plain(status['version'])}, {words.plain(libvirt['uri'], 80)} ")
    text.append(connected, "green" if libvirt["connected"] else "bold red")
    if status["dry_run"]:
        text.append(", dry run: nothing is pinned", "bold yellow")
    return text.append("\n").append_text(_cycle(last))


def _cycle(last: Json | None) -> Text:
    if last is None:
        return Text("no cycle yet", "bold yellow")
    text = Text("last cycle: ")
    if last["at"] is not None:
        at = datetime.fromtimestamp(last["at"]).astimezone()
        text.append(f"{at:%Y-%m-%d %H:%M:%S %z}, ")
    text.append(f"{words.plain(last['event'])}, {last['seconds'] * 1000:.0f} ms, ")
    text.append(f"{words.counted(last['steps'], 'step')}, ")
    return text.append(words.counted(last["errors"], "error"), "bold red" if last["errors"] else "")


def _print(console: Console, parts: Iterable[RenderableType], paper: Paper) -> None:
    """Print the parts with an empty line between."""
    console.file.write(_written(console, parts, paper))
    console.file.flush()


def _written(console: Console, parts: Iterable[RenderableType], paper: Paper) -> str:
    """Return the parts as they are printed; in a pipe, on the paper's own width."""
    drawn = [part for part in parts if not (isinstance(part, Group) and not part.renderables)]
    spaced = [one for part in drawn for one in (Text(), part)][1:]
    width = console.width
    if width != paper.width:  # else it would follow its terminal no more
        console.width = paper.width
    with console.capture() as page:
        console.print(*spaced, sep="\n", soft_wrap=False)
    if width != paper.width:
        console.width = width
    text = page.get()
    if not paper.framed:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    # A name may have letters that the output's encoding lacks.
    return text.encode(console.encoding, "replace").decode(console.encoding)
