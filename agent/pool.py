"""The terms of a pool: its settings, what is remembered of it, how large it must be, what it is.

Arithmetic is exact: ratio and weights are fractions. Memory is a hint, never a truth: a plan
made from an empty memory is right too, it only may move more guests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from agent.cpuset import EMPTY, CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.cpuset import CellId
    from agent.domainxml import Pins


class PoolSource(StrEnum):
    """Which pCPUs a pool may take."""

    AUTO = "auto"
    FREE = "free"
    SET = "set"
    RESERVED = "reserved"


class Placement(StrEnum):
    """Whether a guest uses its cell's whole pool or one pCPU of it."""

    AUTO = "auto"
    SHARED = "shared"
    SINGLE = "single"


class Smt(StrEnum):
    """What a claimed sibling thread means for the choice."""

    PREFER = "prefer"
    STRICT = "strict"
    ANY = "any"


class OnShortage(StrEnum):
    """What happens to guests that do not fit."""

    OVERCOMMIT = "overcommit"
    SPILL = "spill"
    LEAVE = "leave"


class OnStop(StrEnum):
    """What a clean stop does with the pins."""

    LEAVE = "leave"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class CellSettings:
    """The keys of `[pool]` that `[pool.cell.N]` may replace; times in seconds."""

    emulator_overcommit_ratio: Fraction = Fraction(8)
    source: PoolSource = PoolSource.AUTO
    cpus: CpuSet = EMPTY  # empty: all
    reserved_cpus: CpuSet = EMPTY
    placement: Placement = Placement.AUTO
    smt: Smt = Smt.PREFER
    on_shortage: OnShortage = OnShortage.OVERCOMMIT
    min_cpus: int = 1
    max_cpus: int = 0  # 0: no limit
    shrink_delay: float = 30.0

    @property
    def ratio(self) -> Fraction:
        """Guests, by weight, per emulator pCPU."""
        return self.emulator_overcommit_ratio


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """The `[pool]` table."""

    default: CellSettings = CellSettings()
    cells: Mapping[CellId, CellSettings] = field(default_factory=dict)
    count_inactive: bool = True
    iothreads: bool = True
    on_stop: OnStop = OnStop.LEAVE

    def of(self, cell: CellId) -> CellSettings:
        """Return what holds for `cell`."""
        return self.cells.get(cell, self.default)


@dataclass(frozen=True, slots=True)
class CellMemory:
    """What is remembered of a cell's pool; times are the cycles' `now`, in seconds."""

    cpus: CpuSet = EMPTY  # as last decided
    lingering: CpuSet = EMPTY  # left by the last decision; in use while a guest is placed there
    oversize_since: float | None = None
    oversize_need: int = 0  # the largest need since then
    smt_since: float | None = None  # a better set of the same size exists since


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """What is remembered of a guest in one start of it."""

    start: str
    original: Pins
    natural: CellId | None = None  # the cell it belongs to
    home: CellId | None = None  # the cell it counts in
    placed: CpuSet | None = None  # the last target; None: never pinned by us
    room_since: float | None = None  # its natural home has had room since


@dataclass(frozen=True, slots=True)
class SetAside:
    """A pCPU that a guest's definition sets aside, and since when that guest is stopped."""

    cpu: int
    owner: str
    stopped_since: float | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """All that a plan takes from the one before."""

    cells: Mapping[CellId, CellMemory] = field(default_factory=dict)
    guests: Mapping[str, GuestMemory] = field(default_factory=dict)
    set_aside: tuple[SetAside, ...] = ()

    def guest(self, uuid: str, start: str) -> GuestMemory | None:
        """Return what is remembered of this start of the guest."""
        memory = self.guests.get(uuid)
        return memory if memory is not None and memory.start == start else None


NOTHING: Final = Memory()


@dataclass(frozen=True, slots=True)
class NUMACell:
    """The pool of one NUMA cell, as decided."""

    id: CellId
    guests: int
    weight: Fraction
    ratio: Fraction
    need: int
    emulator_cpus: CpuSet
    pool_now: CpuSet
    candidates: CpuSet
    claimed: CpuSet
    shortage: int
    source: PoolSource  # never AUTO
    placement: Placement  # SHARED or SINGLE
    realtime: CpuSet = EMPTY  # the part of `claimed` that real-time vCPUs run on
    reserved: CpuSet = EMPTY  # what the settings keep out of the pool

    @property
    def capacity(self) -> Fraction:
        """The weight that the pool carries at the ratio."""
        return len(self.emulator_cpus) * self.ratio

    @property
    def over(self) -> bool:
        """Whether its guests weigh more than the pool carries at the ratio."""
        return self.weight > self.capacity


def total(weights: Iterable[Fraction]) -> Fraction:
    """Return the sum; as `sum`, but one addition of fractions per denominator."""
    sums: dict[int, int] = {}
    for weight in weights:
        sums[weight.denominator] = sums.get(weight.denominator, 0) + weight.numerator
    return sum((Fraction(top, bottom) for bottom, top in sums.items()), Fraction(0))


def unclamped_need(weight: Fraction, ratio: Fraction) -> int:
    """Return ceil(weight / ratio)."""
    return -(-weight // ratio)


def need(settings: CellSettings, weight: Fraction) -> int:
    """Return how many pCPUs guests of `weight` in all need; 0 when there are none."""
    if not weight:
        return 0
    wanted = max(settings.min_cpus, unclamped_need(weight, settings.ratio))
    return min(settings.max_cpus, wanted) if settings.max_cpus else wanted


def largest(settings: CellSettings, candidates: int) -> int:
    """Return how many pCPUs a pool can come to, out of so many candidates."""
    return min(candidates, settings.max_cpus or candidates)


@dataclass(frozen=True, slots=True)
class Sizing:
    """How large a pool is to be, and the damping clock that says so."""

    size: int
    oversize_since: float | None = None
    oversize_need: int = 0


def damp(now: float, wanted: int, held: int, before: CellMemory, shrink_delay: float) -> Sizing:
    """Return the size of a pool that needs `wanted` and still holds `held` usable pCPUs.

    Growth is immediate. A pool that is too large without interruption for `shrink_delay` shrinks
    to the largest need of that window, and a new window begins if that is still too large.
    A delay of 0 damps nothing.
    """
    if wanted >= held or shrink_delay <= 0:
        return Sizing(wanted)
    since = now if before.oversize_since is None else before.oversize_since
    largest = max(wanted, before.oversize_need if before.oversize_since is not None else 0)
    if now < since + shrink_delay:
        return Sizing(held, since, largest)
    size = min(held, largest)
    return Sizing(size) if size == wanted else Sizing(size, now, wanted)
