"""Whole plans: what is remembered, Nova's guests, and what holds in all worlds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.domainxml import parse
from agent.planner import State
from agent.policy import Policy
from agent.pool import (
    NOTHING,
    CellMemory,
    GuestMemory,
    Memory,
    OnShortage,
    Placement,
    PoolSource,
    need,
)
from tests.anyworld import worlds
from tests.builders import (
    EIGHT,
    TWO,
    cpus,
    fleet,
    guest,
    host,
    pool_settings,
    resolved,
    uuid_of,
)
from tests.definitions import NOVA_ISOLATE, domain_xml, nova_xml
from tests.worlds import World, pools, states

if TYPE_CHECKING:
    from random import Random

    from agent.snapshot import Guest


# memory


class TestMemoryLost:
    """Pools and homes are found again in live pins."""

    def crowd(self) -> World:
        settings = pool_settings(ratio=1)
        started = (
            guest(1, emulator="6", original="3"),
            guest(2, emulator="7", original="3", policy=Policy.FLOAT),
            guest(3, emulator="3"),
            guest(4, emulator="4-5", original="6"),
        )
        return World(EIGHT, started, settings)

    def test_a_managed_guests_pin_that_is_not_its_original_was_ours(self) -> None:
        decided = self.crowd().plan()
        assert str(decided.cells[0].pool_now) == "4-6"
        assert pools(decided) == {0: "4-6"}

    def test_what_lies_beyond_the_candidates_was_not(self) -> None:
        world = replace(self.crowd(), settings=pool_settings(cpus="0-5"))
        assert str(world.plan().cells[0].pool_now) == "4-5"

    def test_what_lies_in_two_cells_was_not(self) -> None:
        world = World(TWO, (guest(1, emulator="7-8", original="3"),))
        assert {str(cell.pool_now) for cell in world.plan().cells} == {""}

    def test_homes_too(self) -> None:
        settings = pool_settings()
        crowd = (guest(1, emulator="9", original="3"), guest(2, emulator="10", original="4"))
        decided = World(TWO, crowd, settings).plan()
        assert [one.cell for one in decided.guests] == [1, 1]
        assert [one.natural for one in decided.memory.guests.values()] == [1, 1]

    def test_a_remote_guest_is_remote_again(self) -> None:
        settings = pool_settings(ratio=1, cpus="0,8-15", on_shortage=OnShortage.SPILL)
        crowd = (guest(1, memnode=[0]), guest(2, memnode=[0], emulator="8", original="3"))
        assert states(World(TWO, crowd, settings).plan())[2] == State.REMOTE

    def test_what_is_remembered_is_not_asked_again(self) -> None:
        world = replace(self.crowd(), memory=Memory(cells={EIGHT.cells[0].id: CellMemory()}))
        assert str(world.plan().cells[0].pool_now) == ""

    def test_what_was_known_of_a_guest_is_kept(self) -> None:
        one = self.crowd().find(1)
        known = GuestMemory(one.start, replace(one.original, emulator=cpus("2")), natural=None)
        world = replace(self.crowd(), memory=Memory(guests={one.uuid: known}))
        remembered = world.plan().memory.guests[one.uuid]
        assert (remembered.original, str(remembered.placed)) == (known.original, "6")


def test_memory_of_who_is_gone_is_dropped() -> None:
    world = World(EIGHT, fleet(2)).settle()
    assert world.without(1).plan().memory.guests.keys() == {uuid_of(2)}


def test_memory_of_who_stopped_is_dropped() -> None:
    world = World(EIGHT, fleet(1)).settle()
    stopped = replace(guest(1, running=False), start=world.find(1).start)
    assert world.changed(stopped).plan().memory.guests == {}


def test_memory_of_who_is_managed_no_more_is_kept_until_it_is_released() -> None:
    world = World(EIGHT, fleet(1, emulator="6")).settle()
    one = world.find(1)
    ignored = replace(one, verdict=replace(one.verdict, policy=Policy.IGNORE))
    remembered = world.changed(ignored).plan().memory.guests[one.uuid]
    assert str(remembered.placed) == "0"


# Nova


class TestNova:
    """Guests as Nova 2026.1 writes them."""

    HOST: Final = host(cells=2, cores=8, smt=1)

    def guests(self) -> tuple[Guest, ...]:
        second = NOVA_ISOLATE.replace("'6'", "'3'").replace("'4'", "'1'").replace("'5'", "'2'")
        other = NOVA_ISOLATE.replace("'6'", "'10'").replace("'4'", "'8'").replace("'5'", "'9'")
        other = other.replace("nodeset='0'", "nodeset='1'")
        texts = NOVA_ISOLATE, second, other
        return resolved(
            parse(domain_xml(text, number=n, running_as=n, metadata=nova_xml("isolate")))
            for n, text in enumerate(texts, 1)
        )

    def test_two_isolate_guests_share_one_of_the_pcpus_set_aside(self) -> None:
        world = World(self.HOST, self.guests())
        decided = world.plan()
        assert {cell.source for cell in decided.cells} == {PoolSource.RESERVED}
        assert [str(cell.candidates) for cell in decided.cells] == ["3,6", "10"]
        assert pools(decided) == {0: "3", 1: "10"}
        assert [one.source for one in decided.guests] == ["nova"] * 3
        steps = world.steps(decided)
        assert [(step.uuid, step.kind, str(step.was), str(step.to)) for step in steps] == [
            (uuid_of(1), "emulator", "6", "3"),
            (uuid_of(1), "iothread", "6", "3"),
        ]

    def test_a_hard_reboot_of_the_owner_moves_nobody(self) -> None:
        world = World(self.HOST, self.guests()).settle()
        one, two, other = world.guests
        assert {str(one.domain.emulator), str(two.domain.emulator)} == {"3"}
        stopped = world.having(one, other).settle()
        assert stopped.find(1) == one, "3 is a candidate without its owner"
        back = replace(self.guests()[1], start="another", age=99)
        rebooted = stopped.later(29).having(one, other, back).settle()
        assert rebooted.find(1) == one
        assert str(rebooted.find(2).domain.emulator) == "3"

    def test_when_the_owner_stays_away_the_pcpu_is_given_back(self) -> None:
        world = World(self.HOST, self.guests()).settle()
        away = world.having(world.guests[0], world.guests[2]).settle()
        assert away.plan().deadline == world.now + 30
        gone = away.later(30).settle()
        assert str(gone.find(1).domain.emulator) == "6"

    def test_a_vcpu_claim_on_it_takes_it_at_once(self) -> None:
        world = World(self.HOST, self.guests()).settle()
        claim = guest(7, policy=Policy.FLOAT, pins=("3",), nova=True)
        taken = world.having(world.guests[0], world.guests[2], claim).settle()
        assert str(taken.find(1).domain.emulator) == "6"


# in all worlds


@settings(max_examples=400)
@given(worlds())
def test_no_target_is_empty_off_line_claimed_or_out_of_bounds(world: World) -> None:
    decided = world.plan()
    parents = {one.uuid: one.kernel.parent for one in world.guests if one.kernel}
    for planned in decided.guests:
        if planned.emulator_pcpus is None:
            assert planned.state in {None, State.LEFT, State.COLLISION, State.BUSY}
            continue
        parent = parents.get(planned.uuid)
        assert planned.emulator_pcpus
        assert planned.emulator_pcpus <= world.host.online
        assert planned.emulator_pcpus.isdisjoint(decided.claimed)
        assert world.partition is None or planned.emulator_pcpus <= world.partition
        assert parent is None or planned.emulator_pcpus <= parent


@settings(max_examples=400)
@given(worlds())
def test_pools_are_of_their_cells_and_large_enough_or_short(world: World) -> None:
    decided = world.plan()
    for cell, planned in zip(world.host.cells, decided.cells, strict=True):
        own = world.settings.of(cell.id)
        here = [one for one in decided.guests if one.cell == cell.id]
        assert planned.emulator_cpus <= planned.candidates <= cell.cpus
        assert planned.candidates.isdisjoint(decided.claimed | own.reserved_cpus)
        assert planned.guests == len(here)
        assert planned.weight == sum(one.weight for one in here)
        assert planned.need == need(own, planned.weight)
        assert len(planned.emulator_cpus) == min(planned.need, len(planned.candidates)) or (
            world.damped and own.shrink_delay
        )
        if own.on_shortage is not OnShortage.SPILL and not any(
            one.state is State.REMOTE for one in here
        ):
            lacking = -(-planned.weight // own.ratio) - len(planned.emulator_cpus)
            assert planned.shortage == max(0, lacking)
        assert planned.placement is not Placement.AUTO
        assert planned.source is not PoolSource.AUTO


@settings(max_examples=400)
@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_of_input_is_irrelevant(world: World, random: Any) -> None:  # noqa: ANN401
    shuffled = list(world.guests)
    random.shuffle(shuffled)
    one, other = world.plan(), world.having(*shuffled).plan()
    assert one == other
    assert world.steps(one) == world.having(*shuffled).steps(other)


@settings(max_examples=400)
@given(worlds())
def test_a_plan_that_was_carried_out_has_nothing_left_to_do(world: World) -> None:
    settled = world.settle()
    decided = settled.plan()
    assert settled.steps(decided) == ()
    again = settled.settle()
    assert again.plan() == decided
    assert again.memory == settled.memory


@settings(max_examples=500)
@given(worlds(), st.randoms(use_true_random=True))
def test_time_alone_changes_no_plan_without_a_deadline(world: World, random: Random) -> None:
    """A decision is taken again for as long as nothing else is asked (agent/decision.py)."""
    busy = replace(world, damped=True).settle()
    quiet = busy.having(*(one for one in busy.guests if random.random() < 1 / 2))
    for one in (busy, quiet, quiet.settle()):
        decided = one.plan()
        if decided.deadline is None:
            assert one.later(random.choice((0.5, 100.0, 1e6))).plan() == decided


@settings(max_examples=200)
@given(worlds())
def test_a_plan_from_nothing_and_from_its_own_memory_agree_on_pools(world: World) -> None:
    first = world.plan()
    undone = replace(world, memory=first.memory)
    assert pools(undone.plan()) == pools(first)
    assert undone.plan().guests == first.guests


def test_everything_is_told_about_an_answer() -> None:
    one = replace(guest(1, emulator="6", name="a\nb"), busy=True)
    decided = World(EIGHT, (one,), memory=NOTHING).plan()
    planned = decided.guests[0]
    assert (planned.name, planned.original) == ("a\nb", one.original)
    assert planned.reason == "1 guest of weight 1 on 0 at ratio 8 in cell 0"
