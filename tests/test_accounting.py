"""What guests are billed, exactly, and what the bills never exceed."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings

from agent.accounting import Bill, BillingSettings, account
from agent.planner import State
from agent.policy import Policy
from agent.pool import OnShortage
from tests.anyworld import worlds
from tests.builders import cpus, guest, host, obedient, pool_settings, uuid_of
from tests.worlds import World

if TYPE_CHECKING:
    from agent.snapshot import Guest

TWO: Final = host(cells=2, cores=4, smt=1)
SIXTEENTH: Final = Fraction(1, 16)
EIGHTH: Final = Fraction(1, 8)


def bills(world: World, ratio: int = 16) -> tuple[Bill, ...]:
    settled = BillingSettings(cpu_overcommit_ratio=Fraction(ratio))
    return account(world.host, settled, world.plan(), world.guests)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        pytest.param(
            guest(1, pins=("1", "2"), emulator="3", memnode=[0]),
            [(0, 2, 0, EIGHTH)],
            id="claims count one each, the emulator share comes on top",
        ),
        pytest.param(
            guest(1, pins=("1", "2-3", "0-7"), policy=Policy.FLOAT),
            [(0, 1, 2 * SIXTEENTH, 0)],
            id="any other vCPU counts by the ratio, and a float guest is in no pool",
        ),
        pytest.param(
            guest(1, pins=("3", "5", "3-4", "4-7"), policy=Policy.FLOAT),
            [(0, 1, SIXTEENTH, 0), (1, 1, SIXTEENTH, 0)],
            id="a vCPU is billed in the cell of the lowest pCPU of its mask",
        ),
        pytest.param(
            guest(1, pins=("1",), cell=1, weight=Fraction(5, 2)),
            [(0, 1, 0, 0), (1, 0, 0, Fraction(5, 16))],
            id="the emulator share is billed in the pool's cell, by weight",
        ),
        pytest.param(
            guest(1, vcpu_cpuset="6-7", policy=Policy.FLOAT),
            [(1, 0, SIXTEENTH, 0)],
            id="the cpuset of vcpu is a mask",
        ),
        pytest.param(
            guest(1, policy=Policy.FLOAT), [(0, 0, SIXTEENTH, 0)], id="no mask is anywhere"
        ),
        pytest.param(
            guest(1, pins=("99",), policy=Policy.FLOAT), [(None, 1, 0, 0)], id="in no cell at all"
        ),
        pytest.param(guest(1, pins=("1",), running=False), [], id="who does not run owes nothing"),
    ],
)
def test_one_guest(
    one: Guest, expected: list[tuple[int | None, Fraction, Fraction, Fraction]]
) -> None:
    found = bills(World(TWO, (one,)))
    assert [(b.cell, b.dedicated, b.shared, b.emulator) for b in found] == expected
    assert {bill.uuid for bill in found} <= {uuid_of(1)}
    assert all(bill.total == bill.dedicated + bill.shared + bill.emulator for bill in found)


def test_each_cell_has_its_own_ratio_and_bills_are_sorted() -> None:
    crowd = (guest(2, cell=1), guest(1, cell=0), guest(3, cell=0, pins=("5",)))
    by_cell = replace(
        pool_settings(ratio=4), cells={TWO.cells[1].id: pool_settings(ratio=2).default}
    )
    found = bills(World(TWO, crowd, by_cell))
    assert [(bill.uuid, bill.cell, bill.emulator) for bill in found] == [
        (uuid_of(1), 0, Fraction(1, 4)),
        (uuid_of(2), 0, 0),
        (uuid_of(2), 1, Fraction(1, 2)),
        (uuid_of(3), 0, Fraction(1, 4)),
        (uuid_of(3), 1, 0),
    ]


def test_the_ratio_of_vcpus_is_that_of_the_billing() -> None:
    world = World(TWO, (guest(1, pins=("0-3",), policy=Policy.FLOAT),))
    assert [bill.shared for bill in bills(world, ratio=3)] == [Fraction(1, 3)]


def test_a_remote_guest_is_billed_where_the_pool_is() -> None:
    spill = pool_settings(ratio=1, on_shortage=OnShortage.SPILL, cpus="0,4-7")
    crowd = tuple(guest(n, memnode=[0], pins=("3",)) for n in (1, 2))
    assert [
        (b.uuid, b.cell, b.emulator) for b in bills(World(TWO, crowd, spill)) if b.emulator
    ] == [
        (uuid_of(1), 0, Fraction(1)),
        (uuid_of(2), 1, Fraction(1)),
    ]


def test_who_is_in_no_pool_pays_for_none() -> None:
    left = guest(1, emulator="3", pins=("0",), kernel=obedient(cpus("3"), cpus("3")))
    refugee = guest(2, emulator="0", original="3", pins=("1",))
    world = World(TWO, (left, refugee), pool_settings(reserved_cpus="0-7"))
    assert [one.evacuated for one in world.plan().guests] == [False, True]
    assert [bill.emulator for bill in bills(world)] == [0, 0]


@settings(max_examples=400)
@given(worlds())
def test_emulator_shares_never_exceed_the_pool_while_nothing_is_short(world: World) -> None:
    decided = world.plan()
    found = bills(world)
    for cell in decided.cells:
        shares = sum(bill.emulator for bill in found if bill.cell == cell.id)
        if not cell.shortage:
            assert shares <= len(cell.emulator_cpus)


@settings(max_examples=400)
@given(worlds())
def test_claims_and_pool_never_exceed_the_cell_while_nobody_collides(world: World) -> None:
    decided = world.plan()
    if any(guest.state is State.COLLISION for guest in decided.guests):
        return
    for cell, planned in zip(world.host.cells, decided.cells, strict=True):
        claimed = decided.claimed & cell.cpus
        assert len(claimed) + len(planned.emulator_cpus) <= len(cell.cpus)
        assert planned.claimed == claimed


@settings(max_examples=200)
@given(worlds())
def test_every_vcpu_and_every_pooled_guest_is_billed_once(world: World) -> None:
    decided = world.plan()
    found = bills(world)
    active = [one for one in world.guests if one.active]
    claims = sum(vcpu.claim is not None for one in active for vcpu in one.domain.vcpus)
    vcpus = sum(len(one.domain.vcpus) for one in active)
    assert sum(bill.dedicated for bill in found) == claims
    assert sum(bill.shared for bill in found) == (vcpus - claims) * SIXTEENTH
    ratios = {cell.id: cell.ratio for cell in decided.cells}
    pooled = [g for g in decided.guests if g.emulator_pcpus is not None and not g.evacuated]
    assert sum(bill.emulator for bill in found) == sum(
        guest.weight / ratios[guest.cell] for guest in pooled if guest.cell is not None
    )
    assert len({(bill.uuid, bill.cell) for bill in found}) == len(found)
    assert all(bill.total for bill in found)
