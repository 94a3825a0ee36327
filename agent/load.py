"""What guests' emulator threads ran and waited in each pool, over the last day: for `advice`.

A *look* reads what threads used since the look before; `Loads` adds looks up in *slots* of equal
length, of which each cell keeps the last ones: its window. A slot is closed, and then never
changes, when a look comes that belongs to a later one. A look belongs to the slot that it ends in.

A guest counts from its second look on, with its weight, its threads and its pCPUs alike: what a
newcomer or one that left did between two looks is in none of the sums, so that they belong
together. Guests that come, go or start again, a pool that grows, another ratio: each look has its
own, and its own duration.

An open slot holds a row for each guest that is there now; of those that left only sums and maxima
stay. So memory is bounded by the guests that run, and by `Method.slots` for each cell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.cpuset import CellId

_DIGITS: Final = 4  # of seconds: a tenth of a millisecond, over minutes
_BRIEF: Final = 0.1  # share of a slot; a guest seen for less counts as if it were seen for that
_WORST: Final = 1000.0  # times as long waited as ran; more is no news


@dataclass(frozen=True, slots=True)
class Method:
    """How load is measured and judged; docs/advise.md has the reasons."""

    slot: float = 300.0  # seconds
    slots: int = 288  # in a window: a day
    least: int = 12  # slots without which nothing is said, and that a density must have lasted
    guests: float = 2.0  # on average, below which nothing is said
    target: float = 0.5  # share of a pool's time that emulator threads may take
    quantile: float = 0.99  # share of the slots that must keep to it
    stretch: float = 2.0  # one step goes no further than so many times what was seen
    notable: float = 0.01  # share of a slot; a guest that waited less has not waited

    @property
    def patience(self) -> float:
        """Seconds waited per second run that a queue has at the target: t / (1 - t)."""
        return self.target / (1 - self.target)


STANDARD: Final = Method()


@dataclass(frozen=True, slots=True)
class Slot:
    """What a cell's pool carried in one stretch of time; sums are seconds times what is named."""

    number: int  # of the stretch, from the clock's zero
    seconds: float  # that looks covered
    guests: float
    weight: float
    cpus: float  # pCPUs of the pool; 0 while guests were elsewhere, in a dry run
    busy: float  # of those the share that was not idle, whoever ran
    ran: float
    waited: float
    peak: float  # pCPUs that the busiest guest used
    delay: float  # seconds waited per second run, of the guest that waited most for what it ran

    def __add__(self, other: Slot) -> Slot:
        """Join two parts of the same stretch, as a restart leaves them."""
        return Slot(
            self.number,
            round(self.seconds + other.seconds, _DIGITS),
            round(self.guests + other.guests, _DIGITS),
            round(self.weight + other.weight, _DIGITS),
            round(self.cpus + other.cpus, _DIGITS),
            round(self.busy + other.busy, _DIGITS),
            round(self.ran + other.ran, _DIGITS),
            round(self.waited + other.waited, _DIGITS),
            max(self.peak, other.peak),
            max(self.delay, other.delay),
        )


@dataclass(frozen=True, slots=True)
class History:
    """The windows of all cells, as far as slots are closed."""

    method: Method = STANDARD
    cells: Mapping[CellId, tuple[Slot, ...]] = field(default_factory=dict)

    def of(self, cell: CellId) -> tuple[Slot, ...]:
        """Return the window of a cell, from the oldest slot on."""
        return self.cells.get(cell, ())


NO_HISTORY: Final = History()


@dataclass(frozen=True, slots=True)
class Used:
    """What the threads in a pool of one guest used since the last look at it, in seconds."""

    uuid: str
    start: str  # tells one start of a guest from the next
    cell: CellId
    weight: float
    ran: float
    waited: float


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """A pool at one look: its pCPUs, and the share of their time since the last that was busy."""

    cpus: int
    busy: float


_NO_POOL: Final = PoolLoad(0, 0.0)


@dataclass(slots=True)
class _Row:
    """One guest in an open slot."""

    seconds: float = 0.0
    ran: float = 0.0
    waited: float = 0.0


@dataclass(slots=True)
class _Tally:
    """An open slot of one cell."""

    seconds: float = 0.0
    guests: float = 0.0
    weight: float = 0.0
    cpus: float = 0.0
    busy: float = 0.0
    ran: float = 0.0
    waited: float = 0.0
    peak: float = 0.0
    delay: float = 0.0
    rows: dict[str, _Row] = field(default_factory=dict)

    def take(self, elapsed: float, pool: PoolLoad, used: Iterable[Used]) -> None:
        self.seconds += elapsed
        self.cpus += elapsed * pool.cpus
        self.busy += elapsed * pool.cpus * pool.busy
        for one in used:
            self.guests += elapsed
            self.weight += elapsed * one.weight
            self.ran += one.ran
            self.waited += one.waited
            row = self.rows.setdefault(one.uuid, _Row())
            row.seconds += elapsed
            row.ran += one.ran
            row.waited += one.waited

    def drop(self, uuids: Iterable[str], method: Method) -> None:
        """Keep of guests only whether one of them was the worst."""
        for uuid in uuids:
            row = self.rows.pop(uuid)
            self.peak = max(self.peak, row.ran / max(row.seconds, _BRIEF * method.slot))
            if row.waited > method.notable * method.slot:
                self.delay = max(self.delay, row.waited / max(row.ran, row.waited / _WORST))

    def close(self, number: int, method: Method) -> Slot:
        self.drop(tuple(self.rows), method)
        sums = (self.seconds, self.guests, self.weight, self.cpus, self.busy, self.ran, self.waited)
        worst = (self.peak, self.delay)
        return Slot(number, *(round(value, _DIGITS) for value in (*sums, *worst)))


class Loads:
    """Adds looks up; one thread calls it."""

    def __init__(self, history: History = NO_HISTORY) -> None:
        """Go on from `history`."""
        self.history = history
        self._at: float | None = None
        self._number = 0
        self._known: dict[str, str] = {}
        self._open: dict[CellId, _Tally] = {}

    def look(self, now: float, used: Iterable[Used], pools: Mapping[CellId, PoolLoad]) -> bool:
        """Take in what all guests in pools used; True if that closed slots.

        `now` is seconds of a clock that never goes back. A cell without an entry in `pools` has
        guests that are not in its pool: they show what they use, but not what the pool bears.
        """
        guests = tuple(used)
        closed = self._turn(int(now // self.history.method.slot))
        if self._at is not None and now > self._at:
            known = [one for one in guests if self._known.get(one.uuid) == one.start]
            for cell in {one.cell for one in known}:
                here = (one for one in known if one.cell == cell)
                tally = self._open.setdefault(cell, _Tally())
                tally.take(now - self._at, pools.get(cell, _NO_POOL), here)
        self._at = now
        self._known = {one.uuid: one.start for one in guests}
        homes = {one.uuid: one.cell for one in guests}
        for cell, tally in self._open.items():
            gone = [uuid for uuid in tally.rows if homes.get(uuid) != cell]
            tally.drop(gone, self.history.method)
        return closed

    def close(self) -> bool:
        """Close the open slots, as at a stop, and forget old ones; True if anything changed."""
        if self._at is None:
            return False
        method, cells = self.history.method, dict(self.history.cells)
        for cell, tally in self._open.items():
            cells[cell] = _joined(cells.get(cell, ()), tally.close(self._number, method))
        self._open = {}
        recent = {cell: self._recent(slots) for cell, slots in cells.items()}
        kept = {cell: slots for cell, slots in recent.items() if slots}
        changed = kept != self.history.cells
        self.history = History(method, kept)
        return changed

    def _turn(self, number: int) -> bool:
        """Go on to the slot `number`; True if that closed others."""
        closed = self._at is not None and number != self._number and self.close()
        self._number = number
        return closed

    def _recent(self, slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
        first = self._number - self.history.method.slots
        return tuple(slot for slot in slots if first < slot.number <= self._number)


def _joined(slots: tuple[Slot, ...], last: Slot) -> tuple[Slot, ...]:
    if slots and slots[-1].number == last.number:
        return (*slots[:-1], slots[-1] + last)
    return (*slots, last)
