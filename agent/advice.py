"""How high the ratio may be in one cell, from what its pool carried: docs/advise.md in code.

Each slot of the window says what ratio it would have borne, twice:

- by *load*: at which weight per pCPU the pool would have been busy for `target` of its time;
- by *waiting*: if a guest waited longer than a queue at the target makes it wait, a ratio lower
  than the slot's own density, by as much as it waited too long, at most `stretch` times. But where
  something else took more of the pool than its threads did, no ratio would have helped: such a slot
  is no reason to go below the ratio in force.

Of each the ratio is taken that all but 1 - `quantile` of the slots bear, and of these two the lower
one. Where that is above the ratio in force, no more than `stretch` times the density that the pool
really had is advised: how threads get on beyond that, nobody has seen.

So more load or more waiting never raises the answer, and the order of the slots is irrelevant.
Measurements are floats; the ratio that is advised is exact, of a grid and rounded down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from agent.load import STANDARD

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.load import Method, Slot

LOWEST: Final = Fraction(1, 100)
HIGHEST: Final = Fraction(1000)
"""What `pool.emulator_overcommit_ratio` may be."""
_GRID: Final = (
    (Fraction(10), Fraction(1)),
    (Fraction(4), Fraction(1, 2)),
    (Fraction(1), Fraction(1, 4)),
    (Fraction(0), LOWEST),
)
"""From which ratio on a ratio is a multiple of what."""

_FUZZ: Final = 1 + 1e-9  # 7.999999999 is 8


class Verdict(StrEnum):
    """What to do with the ratio."""

    RAISE = "raise"
    KEEP = "keep"
    LOWER = "lower"


class Because(StrEnum):
    """What the advice rests on, or why there is none."""

    LOAD = "load"  # threads run so much, and no more
    WAITING = "waiting"  # threads wait for a pCPU
    OTHERS = "others"  # they wait, but for something else than each other
    SEEN = "seen"  # the pool was never dense enough to say more
    NO_GUESTS = "no-guests"
    TOO_SHORT = "too-short"
    TOO_FEW_GUESTS = "too-few-guests"


_Borne = tuple[float, Because]
"""A ratio, and what keeps it from being higher."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured in the slots that count; `high` is what the quantile of them keeps to."""

    slots: int
    hours: float
    guests: float  # on average
    density: float  # weight per pCPU of the pool, on average; 0 without a pool
    dense: float  # the density that `least` slots had or exceeded
    used: float  # pCPUs per weight, on average
    used_high: float
    busy_high: float  # share of the pool's time that emulator threads took
    delay_high: float  # seconds waited per second run, of the guest that waited most
    peak: float  # pCPUs that one guest used, at most
    others: float  # share of the pool's time that something else took, on average


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer for one cell; without data `ratio`, `verdict` and what is borne are None."""

    ratio: Fraction | None
    verdict: Verdict | None
    because: Because
    evidence: Evidence
    load_bears: float | None = None  # the ratio that the load alone allows; inf if nothing ran
    waiting_bears: float | None = None  # inf if nobody waited long


def advise(
    present: Fraction, guests: int, window: Iterable[Slot], method: Method = STANDARD
) -> Advice:
    """Return what ratio a cell bears that has the ratio `present` and so many guests now."""
    every = tuple(window)
    slots = [slot for slot in every if slot.seconds >= method.slot / 2 and slot.weight > 0]
    evidence = _evidence(slots, method)
    silence = _silence(evidence, every, guests, method)
    if silence is not None:
        return Advice(None, None, silence, evidence)
    load = _low((_by_load(slot, method) for slot in slots), method.quantile)
    waiting = _low((_by_waiting(slot, present, method) for slot in slots), method.quantile)
    borne, because = min(waiting, load, key=lambda one: one[0])
    if borne >= present:
        seen = evidence.dense * method.stretch
        if seen < borne:
            borne, because = seen, Because.SEEN
        ratio = max(present, _on_grid(borne))
    else:
        ratio = _on_grid(borne)
    return Advice(ratio, _verdict(present, ratio), because, evidence, load[0], waiting[0])


def _silence(
    evidence: Evidence, window: Sequence[Slot], guests: int, method: Method
) -> Because | None:
    """Return why nothing can be said."""
    if not window and not guests:
        return Because.NO_GUESTS
    if evidence.slots < method.least:
        return Because.TOO_SHORT
    if evidence.guests < method.guests:
        return Because.TOO_FEW_GUESTS
    return None


def _verdict(present: Fraction, ratio: Fraction) -> Verdict:
    if ratio == present:
        return Verdict.KEEP
    return Verdict.RAISE if ratio > present else Verdict.LOWER


def _by_load(slot: Slot, method: Method) -> _Borne:
    """Return the weight per pCPU at which the target would have been reached."""
    return method.target * slot.weight / slot.ran if slot.ran else math.inf, Because.LOAD


def _by_waiting(slot: Slot, present: Fraction, method: Method) -> _Borne:
    """Return the weight per pCPU at which the guest that waited most might have been content."""
    if not slot.cpus or slot.delay <= method.patience:
        return math.inf, Because.WAITING
    borne = slot.weight / slot.cpus * max(method.patience / slot.delay, 1 / method.stretch)
    if borne < present and slot.busy > 2 * slot.ran:
        return float(present), Because.OTHERS
    return borne, Because.WAITING


def _evidence(slots: Sequence[Slot], method: Method) -> Evidence:
    pooled = [slot for slot in slots if slot.cpus]
    seconds = math.fsum(slot.seconds for slot in slots)
    weight = math.fsum(slot.weight for slot in slots)
    cpus = math.fsum(slot.cpus for slot in pooled)
    densities = sorted((slot.weight / slot.cpus for slot in pooled), reverse=True)
    return Evidence(
        slots=len(slots),
        hours=seconds / 3600,
        guests=math.fsum(slot.guests for slot in slots) / (seconds or 1),
        density=math.fsum(slot.weight for slot in pooled) / (cpus or 1),
        dense=densities[method.least - 1] if len(densities) >= method.least else 0.0,
        used=math.fsum(slot.ran for slot in slots) / (weight or 1),
        used_high=_high((slot.ran / slot.weight for slot in slots), method.quantile),
        busy_high=_high((slot.ran / slot.cpus for slot in pooled), method.quantile),
        delay_high=_high((slot.delay for slot in pooled), method.quantile),
        peak=max((slot.peak for slot in slots), default=0.0),
        others=math.fsum(max(0.0, slot.busy - slot.ran) for slot in pooled) / (cpus or 1),
    )


def _high(values: Iterable[float], quantile: float) -> float:
    """Return the smallest value that a share `quantile` of `values` does not exceed; of none 0."""
    ranked = sorted(values)
    return ranked[math.ceil(quantile * len(ranked)) - 1] if ranked else 0.0


def _low(values: Iterable[_Borne], quantile: float) -> _Borne:
    """Return the largest of `values`, at least one, that a share `quantile` of them reaches."""
    ranked = sorted(values, reverse=True)
    return ranked[math.ceil(quantile * len(ranked)) - 1]


def _on_grid(ratio: float) -> Fraction:
    """Return a ratio as one would write it: not above `ratio`, and one that may be configured."""
    if ratio >= HIGHEST:
        return HIGHEST
    exact = max(LOWEST, Fraction(ratio * _FUZZ))
    step = next(step for above, step in _GRID if exact >= above)
    return exact // step * step
