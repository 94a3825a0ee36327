"""Where the demo is seen: a live picture on a terminal, a few lines per scene in a pipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agent import draw, picture, report, topology
from agent.cpuset import union
from agent.page import poster

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console, RenderableType

    from agent.cpuset import CellId, CpuSet
    from agent.cycle import CycleResult
    from agent.snapshot import Guest
    from agent.transition import Step


@dataclass(slots=True)
class Act:
    """A scene as it unfolds: the pools before it, all steps since, and how it stands."""

    title: str
    before: Mapping[CellId, CpuSet]
    result: CycleResult
    steps: list[Step] = field(default_factory=list)

    def goes_on(self, result: CycleResult) -> None:
        """Take another cycle in."""
        self.result = result
        self.steps += (outcome.step for outcome in result.outcomes if outcome.error is None)
        self.steps.sort(key=lambda step: step.order)

    def document(self) -> dict[str, Any]:
        """Return the `plan` document of the whole act: from the pools before to those now."""
        document = report.plan(self.result.plan, self.steps)
        for row, cell in zip(document["cells"], self.result.plan.cells, strict=True):
            row["pool_now"] = str(self.before.get(cell.id, cell.pool_now))
        return document


class Stage(Protocol):
    """Shows acts."""

    def show(self, act: Act) -> None:
        """Show an act as it stands."""

    def curtain(self, act: Act) -> None:
        """Show an act that is over."""

    def close(self) -> None:
        """Show no more."""


class Screen:
    """A terminal: one picture that changes."""

    def __init__(self, console: Console, banner: str) -> None:
        """Draw on `console`, `banner` on top."""
        self._banner = Text(banner, "dim")
        self._paper = draw.Paper.of(console)
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def show(self, act: Act) -> None:
        """Draw anew."""
        host = topology.to_json(act.result.host)
        drawn = draw.picture(act.document(), host, self._paper)
        parts = (self._banner, Text(act.title, "bold"), drawn, Text(), _guests(act))
        self._live.update(Group(*parts), refresh=True)

    def curtain(self, act: Act) -> None:
        """Leave the picture as it is."""

    def close(self) -> None:
        """Leave the last picture standing."""
        self._live.stop()


class Page:
    """A pipe: what became of each scene, once it is over."""

    def __init__(self, console: Console, banner: str) -> None:
        """Print to `console`, `banner` first."""
        self._console = console
        self._print(Text(banner))
        self._print(draw.legend())

    def show(self, act: Act) -> None:
        """Wait for the end."""

    def curtain(self, act: Act) -> None:
        """Print cells and steps."""
        self._print(Text())
        self._print(Text(act.title))
        host = topology.to_json(act.result.host)
        lines = draw.strips(act.document(), host)
        for cell, line in zip(act.result.plan.cells, lines, strict=True):
            facts = f"  need {cell.need}, pool {cell.emulator_cpus or 'none'}"
            self._print(Text("  ") + line + Text(facts))
        names = {guest.uuid: guest.label for guest in act.result.guests}
        for step in act.steps:
            move = f"{step.was or 'unpinned'} to {step.to} ({step.reason})"
            self._print(Text(f"  {names.get(step.uuid, step.uuid)}: {move}"))

    def close(self) -> None:
        """Nothing is left to print."""

    def _print(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)


def portrait(act: Act, banner: str) -> str:
    """Return an act as an SVG picture."""
    host = topology.to_json(act.result.host)
    return poster.draw(act.title, banner, picture.of_plan(act.document(), host))


def _guests(act: Act) -> RenderableType:
    """Return who is there, and what this scene did to whom."""
    if not act.result.guests:
        return Text("no guests")
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    for column in ("guest", "cell", "vCPU may run on", "emulator threads on", "in this scene"):
        table.add_column(column)
    moves = {step.uuid: step for step in act.steps}
    homes = {guest.uuid: guest.cell for guest in act.result.plan.guests}
    for guest in sorted(act.result.guests, key=lambda guest: guest.seniority):
        emulator = Text(str(guest.domain.emulator or "anywhere"), "bold green")
        row = (Text(guest.label), Text(str(homes[guest.uuid])), Text(_vcpus(guest)), emulator)
        table.add_row(*row, Text(_told(moves.get(guest.uuid))))
    return table


def _vcpus(guest: Guest) -> str:
    cpus = union(vcpu.cpus for vcpu in guest.domain.vcpus if vcpu.cpus is not None)
    return f"{cpus}{' real-time' if guest.domain.realtime_claims else ''}"


def _told(step: Step | None) -> str:
    return "" if step is None else f"{step.reason}, was {step.was or 'unpinned'}"
