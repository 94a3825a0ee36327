"""Worlds of any kind, for the properties that hold in all of them.

They are drawn by a seeded `Random`, at a millisecond each; as strategies of hypothesis one would
cost fifty. What a failure prints is the whole world.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

from agent.cpuset import CpuSet
from agent.policy import Policy, shared_cpus
from agent.pool import CellSettings, OnShortage, Placement, PoolSettings, PoolSource, Smt
from tests.builders import guest, host, obedient
from tests.worlds import World

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from hypothesis.strategies import DrawFn

    from agent.snapshot import Guest

WEIGHTS: Final = [Fraction(1), Fraction(1), Fraction(2), Fraction(1, 2), Fraction(7, 3)]
RATIOS: Final = [Fraction(1), Fraction(2), Fraction(5, 2), Fraction(8), Fraction(1, 2)]
POLICIES: Final = [*[Policy.ISOLATE] * 5, Policy.SHARE, Policy.FLOAT, Policy.IGNORE]
NOTHING: Final = CpuSet()


def consistent(guests: Iterable[Guest]) -> tuple[Guest, ...]:
    """Return the guests with the `exclusive` that their originals make true."""
    found = tuple(guests)
    shared = shared_cpus(one.original.emulator for one in found)
    return tuple(
        replace(one, verdict=replace(one.verdict, exclusive=_alone(one, shared))) for one in found
    )


def _alone(one: Guest, shared: CpuSet) -> bool:
    original = one.original.emulator
    return original is not None and original.only() is not None and original.isdisjoint(shared)


def some(random: Random, whole: CpuSet, least: int = 0) -> CpuSet:
    """Return a set within `whole`, of `least` pCPUs or more."""
    ids = list(whole)
    return CpuSet(random.sample(ids, random.randint(least, len(ids))))


def maybe(random: Random, value: Any, chance: float = 0.5) -> Any:  # noqa: ANN401 - any value
    """Return `value` or None."""
    return value if random.random() < chance else None


def draw_cell_settings(random: Random, present: CpuSet) -> CellSettings:
    """Return settings as a configuration might hold them."""
    ratio = random.choice(RATIOS)
    placements = [Placement.AUTO, Placement.SHARED] + [Placement.SINGLE] * (ratio >= 1)
    low = random.randint(1, 2)
    named = maybe(random, some(random, present, 1)) or NOTHING
    return CellSettings(
        emulator_overcommit_ratio=ratio,
        source=random.choice(list(PoolSource)),
        cpus=named,
        reserved_cpus=(maybe(random, some(random, present), 0.3) or NOTHING) - named,
        placement=random.choice(placements),
        smt=random.choice(list(Smt)),
        on_shortage=random.choice(list(OnShortage)),
        min_cpus=low,
        max_cpus=random.choice([0, 0, low, low + 1]),
        shrink_delay=random.choice([0.0, 30.0, 30.0]),
    )


def draw_guest(random: Random, number: int, present: CpuSet, cells: int) -> Guest:
    """Return guest `number` of a host with `present` pCPUs in `cells` cells."""

    def mask() -> str:
        one = random.random() < 0.6
        return str(random.choice(list(present)) if one else some(random, present, 1))

    pin = maybe(random, mask(), 0.8)
    made = guest(
        number,
        policy=random.choice(POLICIES),
        weight=random.choice(WEIGHTS),
        cell=random.choice([None, None, None, 0, 7]),
        pins=[mask() for _ in range(random.choice([0, 0, 1, 2]))],
        emulator=pin,
        iothreads=random.choice([[], [], [pin], [None, pin]]),
        memnode=maybe(random, random.sample(range(cells + 1), random.randint(1, min(2, cells)))),
        realtime=random.random() < 0.3,
        age=random.randint(1, 4),
        nova=random.random() < 0.1,
        running=random.random() < 0.8,
        busy=random.random() < 0.1,
    )
    if not made.active or random.random() < 0.5:
        return made
    parent = maybe(random, some(random, present), 0.3)
    return replace(made, kernel=obedient(made.domain.resting(present), parent))


def draw_world(random: Random, count: int) -> World:
    """Return a host of up to 12 pCPUs with `count` guests, as they are seen first."""
    cells, smt = random.randint(1, 3), random.randint(1, 2)
    cores = random.randint(1, 4 // smt)
    whole = host(cells=cells, cores=cores, smt=smt).online
    off = (maybe(random, some(random, whole), 0.3) or NOTHING) - CpuSet.of(0)
    isolated = maybe(random, some(random, whole), 0.3) or NOTHING
    shown = host(cells=cells, cores=cores, smt=smt, offline=str(off), isolated=str(isolated))
    own = maybe(random, draw_cell_settings(random, whole), 0.3)
    return World(
        shown,
        consistent(draw_guest(random, number, whole, cells) for number in range(1, count + 1)),
        PoolSettings(
            draw_cell_settings(random, whole),
            {shown.cells[-1].id: own} if own else {},
            count_inactive=random.random() < 0.7,
            iothreads=random.random() < 0.7,
        ),
        manage=frozenset(random.choice([{Policy.ISOLATE}, {Policy.ISOLATE, Policy.SHARE}])),
        partition=maybe(random, some(random, whole), 0.2),
        damped=random.random() < 0.5,
    )


@st.composite
def worlds(draw: DrawFn) -> World:
    """Return a world of up to eight guests."""
    count = draw(st.integers(0, 8))
    return draw_world(draw(st.randoms(use_true_random=True)), count)
