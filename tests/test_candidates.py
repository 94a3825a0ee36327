"""Which pCPUs a pool may take: every source, every exclusion."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.candidates import GRACE, Candidates, discover
from agent.cpuset import CpuSet
from agent.groups import group
from agent.policy import Policy
from agent.pool import GuestMemory, Memory, PoolSettings, PoolSource, Smt
from tests.builders import (
    cell_settings,
    cpus,
    guest,
    host,
    offlined,
    pool_settings,
    relabelled,
    repinned,
    uuid_of,
)
from tests.worlds import World

if TYPE_CHECKING:
    from agent.snapshot import Guest

EIGHT: Final = host(cells=1, cores=4, smt=2)


def found(world: World) -> Candidates:
    question = world.question
    return discover(question, question.managed(), group(question.host))


def candidates(*guests: Guest, settings: PoolSettings | None = None, isolated: str = "") -> str:
    one = replace(EIGHT, isolated=cpus(isolated))
    return str(found(World(one, guests, settings or PoolSettings())).cells[one.cells[0].id])


CLAIMS: Final = guest(1, pins=("4", "5"), emulator="6")


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        pytest.param(pool_settings(), "0-3,6-7", id="free: what nobody claims"),
        pytest.param(pool_settings(cpus="2-5"), "2-3", id="in pool.cpus"),
        pytest.param(pool_settings(reserved_cpus="0-1"), "2-3,6-7", id="not reserved"),
        pytest.param(pool_settings(smt=Smt.STRICT), "0-3,6-7", id="strict: 4 and 5 are one core"),
        pytest.param(pool_settings(source=PoolSource.RESERVED), "6", id="reserved: set aside"),
        pytest.param(
            pool_settings(source=PoolSource.RESERVED, reserved_cpus="6"),
            "",
            id="reserved: but not what the operator keeps",
        ),
        pytest.param(pool_settings(source=PoolSource.SET, cpus="0-1,4"), "0-1", id="set"),
        pytest.param(pool_settings(source=PoolSource.SET), "", id="a set of nothing is nothing"),
        pytest.param(
            pool_settings({0: cell_settings(cpus="7")}, cpus="0"), "7", id="the cell's own keys"
        ),
    ],
)
def test_what_is_left_beside_one_guest(settings: PoolSettings, left: str) -> None:
    assert candidates(CLAIMS, settings=settings) == left


def test_strict_keeps_off_the_cores_of_claims() -> None:
    one = guest(1, pins=("4",), emulator="6")
    assert candidates(one, settings=pool_settings(smt=Smt.STRICT)) == "0-3,6-7"


def test_only_online_pcpus_of_the_cell_and_of_the_partition() -> None:
    two = host(cells=2, cores=2, smt=2, offline="1,7")
    world = World(two, partition=cpus("0-5"))
    assert {int(c): str(s) for c, s in found(world).cells.items()} == {0: "0,2-3", 1: "4-5"}


@pytest.mark.parametrize(
    ("keys", "left"),
    [
        pytest.param({}, "0-3", id="free leaves isolated pCPUs alone"),
        pytest.param({"cpus": "2-5"}, "2-5", id="unless pool.cpus names them"),
        pytest.param({"source": PoolSource.SET, "cpus": "3-4"}, "3-4", id="set allows them"),
    ],
)
def test_kernel_isolated_pcpus(keys: dict[str, Any], left: str) -> None:
    assert candidates(settings=pool_settings(**keys), isolated="4-7") == left


def test_reserved_takes_isolated_pcpus() -> None:
    settings = pool_settings(source=PoolSource.RESERVED)
    assert candidates(CLAIMS, settings=settings, isolated="4-7") == "6"


@pytest.mark.parametrize(
    ("stopped", "count_inactive", "left"),
    [
        pytest.param(False, True, "0-3,6-7", id="of a running guest"),
        pytest.param(False, False, "0-3,6-7", id="of a running guest in any case"),
        pytest.param(True, True, "0-3,6-7", id="of a stopped guest: control planes keep them"),
        pytest.param(True, False, "0-7", id="of a stopped guest, not counted"),
    ],
)
def test_claims(*, stopped: bool, count_inactive: bool, left: str) -> None:
    one = guest(1, pins=("4", "5", "0-7"), running=not stopped, policy=Policy.IGNORE)
    assert candidates(one, settings=pool_settings(count_inactive=count_inactive)) == left


def test_claims_of_real_time_vcpus_are_told_apart() -> None:
    world = World(EIGHT, (guest(1, pins=("4",)), guest(2, pins=("6",), realtime=True)))
    claims = found(world).claims
    assert (str(claims.all), str(claims.realtime)) == ("4,6", "6")


@pytest.mark.parametrize(
    ("other", "left"),
    [
        pytest.param(
            guest(2, policy=Policy.SHARE, emulator="2"), "0-1,3-7", id="its emulator pin alone"
        ),
        pytest.param(
            guest(2, policy=Policy.IGNORE, iothreads=["3", "4-5"]), "0-2,4-7", id="its iothread's"
        ),
        pytest.param(guest(2, policy=Policy.SHARE, emulator="2-3"), "0-7", id="several: not alone"),
        pytest.param(guest(2, policy=Policy.ISOLATE, emulator="2"), "0-7", id="a managed guest's"),
        pytest.param(
            guest(2, policy=Policy.SHARE, emulator="2", running=False), "0-1,3-7", id="stopped"
        ),
        pytest.param(
            guest(2, policy=Policy.ISOLATE, emulator="2", running=False),
            "0-7",
            id="stopped, but of a policy that is managed",
        ),
    ],
)
def test_free_keeps_off_pcpus_that_unmanaged_guests_have_to_themselves(
    other: Guest, left: str
) -> None:
    assert candidates(other) == left


def test_stopped_guests_keep_nothing_to_themselves_when_they_do_not_count() -> None:
    other = guest(2, policy=Policy.SHARE, emulator="2", running=False)
    assert candidates(other, settings=pool_settings(count_inactive=False)) == "0-7"


def test_the_pin_that_we_gave_a_guest_which_is_managed_no_more_is_not_its_own() -> None:
    six = pool_settings(cpus="6-7")
    world = World(EIGHT, (guest(1, emulator="6"), guest(2, emulator="7")), six).settle()
    moved = world.find(2)
    assert str(moved.domain.emulator) == "6"
    ignored = replace(moved, verdict=replace(moved.verdict, policy=Policy.IGNORE))
    world = world.changed(ignored)
    assert str(found(world).cells[EIGHT.cells[0].id]) == "6", "7 is its own again, 6 is ours"
    foreign = replace(world, memory=replace(world.memory, guests={}))
    assert str(found(foreign).cells[EIGHT.cells[0].id]) == "7"


def test_a_guest_to_be_released_has_to_itself_what_it_will_be_given() -> None:
    """Of two pCPUs that it began with one is off line: the pool must not move again after it."""
    six = pool_settings(cpus="0,6-7")
    world = World(EIGHT, (guest(1, emulator="6"), guest(2, emulator="0,2")), six).settle()
    moved = world.find(2)
    ignored = replace(moved, verdict=replace(moved.verdict, policy=Policy.IGNORE))
    world = replace(world.changed(ignored), host=offlined(EIGHT, cpus("2")))
    before = found(world).cells
    plan = world.plan()
    released = world.carry_out(plan, world.steps(plan))
    assert str(released.find(2).domain.emulator) == "0"
    assert found(released).cells == before == {EIGHT.cells[0].id: cpus("6-7")}


def test_an_iothread_that_a_release_leaves_where_it_is_keeps_its_pcpu_to_itself() -> None:
    one = guest(1, emulator="2-3", original="4-5", iothreads=["1"])
    known = GuestMemory(one.start, replace(one.original, iothreads=()), placed=cpus("2-3"))
    ignored = relabelled(replace(one, original=known.original))
    world = World(EIGHT, (ignored,), memory=Memory(guests={one.uuid: known}))
    assert candidates_of(world) == candidates_of(world.settle()) == "0,2-7"


def candidates_of(world: World) -> str:
    return str(found(world).cells[EIGHT.cells[0].id])


@pytest.mark.parametrize(
    ("guests", "source"),
    [
        pytest.param((), PoolSource.FREE, id="auto is free"),
        pytest.param((guest(1, nova=True),), PoolSource.RESERVED, id="and reserved under Nova"),
        pytest.param(
            (guest(1), guest(2, nova=True, running=False, policy=Policy.IGNORE)),
            PoolSource.RESERVED,
            id="if only one domain is Nova's, and stopped",
        ),
    ],
)
def test_auto(guests: tuple[Guest, ...], source: PoolSource) -> None:
    assert set(found(World(EIGHT, guests)).sources.values()) == {source}


def test_free_under_nova_takes_nothing_unless_pool_cpus_is_given_and_says_so() -> None:
    guests = (guest(1, nova=True, emulator="6"),)
    settings = pool_settings(
        {1: cell_settings(cpus="8-9", source=PoolSource.FREE)}, source=PoolSource.FREE
    )
    two = host(cells=2, cores=4, smt=2)
    told = found(World(two, guests, settings))
    assert {int(cell): str(left) for cell, left in told.cells.items()} == {0: "", 1: "8-9"}
    assert told.hands_off == {0}
    assert [(one.guest, one.field) for one in told.warnings] == [(None, "pool source of cell 0")]


def test_a_set_keeps_off_pcpus_that_unmanaged_guests_have_to_themselves() -> None:
    other = guest(2, policy=Policy.SHARE, emulator="2")
    assert candidates(other, settings=pool_settings(source=PoolSource.SET, cpus="1-3")) == "1,3"


def test_a_claim_inside_a_set_is_the_operators_error() -> None:
    settings = pool_settings(source=PoolSource.SET, cpus="3-5")
    told = found(World(EIGHT, (CLAIMS,), settings))
    assert [(one.guest, one.field) for one in told.warnings] == [(None, "pool cpus of cell 0")]
    assert "4-5" in told.warnings[0].text
    free = found(World(EIGHT, (CLAIMS,), pool_settings(cpus="3-5")))
    assert free.warnings == ()


RESERVED: Final = pool_settings(source=PoolSource.RESERVED)


@pytest.mark.parametrize(
    ("one", "contributes"),
    [
        pytest.param(guest(1, emulator="6"), "6", id="one pCPU of its own"),
        pytest.param(guest(1, emulator="6", policy=Policy.SHARE), "", id="share"),
        pytest.param(guest(1, emulator="5-6"), "", id="two"),
        pytest.param(guest(1, emulator="6", exclusive=False), "", id="another's as well"),
        pytest.param(guest(1), "", id="none"),
        pytest.param(
            guest(1, emulator="2", original="6"), "6", id="the original, not the pin of now"
        ),
    ],
)
def test_what_a_guest_sets_aside(one: Guest, contributes: str) -> None:
    manage = frozenset({Policy.ISOLATE, Policy.SHARE})
    told = found(World(EIGHT, (one,), RESERVED, manage=manage))
    assert str(told.cells[EIGHT.cells[0].id]) == contributes
    assert [(w.guest, w.field) for w in told.warnings] == (
        [] if contributes else [("guest-1", "emulatorpin")]
    )


def test_who_is_not_managed_sets_nothing_aside_and_is_not_warned_about() -> None:
    others = (
        guest(1, emulator="6", policy=Policy.FLOAT),
        guest(2, emulator="7", running=False),
    )
    told = found(World(EIGHT, others, RESERVED))
    assert (told.cells[EIGHT.cells[0].id], told.set_aside, told.warnings) == (CpuSet(), (), ())


def test_free_warns_of_nobody_who_sets_nothing_aside() -> None:
    assert found(World(EIGHT, (guest(1),))).warnings == ()


class TestGrace:
    """A pCPU whose owner stopped stays for 30 s, so that a hard reboot moves nobody."""

    def running(self) -> World:
        return World(EIGHT, (guest(1, emulator="6"), guest(2, emulator="7")), RESERVED).settle()

    def left(self, world: World) -> str:
        return str(found(world).cells[EIGHT.cells[0].id])

    def test_gone(self) -> None:
        stopped = self.running().without(2).settle()
        assert self.left(stopped.later(GRACE - 0.1)) == "6-7"
        assert self.left(stopped.later(GRACE)) == "6"

    def test_defined_but_stopped(self) -> None:
        world = self.running().changed(guest(2, emulator="7", running=False)).settle()
        assert self.left(world.later(GRACE - 0.1)) == "6-7"
        assert self.left(world.later(GRACE)) == "6"

    def test_it_runs_from_the_stop_and_not_from_the_last_look(self) -> None:
        world = self.running().later(500).settle().without(2).settle()
        for _ in range(4):
            world = world.later(9).settle()
        assert self.left(world) == "6"

    def test_claimed(self) -> None:
        world = self.running().without(2)
        other = guest(3, pins=("7",), policy=Policy.FLOAT)
        assert self.left(world.having(*world.guests, other)) == "6"

    def test_off_line(self) -> None:
        world = replace(self.running().without(2), host=host(cores=4, offline="7"))
        assert self.left(world) == "6"

    def test_in_another_guests_original(self) -> None:
        world = self.running().without(2)
        other = guest(3, emulator="0-7", policy=Policy.FLOAT)
        assert self.left(world.having(*world.guests, other)) == "6"

    def test_back(self) -> None:
        world = self.running().without(2).settle().later(20)
        back = replace(guest(2, emulator="7"), start="another", age=99)
        world = world.having(*world.guests, back).settle()
        assert self.left(world.later(1000)) == "6-7"
        again = world.later(1000).without(2).settle()
        assert self.left(again.later(GRACE - 0.1)) == "6-7", "each stop has its own 30 s"

    def test_its_owner_runs_but_sets_nothing_aside_any_more(self) -> None:
        world = self.running()
        one = world.find(2)
        relabelled = replace(one, verdict=replace(one.verdict, policy=Policy.FLOAT))
        assert self.left(world.changed(relabelled)) == "6"


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.fractions(Fraction(1, 100), 1)), min_size=1, max_size=8
    ),
    st.fractions(1, 16),
)
def test_with_a_ratio_of_one_or_more_reserved_always_has_enough(
    weights: list[tuple[int, Fraction]], ratio: Fraction
) -> None:
    two = host(cells=2, cores=4, smt=2)
    guests = tuple(
        guest(n + 1, emulator=str(8 * cell + n), memnode=[cell], weight=weight)
        for n, (cell, weight) in enumerate(weights)
    )
    decided = World(two, guests, pool_settings(source=PoolSource.RESERVED, ratio=ratio)).plan()
    for cell in decided.cells:
        assert cell.need <= len(cell.candidates)
        assert cell.shortage == 0


def test_a_pin_that_moved_changes_nothing_of_what_is_set_aside() -> None:
    one = repinned(guest(1, emulator="6"), cpus("2"))
    told = found(World(EIGHT, (one,), RESERVED))
    assert [(aside.cpu, aside.owner) for aside in told.set_aside] == [(6, uuid_of(1))]
