"""Who is let in at the ratio, and which pins of a guest from elsewhere are replaced by what."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent import admission, domainxml, incoming, planner
from agent.admission import Footing, Reservation
from agent.candidates import untouched
from agent.domainxml import Pins
from agent.policy import GuestSettings, Policy, Rule
from agent.pool import OnShortage, PoolSource
from tests.anyworld import draw_world
from tests.builders import EIGHT, TWO, cpus, domain, fleet, guest, pool_settings, resolved
from tests.definitions import domain_xml, own_xml
from tests.effort import examples
from tests.worlds import World

if TYPE_CHECKING:
    from random import Random

    from agent.admission import Arrival
    from agent.cpuset import CpuSet
    from agent.domainxml import Domain
    from agent.pool import PoolSettings
    from agent.snapshot import Guest
    from agent.topology import Host

ALL: Final = GuestSettings(default_policy=Policy.ISOLATE)
ONE: Final = pool_settings(ratio=2, source=PoolSource.FREE, max_cpus=1)
"""A pool of one pCPU, for two guests."""


def arrive(
    newcomer: Domain,
    guests: tuple[Guest, ...] = (),
    pool: PoolSettings = ONE,
    host: Host = EIGHT,
    *,
    policies: GuestSettings = ALL,
    ahead: tuple[Guest, ...] = (),
    incoming: bool = False,
) -> Arrival:
    question = World(host, guests, pool).question
    return admission.arrive(Footing(question, policies), newcomer, ahead, incoming=incoming)


def fits(newcomer: Domain, *given: object, **named: object) -> bool:
    return admission.refusal(arrive(newcomer, *given, **named)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("newcomer", "guests", "pool", "wanted"),
    [
        pytest.param(domain(9), fleet(1), ONE, True, id="the last place is given"),
        pytest.param(domain(9), fleet(2), ONE, False, id="beyond the ratio is no place"),
        pytest.param(
            domain(9),
            fleet(2),
            pool_settings(ratio=2, source=PoolSource.FREE),
            True,
            id="a pool that may grow has room",
        ),
        pytest.param(
            domain(9),
            (guest(1, weight=Fraction(3, 2)),),
            ONE,
            False,
            id="weights count, not heads",
        ),
        pytest.param(
            domain(9),
            (*fleet(2, running=False), guest(3)),
            ONE,
            True,
            id="who is stopped takes no place",
        ),
        pytest.param(
            domain(9),
            fleet(2, policy=Policy.IGNORE),
            ONE,
            True,
            id="who is not managed takes no place",
        ),
        pytest.param(
            domain(9, pins=["0", "1", "2", "3", "4", "5", "6"]),
            fleet(2),
            pool_settings(ratio=2, source=PoolSource.FREE),
            False,
            id="its own claims leave the pool one pCPU",
        ),
        pytest.param(
            domain(9),
            fleet(2),
            pool_settings(
                ratio=2, source=PoolSource.FREE, max_cpus=1, on_shortage=OnShortage.LEAVE
            ),
            False,
            id="a pool that would leave it alone is full",
        ),
        pytest.param(
            domain(2, emulator="4"),
            (guest(1, emulator="3"),),
            pool_settings(ratio=1, source=PoolSource.RESERVED),
            True,
            id="it brings the pCPU that it sets aside",
        ),
        pytest.param(
            domain(2, emulator="3"),
            (guest(1, emulator="3"),),
            pool_settings(ratio=1, source=PoolSource.RESERVED),
            False,
            id="a pCPU that two set aside is none of either",
        ),
        pytest.param(
            domain(9, nova=True),
            (),
            pool_settings(ratio=2, source=PoolSource.FREE),
            True,
            id="where nothing may be pinned nobody is refused",
        ),
    ],
)
def test_who_fits(
    newcomer: Domain, guests: tuple[Guest, ...], pool: PoolSettings, *, wanted: bool
) -> None:
    assert fits(newcomer, guests, pool) is wanted


def test_a_guest_that_nobody_manages_is_no_business_of_ours() -> None:
    arrival = arrive(domain(9, emulator="7"), fleet(5), policies=GuestSettings())
    assert (arrival.cell, admission.refusal(arrival)) == (None, None)
    assert admission.repinned(arrival, iothreads=True) == {}


@pytest.mark.parametrize(("cell", "wanted"), [(0, False), (1, True)])
def test_the_home_cell_is_what_has_to_have_room(cell: int, *, wanted: bool) -> None:
    assert fits(domain(9, memnode=[cell]), fleet(2, memnode=[0]), ONE, TWO) is wanted


def test_a_guest_that_spills_fits_where_it_spills_to() -> None:
    pool = replace(ONE, default=replace(ONE.default, on_shortage=OnShortage.SPILL))
    crowd = fleet(2, memnode=[0])
    arrival = arrive(domain(9, memnode=[0]), crowd, pool, TWO)
    assert (admission.refusal(arrival), arrival.cell and arrival.cell.id) == (None, 1)
    crowd += (guest(3, memnode=[1]), guest(4, memnode=[1]))
    assert not fits(domain(9, memnode=[0]), crowd, pool, TWO)


def test_a_refusal_names_cell_ratio_pool_and_remedy() -> None:
    told = admission.refusal(arrive(domain(9), fleet(1), ahead=(guest(8),)))
    assert told == (
        "NUMA cell 0 is full at emulator_overcommit_ratio 2: with this guest its pool, 0, would"
        " have to carry weight 3 (1 guest of it only starting) and carries 2: stop or move a"
        " guest of this cell, raise pool.emulator_overcommit_ratio, or let the pool have more pCPUs"
        " (pool.cpus, pool.max_cpus)"
    )
    everything = [str(cpu) for cpu in range(8)]
    told = admission.refusal(arrive(domain(9, pins=everything)))
    assert told is not None
    assert "its pool, no pCPU, would have to carry weight 1 and carries 0" in told


def test_who_was_let_in_before_counts_and_the_same_guest_counts_once() -> None:
    assert fits(domain(9), fleet(1))
    assert not fits(domain(9), fleet(1), ahead=(guest(8),))
    assert fits(domain(9), fleet(1), ahead=(guest(9),))
    assert fits(domain(9), (guest(1), guest(8, running=False)), pool=ONE)
    assert fits(domain(9), (guest(1), guest(9, running=False)), pool=ONE)


def test_a_rule_speaks_of_a_newcomer_too() -> None:
    rules = GuestSettings(rules=(Rule(policy=Policy.ISOLATE, weight=Fraction(3), name="big*"),))
    assert not fits(domain(9, name="big-1"), policies=rules)
    assert fits(domain(9, name="small-1"), policies=rules)


# Reservations.


@pytest.mark.parametrize(
    ("now", "starts", "wanted"),
    [
        pytest.param(9.9, {}, True, id="until its time is over"),
        pytest.param(10.0, {}, False, id="not from then on"),
        pytest.param(0.0, {guest(1).uuid: "start-1"}, False, id="until the guest is seen"),
        pytest.param(0.0, {guest(2).uuid: "start-2"}, True, id="though another one is seen"),
    ],
)
def test_a_reservation_holds(now: float, starts: dict[str, str], *, wanted: bool) -> None:
    assert Reservation(guest(1), 10.0, None).holds(starts, now) is wanted


def test_an_earlier_start_of_the_guest_does_not_end_its_reservation() -> None:
    reserved = Reservation(guest(1), 10.0, "start-0")
    assert reserved.holds({guest(1).uuid: "start-0"}, 0.0)
    assert not reserved.holds({guest(1).uuid: "start-1"}, 0.0)


# Pins from elsewhere.


def pins_after(newcomer: Domain, *given: object, **named: object) -> dict[int | None, str]:
    arrival = arrive(newcomer, *given, incoming=True, **named)  # type: ignore[arg-type]
    return {n: str(pin) for n, pin in admission.repinned(arrival, iothreads=True).items()}


FREE: Final = pool_settings(ratio=1, source=PoolSource.FREE, reserved_cpus="0,8")
ELSEWHERE: Final = (guest(1, memnode=[1], emulator="9"), guest(2, pins=["10"], policy=Policy.FLOAT))
"""In cell 1 one guest has a pool of one pCPU, and 8 and 10 are no candidates."""


@pytest.mark.parametrize(
    ("newcomer", "wanted"),
    [
        pytest.param(
            domain(9, memnode=[1], emulator="11-13"), {}, id="a pin within the candidates"
        ),
        pytest.param(domain(9, memnode=[1]), {}, id="no pin"),
        pytest.param(
            domain(9, memnode=[1], emulator="99"), {None: "9,12"}, id="a pCPU that is not here"
        ),
        pytest.param(
            domain(9, memnode=[1], emulator="10-11"), {None: "9,12"}, id="another guest's vCPU"
        ),
        pytest.param(
            domain(9, memnode=[1], emulator="1"), {None: "9,12"}, id="another cell's candidates"
        ),
        pytest.param(
            domain(9, memnode=[1], emulator="8"), {None: "9,12"}, id="a pCPU that is reserved"
        ),
        pytest.param(
            domain(9, memnode=[1], emulator="13", pins=["13"]),
            {None: "9,14"},
            id="its own vCPU",
        ),
        pytest.param(
            domain(9, memnode=[1], emulator="99", iothreads=[None, "12", "99", "8"]),
            {None: "9,12", 3: "9,12", 4: "9,12"},
            id="of iothreads those that have such a pin",
        ),
    ],
)
def test_a_pin_that_does_not_lie_within_the_candidates_becomes_the_pool(
    newcomer: Domain, wanted: dict[int | None, str]
) -> None:
    assert pins_after(newcomer, ELSEWHERE, FREE, TWO) == wanted


def test_iothreads_keep_their_pins_where_they_are_not_ours_or_have_real_time() -> None:
    newcomer = domain(9, emulator="99", iothreads=["99"])
    arrival = arrive(newcomer, incoming=True)
    assert admission.repinned(arrival, iothreads=False).keys() == {None}
    urgent = replace(newcomer, iothreads=(replace(newcomer.iothreads[0], realtime=True),))
    assert pins_after(urgent) == {None: "0"}


def test_without_a_pool_no_pin_is_replaced() -> None:
    everything = [str(cpu) for cpu in range(8)]
    assert pins_after(domain(9, emulator="99", pins=everything)) == {}


@pytest.mark.parametrize(
    ("known", "managed"),
    [
        pytest.param((), False, id="nobody knows what it was started with"),
        pytest.param((guest(9, running=False, pins=["1"], emulator="7"),), True, id="defined here"),
    ],
)
def test_the_pin_of_a_guest_from_elsewhere_does_not_tell_its_policy(
    known: tuple[Guest, ...], *, managed: bool
) -> None:
    newcomer = domain(9, pins=["1"], emulator="6")
    arrived = arrive(newcomer, known, incoming=True, policies=GuestSettings())
    assert (arrived.cell is not None) is managed
    assert arrived.guest.original == (known[0].original if known else Pins(None))
    booted = arrive(newcomer, known, policies=GuestSettings())
    assert booted.cell is not None


# The text.

TEXT: Final = domain_xml(
    "<cputune><!-- <emulatorpin cpuset='1'/> --><emulatorpin\n  cpuset = \"99\" /><iothreadpin"
    " iothread='1' cpuset='98'/><iothreadpin cpuset='97' iothread='2'></iothreadpin></cputune>",
    metadata=own_xml(policy="isolate") + "<a:b xmlns:a='u'><a:cputune><emulatorpin cpuset='99'/>"
    "</a:cputune>\N{SNOWMAN}&lt;emulatorpin cpuset='99'/></a:b>",
)


def test_pins_are_replaced_where_they_stand_and_nothing_else_is() -> None:
    new = incoming.replaced(TEXT, {None: cpus("2-3"), 2: cpus("4")})
    wanted = TEXT.replace('emulatorpin\n  cpuset = "99" />', "emulatorpin cpuset='2-3' />")
    assert new == wanted.replace("iothreadpin cpuset='97'", "iothreadpin cpuset='4'")
    assert incoming.replaced(TEXT, {}) == TEXT
    assert incoming.replaced(TEXT, {7: cpus("1")}) == TEXT


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("<domain><cputune><emulatorpin cpuset='1'/>", id="unfinished"),
        pytest.param("", id="empty"),
        pytest.param("<domain/><domain/>", id="two of them"),
    ],
)
def test_a_text_that_is_no_xml_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"element|junk|no"):
        incoming.replaced(text, {None: cpus("1")})


@given(
    st.text(max_size=20),
    st.sampled_from(["emulatorpin", "iothreadpin"]),
    st.dictionaries(
        st.sampled_from(["iothread", "a", "x.y", "cpusets"]),
        st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8),
    ),
)
def test_any_attributes_beside_a_pins_own_stay(
    comment: str, tag: str, beside: dict[str, str]
) -> None:
    from xml.etree import ElementTree as ET  # noqa: PLC0415

    beside = {**beside, "iothread": "5"} if tag == "iothreadpin" else beside
    element = ET.Element("domain")
    pin = ET.SubElement(ET.SubElement(element, "cputune"), tag, {**beside, "cpuset": "9"})
    element.append(ET.Comment("".join(c for c in comment if c.isprintable() and c != "-")))
    pins: dict[int | None, CpuSet] = {None: cpus("1"), 5: cpus("1")}
    if tag == "emulatorpin" and beside.get("iothread", ""):
        pins = {}  # libvirt knows no such thing, and it is left alone
    new = ET.fromstring(incoming.replaced(ET.tostring(element, encoding="unicode"), pins))
    (found,) = new.iter(tag)
    assert found.attrib == {**beside, "cpuset": "1" if pins else "9"}
    assert pin.attrib == {**beside, "cpuset": "9"}


# Properties.


def any_world(random: Random) -> tuple[World, tuple[Domain, ...]]:
    """Return a world without guests, and definitions that might run there."""
    world = draw_world(random, random.randint(1, 8))
    return world.having(), tuple(one.domain for one in world.guests)


@given(st.randoms(use_true_random=True))
@settings(max_examples=examples(300, 20_000))
def test_the_answer_is_that_of_the_plan_with_the_guest_in_it(random: Random) -> None:
    world, domains = any_world(random)
    *known, newcomer = domains
    newcomer = replace(newcomer, id=99)
    footing = Footing(world.having(*resolved(known, ALL)).question, ALL)
    arrival = admission.arrive(footing, newcomer, (), incoming=False)

    everyone = resolved([*known, newcomer], ALL)
    there = replace(everyone[-1], age=10**9, busy=True)
    question = world.having(*everyone[:-1], there).question
    plan = planner.plan(question)
    home = next(one.cell for one in plan.guests if one.uuid == newcomer.uuid)
    cell = next((one for one in plan.cells if one.id == home), None)
    assert arrival.cell == cell
    full = cell is not None and cell.over and cell.id not in untouched(question)
    assert (admission.refusal(arrival) is not None) is full


@given(st.randoms(use_true_random=True))
@settings(max_examples=examples(150, 10_000))
def test_all_that_are_let_in_one_after_another_fit_when_all_are_there(random: Random) -> None:
    world, domains = any_world(random)
    for own in (world.settings.default, *world.settings.cells.values()):
        assume(own.on_shortage is not OnShortage.SPILL)  # whom natives drive home may not fit there
    footing = Footing(world.question, ALL)
    let_in: list[Guest] = []
    for number in range(len(domains)):
        newcomer = domain(number + 1, memnode=[random.choice(world.host.cells).id])
        arrival = admission.arrive(footing, newcomer, let_in, incoming=False)
        if admission.refusal(arrival) is None:
            let_in.append(arrival.guest)
    there = [replace(one, age=n, busy=False) for n, one in enumerate(let_in)]
    question = world.having(*resolved([one.domain for one in there], ALL)).question
    hands_off = untouched(question)
    assert [c for c in planner.plan(question).cells if c.over and c.id not in hands_off] == []


@given(st.randoms(use_true_random=True))
@settings(max_examples=examples(200, 10_000))
def test_after_the_replacement_every_pin_lies_within_the_candidates(random: Random) -> None:
    world, domains = any_world(random)
    *known, newcomer = domains
    footing = Footing(world.having(*resolved(known, ALL)).question, ALL)
    arrival = admission.arrive(footing, newcomer, (), incoming=True)
    pins = admission.repinned(arrival, iothreads=True)
    if arrival.cell is None or not arrival.cell.emulator_cpus:
        assert pins == {}
        return
    assert set(pins.values()) <= {arrival.cell.emulator_cpus}
    had: dict[int | None, CpuSet | None] = {one.id: one.cpus for one in newcomer.iothreads}
    had[None] = newcomer.emulator
    for thread, pin in had.items():
        assert (thread in pins) is (pin is not None and not pin <= arrival.cell.candidates)


def test_what_is_replaced_is_what_is_read_back() -> None:
    text = domain_xml(
        "<iothreads>2</iothreads><cputune><emulatorpin cpuset='40'/>"
        "<iothreadpin iothread='2' cpuset='40'/></cputune>",
        metadata=own_xml(policy="isolate"),
    )
    arrival = arrive(domainxml.parse(text), incoming=True)
    new = domainxml.parse(
        incoming.replaced(text, admission.repinned(arrival, iothreads=True)),
    )
    assert new.pins == Pins(cpus("0"), ((1, None), (2, cpus("0"))))
