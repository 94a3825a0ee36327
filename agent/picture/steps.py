"""Steps that are told as one: guests that move alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent import words
from agent.cpuset import CpuSet, union

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.words import Json

WHY: Final[Mapping[str, str]] = {
    "evacuate": "pCPU claimed or offline",
    "arrive": "new in its pool",
    "drift": "something else changed it",
    "widen": "the pool grows",
    "move": "the pool moves",
    "narrow": "the pool shrinks",
    "release": "back to its own pins",
}


@dataclass(frozen=True, slots=True)
class Move:
    """What some guests do alike: texts, and the names of the guests (and iothreads)."""

    reason: str
    origin: str
    target: str
    who: tuple[str, ...]

    @property
    def why(self) -> str:
        """The reason in words."""
        return WHY.get(self.reason, "")


def moves(plan: Json) -> list[Move]:
    """Return the steps of a `plan` or `status` document, in the order in which they are taken."""
    named = {row["uuid"]: words.name(row) for row in plan["guests"]}
    alike: dict[tuple[str, str, bool], list[Json]] = {}
    for step in plan["steps"]:
        alike.setdefault((step["reason"], step["to"], step["from"] is None), []).append(step)
    return [
        Move(reason, _origin(steps), words.cpus(to), tuple(_mover(step, named) for step in steps))
        for (reason, to, _), steps in alike.items()
    ]


def _mover(step: Json, named: Mapping[str, str]) -> str:
    iothread = "" if step["iothread"] is None else f" iothread {step['iothread']}"
    return named.get(step["uuid"], step["uuid"]) + iothread


def _origin(steps: Iterable[Json]) -> str:
    """Return where those that move alike come from: in a pin, or from several."""
    origins = {step["from"] for step in steps}
    if len(origins) == 1:
        return words.cpus(origins.pop(), "unpinned")
    return f"within {words.cpus(str(union(map(CpuSet.parse, origins))))}"
