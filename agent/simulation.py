"""A trace through the real planner, with a clock of its own: what pools would have been.

Each event is a wake, as of a daemon that is never late; between events it wakes where a plan asks
for it. Next to the pools two packings are kept of the same demand: the one that pools allow, and
the one that a pCPU of its own for each `isolate` guest allows. A guest that does not fit is
refused, as a control plane would, and its stop is passed over.

Nova's way of placing: the first cells that have room, lowest pCPUs first; pCPUs of the pool last,
as a host is set up that wants both. A guest that the trace pins is taken as it is.

Memory is bounded by who runs at the same time: sums and a series of at most `POINTS` points.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from agent import planner, transition
from agent.cpuset import EMPTY, CpuSet, union
from agent.domainxml import Domain, Pins, Vcpu
from agent.groups import group
from agent.policy import Policy, Source, Verdict
from agent.pool import NOTHING, Memory, need
from agent.snapshot import Guest
from agent.transition import Kind, Present

if TYPE_CHECKING:
    from agent.cpuset import CellId
    from agent.pool import NUMACell, PoolSettings
    from agent.topology import Host
    from agent.trace import Event
    from agent.transition import Step

POINTS: Final = 600
_ISOLATE: Final = frozenset({Policy.ISOLATE})
_NO_PINS: Final = Pins(None)


@dataclass(slots=True)
class Point:
    """The largest that was seen in one stretch of time, which begins at `time`."""

    time: float
    guests: int = 0
    pool: int = 0
    burnt: int = 0
    shortage: int = 0

    def widen(self, other: Point) -> None:
        """Take in a later stretch."""
        self.guests = max(self.guests, other.guests)
        self.pool = max(self.pool, other.pool)
        self.burnt = max(self.burnt, other.burnt)
        self.shortage = max(self.shortage, other.shortage)


@dataclass(slots=True)
class Outcome:
    """What came of one ratio; `*_seconds` are sums over time."""

    ratio: Fraction
    first: float | None = None
    last: float = 0.0
    events: int = 0
    wakes: int = 0
    fitted: int = 0
    refused: int = 0
    fitted_isolated: int = 0
    growths: int = 0
    shrinks: int = 0
    peak_pool: int = 0
    peak_burnt: int = 0
    peak_shortage: int = 0
    pool_seconds: float = 0.0
    burnt_seconds: float = 0.0
    capacity_seconds: float = 0.0
    weight_seconds: float = 0.0
    shortage_seconds: float = 0.0
    repins: Counter[str] = field(default_factory=Counter)
    series: list[Point] = field(default_factory=list)
    stretch: float = 1.0

    def mark(self, point: Point) -> None:
        """Add a point to the series; where that is full, its stretches become twice as long."""
        self._add(point)
        while len(self.series) > POINTS:
            self.stretch *= 2
            whole, self.series = self.series, []
            for one in whole:
                self._add(one)

    def _add(self, point: Point) -> None:
        if self.series and self._slot(self.series[-1]) == self._slot(point):
            self.series[-1].widen(point)
        else:
            self.series.append(point)

    def _slot(self, point: Point) -> int:
        return int((point.time - (self.first or 0.0)) // self.stretch)


class _Packing:
    """Who is where if each `isolate` guest has a pCPU of its own: counts only."""

    def __init__(self, host: Host) -> None:
        self._room = {cell.id: len(cell.cpus) for cell in host.cells}
        self._taken: dict[str, dict[CellId, int]] = {}

    def start(self, event: Event) -> bool:
        shares = _shares(event)
        own = 1 if event.policy is Policy.ISOLATE else 0
        taken: dict[CellId, int] = {}
        for cell in self._room:
            wanted = shares[len(taken)] + (own if not taken else 0)
            if self._room[cell] >= wanted:
                taken[cell] = wanted
            if len(taken) == len(shares):
                for one, count in taken.items():
                    self._room[one] -= count
                self._taken[event.guest] = taken
                return True
        return False

    def stop(self, guest: str) -> None:
        for cell, count in self._taken.pop(guest, {}).items():
            self._room[cell] += count


class Simulation:
    """One host, one ratio, one pass over a trace."""

    def __init__(self, host: Host, settings: PoolSettings) -> None:
        """Begin with an empty host; `outcome` is what came of it so far."""
        self.outcome = Outcome(settings.default.ratio)
        self._host = host
        self._settings = settings
        self._groups = group(host)
        self._cells = {cell.id: cell.cpus for cell in host.cells}
        self._guests: dict[str, Guest] = {}
        self._memory: Memory = NOTHING
        self._isolated = _Packing(host)
        self._claimed = EMPTY
        self._weights = dict.fromkeys(self._cells, Fraction(0))
        self._number = 0
        self._plan: planner.Plan | None = None
        self._now = 0.0

    @property
    def cells(self) -> tuple[NUMACell, ...]:
        """The pools of now; none before the first wake."""
        return self._plan.cells if self._plan is not None else ()

    def feed(self, event: Event) -> None:
        """Let the time of `event` come, and let it happen."""
        while (due := self._deadline()) is not None and due <= event.time:
            self._wake(due)
        out = self.outcome
        out.events += 1
        if out.first is None:
            out.first = self._now = event.time
        if self._start(event) if event.starts else self._stop(event.guest):
            self._wake(event.time)

    def _deadline(self) -> float | None:
        return self._plan.deadline if self._plan is not None else None

    # who runs

    def _start(self, event: Event) -> bool:
        if event.guest in self._guests:
            return False
        self.outcome.fitted_isolated += self._isolated.start(event)
        places = [event.pins] if event.pins else self._places(event)
        if not places:
            self.outcome.refused += 1
            return False
        self.outcome.fitted += 1
        self._number += 1
        guest = _guest(self._number, event, places, self._home(places[0][0]))
        self._guests[event.guest] = guest
        self._count(guest, 1)
        return True

    def _stop(self, name: str) -> bool:
        self._isolated.stop(name)
        guest = self._guests.pop(name, None)
        if guest is None:
            return False
        self._count(guest, -1)
        return True

    def _count(self, guest: Guest, sign: int) -> None:
        self._claimed = union(one.domain.claims for one in self._guests.values())
        home = next(iter(guest.domain.memnode or ()), None)
        if home is not None and guest.verdict.policy is Policy.ISOLATE:
            self._weights[home] += sign * guest.verdict.weight

    def _home(self, cpu: int) -> CellId | None:
        return next((cell for cell, cpus in self._cells.items() if cpu in cpus), None)

    def _places(self, event: Event) -> list[tuple[int, ...]]:
        """Return the pCPUs of each part of a guest, empty if it does not fit."""
        places: list[tuple[int, ...]] = []
        shares = _shares(event)
        pool = union(cell.emulator_cpus for cell in self._plan.cells) if self._plan else EMPTY
        for cell, cpus in self._cells.items():
            free = cpus - self._claimed
            weight = self._weights[cell]
            if not places and event.policy is Policy.ISOLATE:
                weight += event.weight
            share = shares[len(places)]
            if len(free) >= share + need(self._settings.of(cell), weight):
                ids = [*(free - pool), *(free & pool)]
                places.append(tuple(ids[:share]))
            if len(places) == len(shares):
                return places
        return []

    # what the daemon does

    def _wake(self, now: float) -> None:
        self._pass_time(now)
        question = planner.Question(
            host=self._host,
            settings=self._settings,
            manage=_ISOLATE,
            guests=tuple(self._guests.values()),
            memory=self._memory,
            now=now,
        )
        plan = planner.plan(question, self._groups)
        present = Present(self._host.online, self._memory.guests)
        self._carry_out(plan, transition.diff(plan, question.guests, present))
        self._tally(plan)
        self._plan = plan

    def _carry_out(self, plan: planner.Plan, steps: tuple[Step, ...]) -> None:
        moved = {step.uuid: step for step in steps if step.kind is Kind.EMULATOR}
        known = dict(plan.memory.guests)
        for step in moved.values():
            known[step.uuid] = replace(known[step.uuid], placed=step.to)
        for name, guest in self._guests.items() if moved else ():
            if guest.uuid in moved:
                domain = replace(guest.domain, emulator=moved[guest.uuid].to)
                self._guests[name] = replace(guest, domain=domain)
        cells = {cell: replace(kept, lingering=EMPTY) for cell, kept in plan.memory.cells.items()}
        self._memory = replace(plan.memory, guests=known, cells=cells)
        self.outcome.repins.update(step.reason.value for step in steps)

    def _pass_time(self, now: float) -> None:
        """Add what was, up to `now`, to the sums."""
        seconds, out = now - self._now, self.outcome
        self._now = out.last = now
        if self._plan is None:
            return
        for cell in self._plan.cells:
            out.pool_seconds += seconds * len(cell.emulator_cpus)
            out.burnt_seconds += seconds * cell.guests
            out.capacity_seconds += seconds * float(cell.capacity)
            out.weight_seconds += seconds * float(cell.weight)
            out.shortage_seconds += seconds * (cell.shortage > 0)

    def _tally(self, plan: planner.Plan) -> None:
        out = self.outcome
        out.wakes += 1
        before = self._plan.cells if self._plan is not None else ()
        for was, cell in zip(before, plan.cells, strict=False):
            out.growths += len(cell.emulator_cpus) > len(was.emulator_cpus)
            out.shrinks += len(cell.emulator_cpus) < len(was.emulator_cpus)
        point = Point(
            self._now,
            guests=len(self._guests),
            pool=sum(len(cell.emulator_cpus) for cell in plan.cells),
            burnt=sum(cell.guests for cell in plan.cells),
            shortage=sum(cell.shortage for cell in plan.cells),
        )
        out.peak_pool = max(out.peak_pool, point.pool)
        out.peak_burnt = max(out.peak_burnt, point.burnt)
        out.peak_shortage = max(out.peak_shortage, point.shortage)
        out.mark(point)


def _shares(event: Event) -> tuple[int, ...]:
    """Return how many vCPUs each part of a guest has."""
    least, more = divmod(event.vcpus, event.cells)
    return tuple(least + (n < more) for n in range(event.cells))


def _guest(number: int, event: Event, places: list[tuple[int, ...]], home: CellId | None) -> Guest:
    pins = [CpuSet.of(cpu) for place in places for cpu in place]
    domain = Domain(
        uuid=f"00000000-0000-4000-8000-{number:012x}",
        name=event.guest,
        id=number,
        vcpus=tuple(Vcpu(n, pin, realtime=False) for n, pin in enumerate(pins)),
        vcpu_cpuset=None,
        emulator=None,
        emulator_realtime=False,
        iothreads=(),
        memnode=frozenset({home}) if home is not None else None,
        memory_nodes=None,
        partition=None,
        own=None,
        nova=None,
        claims=union(pins),
        realtime_claims=EMPTY,
        flaws=(),
    )
    verdict = Verdict(event.policy, Source.RULE, event.weight)
    return Guest(domain, _NO_PINS, verdict, age=number, start=str(number))
