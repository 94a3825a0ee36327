"""What is wrong and lasts: a pure function from a cycle's result and the faults before it.

A fault is known by what it is about, and comes with a text for the line that tells of its
beginning; while it lasts it is a gauge. Numbers and errors in the text are those of the beginning.

A partial cycle reads what events named and nothing else, and tries no guest before its time: that
it has no error of a guest does not mean that the guest is well. So such a fault ends with a pin
that succeeds, or with a full cycle that has nothing against the guest.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from agent.cycle import PARTIAL
from agent.placing import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from agent.cycle import CycleResult

About = tuple[str, ...]
"""The kind of a fault, and what it is a fault of: ("shortage", "cell 0")."""

_GUEST: Final = "guest"
_UNVERIFIED: Final = "unverified"
_CPUSET: Final = "cpuset"
_FULL: Final = frozenset({_UNVERIFIED, _CPUSET})
"""What only a full cycle looks at."""
_NAMED: Final = 5
"""Guests that a text names; the gauges count all."""


def faults(result: CycleResult, before: Mapping[About, str]) -> dict[About, str]:
    """Return the faults that last after a cycle; `before` are those that lasted until it."""
    kept = {about: text for about, text in before.items() if _goes_on(about, result)}
    found = (_of_plan(result), _of_host(result), _of_threads(result), _of_guests(result))
    return {about: text for source in found for about, text in source} | kept


def _goes_on(about: About, result: CycleResult) -> bool:
    """Tell whether a fault goes on although the cycle did not find it."""
    kind, what = about[:2]
    partial = result.cause in PARTIAL
    if kind != _GUEST:
        return partial and kind in _FULL
    if any(outcome.step.uuid == what and outcome.error is None for outcome in result.outcomes):
        return False
    guest = next((guest for guest in result.guests if guest.uuid == what), None)
    if guest is None:
        return partial  # it may be one that was never read
    return guest.active and (partial or guest.busy)


def _of_plan(result: CycleResult) -> Iterator[tuple[About, str]]:
    for warning in result.plan.warnings:
        yield ("warning", warning.guest or "host", warning.field), warning.text
    for cell in result.plan.cells:
        if cell.shortage:
            text = f"the pool lacks {cell.shortage} pCPUs for weight {cell.weight}"
            yield ("shortage", f"cell {cell.id}"), text
    for guest in result.plan.guests:
        if guest.state is State.COLLISION:
            yield ("collision", guest.name or guest.uuid), guest.reason


def _of_host(result: CycleResult) -> Iterator[tuple[About, str]]:
    for problem in result.problems:
        yield ("sysfs", problem), problem
    for cut in result.mended.left:
        text = f"pCPUs {cut.cpus} are on line again, but nobody can pin to them in this cpuset: "
        text += f"{cut.why}; write {cut.wanted} to its cpuset.cpus, then to its guests'"
        yield (_CPUSET, cut.directory), text
    if result.state_error is not None:
        yield ("state", "file"), result.state_error


def _of_guests(result: CycleResult) -> Iterator[tuple[About, str]]:
    names = {guest.uuid: guest.label for guest in result.guests}
    for uuid, error in result.errors:
        yield (_GUEST, uuid), f"{names.get(uuid, uuid)}: {error}"


def _of_threads(result: CycleResult) -> Iterator[tuple[About, str]]:
    """Yield, cell by cell, where the kernel does not do as it is told, or does not tell."""
    stuck, unverified = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    seen = {guest.uuid: guest for guest in result.guests}
    for planned in result.plan.guests:
        cell, guest = f"cell {planned.cell}", seen.get(planned.uuid)
        if planned.cell is None or guest is None:
            continue
        if result.stuck.get(planned.uuid):
            stuck[cell].append(planned.name)
        unread = guest.kernel is None or guest.kernel.cpus is None
        if unread and planned.emulator_pcpus is not None and not guest.busy:
            unverified[cell].append(planned.name)
    for cell, names in stuck.items():
        yield ("stuck", cell), f"threads do not follow their cpuset, of {_listed(names)}"
    if result.cause not in PARTIAL:  # others are read, or pinned, only now
        for cell, names in unverified.items():
            text = "the kernel shows no cpuset of its own, and only main threads follow, of "
            yield (_UNVERIFIED, cell), text + _listed(names)


def _listed(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")
