"""Whether a guest that is about to start fits at the ratio, and where a pin from elsewhere belongs.

The answer is the plan's: the newcomer, and all that were let in before it and have not appeared
yet, are put into the question of the last cycle, and the plan of that says in which cell the
newcomer is at home and whether its pool, as large as it can become, carries them all. So claims,
`max_cpus`, spilling and whatever else a plan minds count here as they will count in a moment.

A place that was given is *reserved*: until the guest has been seen in a new start, or for as long
as the operator says. Who comes from elsewhere (migration, restore) brings pins that were made for
another host, or by an earlier self: they say nothing of what it was started with, and where they
reach beyond the candidates of its home cell here, they are replaced by that cell's pool.

Costs a plan for each question: some 5 ms with a thousand guests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent import planner
from agent.candidates import untouched
from agent.domainxml import Pins
from agent.policy import is_exclusive, resolve, shared_cpus
from agent.snapshot import Guest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from agent.cpuset import CpuSet
    from agent.domainxml import Domain
    from agent.planner import NUMACell, Plan, Question
    from agent.policy import GuestSettings

_NEWEST: Final = 1 << 62
"""An age, in clock ticks since boot, that no guest reaches."""


@dataclass(frozen=True, slots=True)
class Footing:
    """What an answer stands on: the question of the last cycle, and how policies are found."""

    question: Question
    policies: GuestSettings


@dataclass(frozen=True, slots=True)
class Reservation:
    """A place for a guest that was let in and has not appeared yet."""

    guest: Guest
    until: float  # in the seconds of the question's clock
    before: str | None  # the last start of this guest that had been seen by then

    def holds(self, starts: Mapping[str, str], now: float) -> bool:
        """Tell whether its guest is still to come; `starts` are the last that were seen."""
        return now < self.until and starts.get(self.guest.uuid) == self.before


@dataclass(frozen=True, slots=True)
class Arrival:
    """What will be once the guest is there; `cell` is its home, None if nobody manages it."""

    guest: Guest
    plan: Plan
    cell: NUMACell | None
    ahead: int = 0  # guests at home in the same cell that are let in and have not appeared
    untouched: bool = False  # nothing is pinned in this cell


def arrive(footing: Footing, domain: Domain, ahead: Sequence[Guest], *, incoming: bool) -> Arrival:
    """Plan with the guest that `domain` defines, and those let in before it, from the oldest.

    `incoming`: it is not booted here but comes with its memory, and so with a pin from elsewhere.
    """
    before = [guest for guest in ahead if guest.uuid != domain.uuid]
    replaced = {domain.uuid, *(guest.uuid for guest in before)}
    known = [guest for guest in footing.question.guests if guest.uuid not in replaced]
    original = _original(footing.question, domain) if incoming else domain.pins
    running = replace(domain, id=domain.id or 0)
    shared = shared_cpus(
        pins.emulator for pins in (*(one.original for one in (*known, *before)), original)
    )
    verdict = resolve(footing.policies, running, original.emulator, shared)
    guest = Guest(running, original, verdict, busy=True)
    coming = [replace(one, age=_NEWEST + n) for n, one in enumerate([*before, guest])]
    guests = tuple(_judged(footing, (*known, *coming), shared))
    question = replace(footing.question, guests=guests)
    return _arrival(question, coming[-1], {one.uuid for one in before})


def _original(question: Question, domain: Domain) -> Pins:
    """Return what a guest from elsewhere was started with: its definition here knows, if any."""
    known = next((one for one in question.guests if one.uuid == domain.uuid), None)
    return Pins(None) if known is None else known.original


def _judged(footing: Footing, guests: Iterable[Guest], shared: CpuSet) -> Iterator[Guest]:
    """Yield the guests with the verdicts that they have now that others share their pCPUs."""
    for guest in guests:
        pin = guest.original.emulator
        if is_exclusive(pin, shared) == guest.verdict.exclusive:
            yield guest
        else:
            yield replace(guest, verdict=resolve(footing.policies, guest.domain, pin, shared))


def _arrival(question: Question, guest: Guest, ahead: set[str]) -> Arrival:
    plan = planner.plan(question)
    homes = {planned.uuid: planned.cell for planned in plan.guests}
    cell = next((one for one in plan.cells if one.id == homes[guest.uuid]), None)
    if cell is None:
        return Arrival(guest, plan, None)
    there = sum(homes[uuid] == cell.id for uuid in ahead)
    return Arrival(guest, plan, cell, there, untouched=cell.id in untouched(question))


def refusal(arrival: Arrival) -> str | None:
    """Return why the guest does not fit and what helps, in a line; None if it does."""
    cell = arrival.cell
    if cell is None or arrival.untouched or not cell.over:
        return None
    plural = "guest" if arrival.ahead == 1 else "guests"
    coming = f" ({arrival.ahead} {plural} of it only starting)" if arrival.ahead else ""
    return (
        f"NUMA cell {cell.id} is full at emulator_overcommit_ratio {cell.ratio}: with this guest"
        f" its pool, {cell.emulator_cpus or 'no pCPU'}, would have to carry weight {cell.weight}"
        f"{coming} and carries {cell.capacity}: stop or move a guest of this cell, raise"
        " pool.emulator_overcommit_ratio, or let the pool have more pCPUs (pool.cpus,"
        " pool.max_cpus)"
    )


def repinned(arrival: Arrival, *, iothreads: bool) -> dict[int | None, CpuSet]:
    """Return the pins to be replaced, and by what; None is the emulator's, others are iothreads'.

    Only pins that are there, and that the candidates of the home cell do not contain. An iothread
    with real-time scheduling would starve a pool, so it keeps its pin.
    """
    cell = arrival.cell
    if cell is None or not cell.emulator_cpus:
        return {}
    domain = arrival.guest.domain
    pins: dict[int | None, CpuSet | None] = {None: domain.emulator}
    if iothreads:
        pins |= {thread.id: thread.cpus for thread in domain.iothreads if not thread.realtime}
    foreign = (
        one for one, cpus in pins.items() if cpus is not None and not cpus <= cell.candidates
    )
    return dict.fromkeys(foreign, cell.emulator_cpus)
