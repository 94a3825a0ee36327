"""What ratio is advised from which slots, and what no load and no waiting can do to it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.advice import HIGHEST, LOWEST, Advice, Because, Verdict, advise
from agent.load import Method, Slot

METHOD: Final = Method()
EIGHT: Final = Fraction(8)


def slot(
    *,
    guests: float = 8,
    used: float = 0.01,
    delay: float = 0,
    cpus: float = 1,
    weight: float | None = None,
    seconds: float = 300,
    others: float = 0,
) -> Slot:
    """Return a slot of some guests that each used so many pCPUs, in a pool of so many.

    Of each of those something else used the share `others`.
    """
    heavy = guests if weight is None else weight
    ran = used * guests * seconds
    return Slot(
        0,
        seconds,
        guests * seconds,
        heavy * seconds,
        cpus * seconds,
        ran + others * cpus * seconds,
        ran,
        0,
        used,
        delay,
    )


class Row(NamedTuple):
    """A window, the guests and the ratio there are, and what is advised."""

    window: list[Slot]
    ratio: str | None
    verdict: Verdict | None
    because: Because
    present: str = "8"
    guests: int = 8


DAY: Final = 288
ROWS: Final = {
    "idle guests: as far as the pool was ever full, twice": Row(
        [slot(used=0)] * DAY, "16", Verdict.RAISE, Because.SEEN
    ),
    "as much as the load bears": Row([slot(used=0.05)] * DAY, "10", Verdict.RAISE, Because.LOAD),
    "the load bears just what is": Row([slot(used=0.0625)] * DAY, "8", Verdict.KEEP, Because.LOAD),
    "a load that bears a little more than is changes nothing": Row(
        [slot(used=0.061)] * DAY, "8", Verdict.KEEP, Because.LOAD
    ),
    "a load too high": Row([slot(used=0.08)] * DAY, "6", Verdict.LOWER, Because.LOAD),
    "a guest that takes more than half a pCPU gets more than one": Row(
        [slot(used=0.75)] * DAY, "33/50", Verdict.LOWER, Because.LOAD
    ),
    "one slot in a hundred may be worse": Row(
        [slot(used=0.05)] * 286 + [slot(used=1)] * 2, "10", Verdict.RAISE, Because.LOAD
    ),
    "but not two": Row(
        [slot(used=0.05)] * 285 + [slot(used=1)] * 3, "1/2", Verdict.LOWER, Because.LOAD
    ),
    "of few slots none may": Row(
        [slot(used=0.05)] * 11 + [slot(used=0.1)], "5", Verdict.LOWER, Because.LOAD
    ),
    "waiting as long as running is what half load means": Row(
        [slot(delay=1)] * DAY, "16", Verdict.RAISE, Because.SEEN
    ),
    "waiting longer lowers the ratio in proportion": Row(
        [slot(delay=1.25)] * DAY, "6", Verdict.LOWER, Because.WAITING
    ),
    "but at most to half the density that there was": Row(
        [slot(delay=500)] * DAY, "4", Verdict.LOWER, Because.WAITING
    ),
    "waiting for something else than each other is not cured by the ratio": Row(
        [slot(delay=500, others=0.5)] * DAY, "8", Verdict.KEEP, Because.OTHERS
    ),
    "but no reason to raise it": Row(
        [slot(guests=12, delay=500, others=0.9)] * DAY, "8", Verdict.KEEP, Because.OTHERS
    ),
    "nor to overlook the load": Row(
        [slot(used=0.08, delay=500, others=0.9)] * DAY, "6", Verdict.LOWER, Because.LOAD
    ),
    "something else that takes less than they do is no excuse": Row(
        [slot(used=0.03, delay=2, others=0.2)] * DAY, "4", Verdict.LOWER, Because.WAITING
    ),
    "of load and waiting the worse one": Row(
        [slot(delay=1.25, used=0.2)] * DAY, "5/2", Verdict.LOWER, Because.LOAD
    ),
    "and of the two when both are as bad the waiting, which is felt": Row(
        [slot(delay=2, used=0.125)] * DAY, "4", Verdict.LOWER, Because.WAITING
    ),
    "waiting at a density that the ratio excludes by now leaves it": Row(
        [slot(guests=16, delay=2)] * 100 + [slot(guests=4, used=0.01)] * 188,
        "8",
        Verdict.KEEP,
        Because.WAITING,
    ),
    "waiting at a density above the new ratio tells what was too much": Row(
        [slot(guests=16, delay=2)] * 100 + [slot(guests=4)] * 188,
        "8",
        Verdict.RAISE,
        Because.WAITING,
        present="4",
    ),
    "a pool that was never full says little": Row(
        [slot(guests=3, used=0)] * DAY, "8", Verdict.KEEP, Because.SEEN
    ),
    "nor does one that was full for a moment": Row(
        [slot(guests=3, used=0)] * 277 + [slot(guests=80, used=0)] * 11,
        "8",
        Verdict.KEEP,
        Because.SEEN,
    ),
    "an hour is no moment": Row(
        [slot(guests=3, used=0)] * 276 + [slot(guests=80, used=0)] * 12,
        "160",
        Verdict.RAISE,
        Because.SEEN,
    ),
    "a wide pool is as dense as its share": Row(
        [slot(guests=16, cpus=2)] * DAY, "16", Verdict.RAISE, Because.SEEN
    ),
    "guests of half a weight": Row(
        [slot(guests=16, weight=8, used=0.05)] * DAY, "5", Verdict.LOWER, Because.LOAD
    ),
    "in a dry run the load can only lower": Row(
        [slot(cpus=0, delay=9)] * DAY, "8", Verdict.KEEP, Because.SEEN
    ),
    "and does": Row([slot(cpus=0, used=0.1)] * DAY, "5", Verdict.LOWER, Because.LOAD),
    "what may be configured is the end": Row(
        [slot(guests=900, used=0)] * DAY, "1000", Verdict.RAISE, Because.SEEN
    ),
    "and so is what a guest can use": Row(
        [slot(guests=8, used=99)] * DAY, "1/100", Verdict.LOWER, Because.LOAD
    ),
    "nothing is known of no guests": Row([], None, None, Because.NO_GUESTS, guests=0),
    "nor at first of some": Row([], None, None, Because.TOO_SHORT),
    "nor for an hour": Row([slot(delay=9)] * 11, None, None, Because.TOO_SHORT),
    "halves of slots are none": Row(
        [slot()] * 11 + [slot(seconds=149)] * 99, None, None, Because.TOO_SHORT
    ),
    "guests that have left are known": Row(
        [slot(used=0.1)] * DAY, "5", Verdict.LOWER, Because.LOAD, guests=0
    ),
    "one guest does not speak for others": Row(
        [slot(guests=1, used=0.9, delay=9)] * DAY, None, None, Because.TOO_FEW_GUESTS
    ),
    "a heavy one neither": Row(
        [slot(guests=1, weight=64)] * DAY, None, None, Because.TOO_FEW_GUESTS
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_what_is_advised(row: Row) -> None:
    found = advise(Fraction(row.present), row.guests, row.window, METHOD)
    ratio = None if row.ratio is None else Fraction(row.ratio)
    assert (found.ratio, found.verdict, found.because) == (ratio, row.verdict, row.because)


def test_the_evidence_is_what_was_measured() -> None:
    window = [slot(guests=8, used=0.05, others=0.1)] * 150
    window += [slot(guests=4, used=0.1, delay=0.5, others=0.2)] * 150
    found = advise(EIGHT, 8, [*window, slot(seconds=100, used=9)], METHOD).evidence
    assert found.slots == 300
    assert found.hours == 25
    assert found.guests == 6
    assert (found.density, found.dense) == (6, 8)
    assert found.used == pytest.approx(0.4 / 6)
    assert found.used_high == pytest.approx(0.1)
    assert found.busy_high == pytest.approx(0.4)
    assert found.delay_high == 0.5
    assert found.peak == 0.1
    assert found.others == pytest.approx(0.15)


def test_the_ratio_is_written_as_one_would_write_it() -> None:
    for borne, written in ((17.99, "17"), (9.99, "19/2"), (3.99, "15/4"), (0.987, "49/50")):
        window = [slot(used=0.5 / borne)] * DAY
        assert advise(Fraction(100), 8, window, METHOD).ratio == Fraction(written)
    for whole in range(1, 100):  # and a last binary digit takes nothing away
        window = [slot(used=0.5 / whole)] * DAY
        assert advise(Fraction(100), 8, window, METHOD).ratio == whole


# --- whatever was measured -----------------------------------------------------------------------

SLOTS: Final = st.builds(
    slot,
    guests=st.integers(1, 200),
    used=st.floats(0, 2),
    delay=st.floats(0, 1000),
    cpus=st.sampled_from([0, 1, 1, 2, 8]),
    others=st.sampled_from([0, 0, 0.3, 1]),
    seconds=st.sampled_from([100, 299, 300, 301, 3000]),
)
WINDOWS: Final = st.lists(SLOTS, min_size=10, max_size=30)
RATIOS: Final = st.fractions(LOWEST, HIGHEST, max_denominator=100)


def advised(present: Fraction, window: list[Slot]) -> Advice:
    return advise(present, 8, window, METHOD)


@given(RATIOS, WINDOWS, st.randoms(use_true_random=False))
def test_the_order_of_slots_is_no_matter(
    present: Fraction,
    window: list[Slot],
    random: Any,  # noqa: ANN401
) -> None:
    assert advised(present, random.sample(window, len(window))) == advised(present, window)


@given(RATIOS, WINDOWS)
def test_an_answer_may_be_configured_and_goes_no_further_than_it_says(
    present: Fraction, window: list[Slot]
) -> None:
    found = advised(present, window)
    if found.ratio is None:
        assert (found.verdict, found.load_bears, found.waiting_bears) == (None, None, None)
        return
    assert LOWEST <= found.ratio <= HIGHEST
    assert (
        found.verdict
        == (
            (Verdict.LOWER, Verdict.KEEP, Verdict.RAISE)[
                1 + (found.ratio > present) - (found.ratio < present)
            ]
        )
    )
    if found.verdict is Verdict.RAISE:
        assert found.load_bears is not None
        assert found.waiting_bears is not None
        seen = found.evidence.dense * METHOD.stretch
        assert found.ratio <= min(seen, found.load_bears, found.waiting_bears) * (1 + 1e-6)


@given(RATIOS, WINDOWS, st.floats(0.01, 100))
def test_a_load_so_many_times_as_high_bears_a_ratio_so_many_times_as_low(
    present: Fraction, window: list[Slot], factor: float
) -> None:
    before = advised(present, window)
    changed = [
        replace(one, ran=one.ran * factor, busy=one.busy + one.ran * (factor - 1)) for one in window
    ]
    after = advised(present, changed)
    if before.load_bears is None or after.load_bears is None:
        assert before.ratio is after.ratio is None
        return
    assert after.load_bears * factor == pytest.approx(before.load_bears)


def lowered(window: list[Slot], changed: list[Slot], present: Fraction) -> None:
    """Hold that `changed` is advised no higher ratio."""
    before, after = advised(present, window), advised(present, changed)
    assert (before.ratio is None) == (after.ratio is None)
    if before.ratio is not None and after.ratio is not None:
        assert after.ratio <= before.ratio


@given(RATIOS, WINDOWS, st.lists(st.floats(0, 50), min_size=30, max_size=30))
def test_more_waiting_never_raises_the_ratio(
    present: Fraction, window: list[Slot], more: list[float]
) -> None:
    changed = [
        replace(one, delay=one.delay + extra) for one, extra in zip(window, more, strict=False)
    ]
    lowered(window, changed, present)


@given(RATIOS, WINDOWS, st.lists(st.floats(0, 5000), min_size=30, max_size=30))
def test_more_load_never_raises_the_ratio(
    present: Fraction, window: list[Slot], more: list[float]
) -> None:
    changed = [replace(one, ran=one.ran + extra) for one, extra in zip(window, more, strict=False)]
    lowered(window, changed, present)


# --- whoever follows it --------------------------------------------------------------------------


def queue(ratio: Fraction, used: float) -> Slot:
    """Return a slot of guests on pCPUs that are queues: one server, arrivals at random."""
    load = float(ratio) * used
    ran = min(load, 1.0) / float(ratio)  # of a pCPU that is full each has its part
    return slot(
        guests=64,
        used=ran,
        cpus=64 / float(ratio),
        delay=min(1000.0, load / (1 - load)) if load < 1 else 1000.0,
    )


@given(st.floats(0.004, 1), st.fractions(Fraction(1, 2), 500, max_denominator=4))
def test_who_follows_the_advice_ends_where_the_pool_is_half_busy(
    used: float, ratio: Fraction
) -> None:
    ratios = [ratio]
    while ratios[-2:-1] != ratios[-1:]:
        found = advised(ratios[-1], [queue(ratios[-1], used)] * METHOD.least)
        assert found.ratio is not None
        ratios.append(found.ratio)
        assert len(ratios) < 14
    assert 0.4 <= float(ratios[-1]) * used <= METHOD.target + 1e-6
