"""What is added up in which slot, whoever comes, goes or starts again, and that it stays small."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import loadtext
from agent.cpuset import CellId
from agent.load import History, Loads, Method, PoolLoad, Slot, Used
from agent.loadtext import HistoryError

if TYPE_CHECKING:
    from collections.abc import Mapping

ZERO, ONE = CellId(0), CellId(1)
TENS: Final = Method(slot=10.0, slots=4)
POOL: Final = {ZERO: PoolLoad(2, 0.25)}


def used(name: str, ran: float = 0.0, waited: float = 0.0, **other: Any) -> Used:  # noqa: ANN401
    return replace(Used(name, "1", ZERO, 1.0, ran, waited), **other)


def slots(
    *looks: tuple[float, list[Used]], pools: Mapping[CellId, PoolLoad] = POOL, cell: CellId = ZERO
) -> tuple[Slot, ...]:
    """Return a cell's window after looks, each at its time."""
    loads = Loads(History(TENS))
    for now, found in looks:
        loads.look(now, found, pools)
    loads.close()
    return loads.history.of(cell)


class Sums(NamedTuple):
    """The sums of one slot."""

    seconds: float
    guests: float
    weight: float
    ran: float
    waited: float


a, b = used("a", 1, 2), used("b", 4, 8)

SUMS: Final[dict[str, tuple[list[tuple[float, list[Used]]], list[Sums]]]] = {
    "one look is no stretch of time": ([(100, [a])], []),
    "a guest counts from its second look on": (
        [(100, [a]), (103, [a, b]), (105, [a, b])],
        [Sums(5, 7, 7, 6, 12)],
    ),
    "one that left counts no more, nor does its weight": (
        [(100, [a, b]), (103, [a, b]), (105, [a])],
        [Sums(5, 8, 8, 6, 12)],
    ),
    "one that could not be read once is a newcomer": (
        [(100, [a, b]), (103, [a]), (105, [a, b]), (106, [a, b])],
        [Sums(6, 7, 7, 7, 14)],
    ),
    "one that started again is a newcomer": (
        [(100, [a]), (103, [a]), (105, [used("a", 9, 9, start="2")])],
        [Sums(3, 3, 3, 1, 2)],
    ),
    "a weight counts as it is at the look": (
        [(100, [a]), (102, [a]), (104, [used("a", 1, 2, weight=0.5)])],
        [Sums(4, 4, 3, 2, 4)],
    ),
    "looks of any length are added up": (
        [(100, [a]), (100.001, [a]), (100.001, [a]), (103, [a])],
        [Sums(3, 3, 3, 2, 4)],
    ),
    "a look belongs to the slot that it ends in": (
        [(100, [a]), (108, [a]), (111, [a]), (112, [a])],
        [Sums(8, 8, 8, 1, 2), Sums(4, 4, 4, 2, 4)],
    ),
    "slots without a look are left out": (
        [(100, [a]), (108, [a]), (133, [a])],
        [Sums(8, 8, 8, 1, 2), Sums(25, 25, 25, 1, 2)],
    ),
    "time without guests is no evidence": (
        [(100, []), (103, [a]), (105, [a]), (106, []), (109, [])],
        [Sums(2, 2, 2, 1, 2)],
    ),
}


@pytest.mark.parametrize(("looks", "expected"), SUMS.values(), ids=SUMS)
def test_who_counts_for_how_long(
    looks: list[tuple[float, list[Used]]], expected: list[Sums]
) -> None:
    found = [Sums(s.seconds, s.guests, s.weight, s.ran, s.waited) for s in slots(*looks)]
    assert found == expected


def test_pcpus_of_the_pool_count_as_they_are_at_the_look() -> None:
    loads = Loads(History(TENS))
    for now, cpus in ((100, 1), (102, 1), (106, 2), (109, 3)):
        loads.look(now, [a], {ZERO: PoolLoad(cpus, 0.5)})
    loads.close()
    (slot,) = loads.history.of(ZERO)
    assert (slot.cpus, slot.busy) == (2 * 1 + 4 * 2 + 3 * 3, 9.5)


def test_guests_that_are_not_in_a_pool_show_only_what_they_use() -> None:
    (slot,) = slots((100, [a]), (105, [a]), pools={})
    assert (slot.cpus, slot.busy, slot.ran, slot.weight) == (0, 0, 1, 5)


def test_a_guest_counts_in_the_cell_of_its_last_look() -> None:
    there = used("a", 3, 3, cell=ONE)
    looks = [(100.0, [a]), (104.0, [a]), (105.0, [there]), (107.0, [there])]
    assert [slot.ran for slot in slots(*looks)] == [1]
    assert [slot.ran for slot in slots(*looks, cell=ONE)] == [6]


WORST: Final[dict[str, tuple[list[tuple[float, list[Used]]], float, float]]] = {
    "of several guests the one that waited most for what it ran": (
        [(100, [a, b]), (108, [used("a", 4, 2), used("b", 1, 3)])],
        0.5,
        3.0,
    ),
    "a tenth of a second in ten is no waiting": (
        [(100, [a]), (108, [used("a", 0.01, 0.1)])],
        0.0013,
        0.0,
    ),
    "looks of one slot are one": (
        [(100, [a]), (104, [used("a", 4, 0)]), (108, [used("a", 0, 4)])],
        0.5,
        1.0,
    ),
    "one that never got to run waited as long as is told": (
        [(100, [a]), (108, [used("a", 0, 4)])],
        0.0,
        1000.0,
    ),
    "one that left is not forgotten": (
        [(100, [a, b]), (102, [a, used("b", 2, 8)]), (103, [a]), (108, [a])],
        1.0,
        4.0,
    ),
    "a moment is no rate": (
        [(100, [b]), (100.001, [used("b", 0.5, 0)])],
        0.5,
        0.0,
    ),
}


@pytest.mark.parametrize(("looks", "peak", "delay"), WORST.values(), ids=WORST)
def test_the_worst_guest_of_a_slot_is_remembered(
    looks: list[tuple[float, list[Used]]], peak: float, delay: float
) -> None:
    (slot,) = slots(*looks)
    assert slot.peak == pytest.approx(peak, abs=1e-4)
    assert slot.delay == pytest.approx(delay, abs=1e-4)


def test_a_look_tells_when_it_has_closed_slots() -> None:
    loads = Loads(History(TENS))
    told = [loads.look(now, [a], POOL) for now in (100, 105, 110, 111, 120, 140, 145)]
    assert told == [False, False, True, False, True, True, False]


def test_a_window_has_the_last_slots_of_a_cell_and_none_when_all_are_old() -> None:
    loads = Loads(History(TENS))
    for now in range(100, 300, 5):
        loads.look(now, [a], POOL)
    loads.close()
    assert [slot.number for slot in loads.history.of(ZERO)] == [26, 27, 28, 29]
    for now in range(300, 330, 5):
        loads.look(now, [], POOL)
    assert [slot.number for slot in loads.history.of(ZERO)] == [28, 29]
    for now in range(330, 360, 5):
        loads.look(now, [], POOL)
    assert loads.history.cells == {}


def test_a_restart_goes_on_where_the_last_one_ended_and_joins_what_is_of_one_slot() -> None:
    first = Loads(History(TENS))
    for now in (100, 105, 112, 113):
        first.look(now, [used("a", 1, 1)], POOL)
    first.close()
    second = Loads(first.history)
    assert not second.close()  # it has seen nothing yet
    for now in (116, 118, 121):
        second.look(now, [used("a", 1, 5)], POOL)
    second.close()
    found = [(s.number, s.seconds, s.ran, s.waited, s.delay) for s in second.history.of(ZERO)]
    assert found == [(10, 5, 1, 1, 1), (11, 10, 3, 7, 5), (12, 3, 1, 5, 5)]


FOUND: Final = st.lists(
    st.builds(
        Used,
        st.sampled_from("abcdefgh"),
        st.sampled_from("12"),
        st.sampled_from([ZERO, ONE]),
        st.sampled_from([0.5, 1.0, 2.0]),
        st.floats(0, 10),
        st.floats(0, 10),
    ),
    max_size=8,
    unique_by=lambda one: one.uuid,
)
LOOKS: Final = st.lists(st.tuples(st.floats(0, 30), FOUND), max_size=30)


@given(LOOKS, st.randoms(use_true_random=False))
def test_whatever_is_seen_memory_is_bounded_and_the_order_of_guests_is_no_matter(
    steps: list[tuple[float, list[Used]]],
    random: Any,  # noqa: ANN401
) -> None:
    one, other, now = Loads(History(TENS)), Loads(History(TENS)), 1000.0
    for elapsed, found in steps:
        now += elapsed
        one.look(now, found, POOL)
        other.look(now, random.sample(found, len(found)), POOL)
        here = {guest.uuid for guest in found}
        assert one._known.keys() == here
        rows = [uuid for tally in one._open.values() for uuid in tally.rows]
        assert len(rows) == len(set(rows))
        assert here >= set(rows)
        assert all(len(window) <= TENS.slots for window in one.history.cells.values())
    one.close()
    other.close()
    assert one.history.cells.keys() == other.history.cells.keys()
    for cell, window in one.history.cells.items():
        numbers = [slot.number for slot in window]
        assert numbers == sorted(set(numbers))
        for mine, its in zip(window, other.history.of(cell), strict=True):
            assert astuple(mine) == pytest.approx(astuple(its), abs=2e-4)


# --- as text -------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Draw any history of `TENS`."""
    sums = st.floats(0, 1e12)
    cells = draw(st.sets(st.integers(0, 1023).map(CellId), max_size=3))
    numbers = st.sets(st.integers(0, 10**9), max_size=TENS.slots).map(sorted)
    return History(
        TENS,
        {
            cell: tuple(Slot(n, *(draw(sums) for _ in range(9))) for n in draw(numbers))
            for cell in cells
        },
    )


@given(histories())
def test_what_was_written_comes_back(history: History) -> None:
    assert loadtext.decode(json.loads(loadtext.encode(history)), TENS) == history


def test_of_more_slots_than_a_window_has_the_last_come_back() -> None:
    six = {ZERO: tuple(Slot(number, *(1.0,) * 9) for number in range(6))}
    found = loadtext.decode(json.loads(loadtext.encode(History(TENS, six))), TENS)
    assert [slot.number for slot in found.of(ZERO)] == [2, 3, 4, 5]


GOOD: Final = History(
    TENS, {ZERO: (Slot(7, *(1.0,) * 9), Slot(8, *(2.0,) * 9)), ONE: (Slot(8, *(0.5,) * 9),)}
)


@st.composite
def damaged(draw: st.DrawFn) -> Any:  # noqa: ANN401 - JSON
    """Draw a document of which one value, anywhere, is any other."""
    document = {"top": json.loads(loadtext.encode(GOOD))}
    nodes: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:  # noqa: ANN401 - JSON
        keys: Any = ()
        if isinstance(value, dict):
            keys = value
        elif isinstance(value, list):
            keys = range(len(value))
        for key in keys:
            nodes.append((value, key))
            collect(value[key])

    collect(document)
    parent, key = draw(st.sampled_from(nodes))
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    parent[key] = draw(scalars | st.sampled_from([[], {}, [[]], 10**400, {"x": []}, {"0": [[]]}]))
    return document["top"]


@given(damaged())
def test_any_damage_is_refused_or_gives_a_history_that_can_be_written(document: Any) -> None:  # noqa: ANN401
    try:
        history = loadtext.decode(document, TENS)
    except HistoryError:
        return
    assert loadtext.decode(json.loads(loadtext.encode(history)), TENS) == history
    assert all(len(window) <= TENS.slots for window in history.cells.values())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["version"], 2),
        (["slot"], 300.0),
        (["cells", "0", 0, 0], 8),  # as the one after it
        (["cells", "0", 0, 0], 7.0),
        (["cells", "0", 0, 3], -1.0),
        (["cells", "0", 0, 3], float("nan")),
        (["cells", "0", 0, 3], float("inf")),
        (["cells", "0", 0, 3], True),
        (["cells", "0", 0, 3], "1"),
        (["cells", "0", 0], [7, 1.0]),
        (["cells"], {str(number): [] for number in range(1025)}),
    ],
    ids=str,
)
def test_what_is_no_history_is_refused(path: list[Any], value: object) -> None:
    document: Any = json.loads(loadtext.encode(GOOD))
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(HistoryError):
        loadtext.decode(document, TENS)
