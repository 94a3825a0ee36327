"""The policy of each guest, and who said so, source by source."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cpuset import EMPTY, CpuSet
from agent.domainxml import (
    MAX_NAME,
    NOVA_KEY,
    NOVA_MISSPELT,
    Domain,
    NovaMetadata,
    OwnMetadata,
    parse,
)
from agent.policy import (
    GuestSettings,
    Policy,
    Rule,
    Source,
    parse_weight,
    resolve,
    shared_cpus,
)
from tests.builders import cpus, domain, uuid_of
from tests.definitions import NOVA_ISOLATE, domain_xml, nova_xml, own_xml

NO_RULE: Final = GuestSettings()
ALL_RULE: Final = GuestSettings(rules=(Rule(Policy.SHARE, name="*"),))


def told(
    *,
    own: OwnMetadata | None = None,
    nova: NovaMetadata | None = None,
    pins: tuple[str, ...] = (),
    emulator: str | None = None,
    emulator_realtime: bool = False,
) -> Domain:
    """Return a definition with the given metadata."""
    bare = domain(1, pins=pins, emulator=emulator, emulator_realtime=emulator_realtime)
    return replace(bare, own=own, nova=nova)


def own(
    policy: str | None = None, cell: str | None = None, weight: str | None = None
) -> OwnMetadata:
    return OwnMetadata(policy, cell, weight)


def nova(policy: str | None, key: str = NOVA_KEY, flavor: str = "m1.nfv") -> NovaMetadata:
    return NovaMetadata(flavor, () if policy is None else ((key, policy),))


OLD_NOVA: Final = NovaMetadata("m1.nfv", None)
PINNED: Final = ("4", "5")


@pytest.mark.parametrize(
    ("settings", "one", "policy", "source"),
    [
        pytest.param(
            ALL_RULE,
            told(own=own("float"), nova=nova("isolate")),
            "float",
            "metadata",
            id="the guest's own metadata goes before everything",
        ),
        pytest.param(
            ALL_RULE, told(nova=nova("isolate")), "isolate", "nova", id="Nova's goes before a rule"
        ),
        pytest.param(ALL_RULE, told(nova=nova("share")), "share", "nova", id="Nova's share"),
        pytest.param(
            ALL_RULE, told(nova=nova(None)), "float", "nova", id="extra specs without it are float"
        ),
        pytest.param(
            ALL_RULE, told(nova=OLD_NOVA), "share", "rule", id="an older Nova does not tell"
        ),
        pytest.param(
            ALL_RULE, told(pins=PINNED, emulator="6"), "share", "rule", id="a rule before the shape"
        ),
        pytest.param(
            NO_RULE,
            told(pins=PINNED, emulator="6"),
            "isolate",
            "shape",
            id="shape: apart and alone",
        ),
        pytest.param(
            NO_RULE,
            told(pins=("4", "5"), emulator="4-5"),
            "float",
            "shape",
            id="shape: inside the claims",
        ),
        pytest.param(
            NO_RULE,
            told(pins=("4", "5"), emulator="4"),
            "float",
            "shape",
            id="shape: on one of the claims",
        ),
        pytest.param(
            NO_RULE,
            told(pins=("4", "5"), emulator="0-1"),
            "share",
            "shape",
            id="shape: apart on several",
        ),
        pytest.param(
            NO_RULE,
            told(pins=("4", "5"), emulator="7"),
            "share",
            "shape",
            id="shape: apart on one that another guest has too",
        ),
        pytest.param(
            NO_RULE,
            told(pins=("4", "5"), emulator="5-6"),
            "ignore",
            "default",
            id="shape: partly inside is unknown",
        ),
        pytest.param(
            NO_RULE, told(pins=("4-5",), emulator="6"), "ignore", "default", id="shape: no claim"
        ),
        pytest.param(NO_RULE, told(pins=("4",)), "ignore", "default", id="shape: no emulator pin"),
        pytest.param(
            GuestSettings(infer=False),
            told(pins=PINNED, emulator="6"),
            "ignore",
            "default",
            id="shape not asked",
        ),
        pytest.param(
            GuestSettings(default_policy=Policy.ISOLATE), told(), "isolate", "default", id="default"
        ),
    ],
)
def test_the_first_answer_wins(
    settings: GuestSettings, one: Domain, policy: str, source: str
) -> None:
    verdict = resolve(settings, one, one.emulator, shared=cpus("7"))
    assert (verdict.policy, verdict.source, verdict.flaws) == (policy, source, ())


@pytest.mark.parametrize(
    ("one", "policy", "source", "field"),
    [
        pytest.param(
            told(own=own("Isolate"), nova=nova("share")),
            "share",
            "nova",
            "metadata policy",
            id="a wrong policy",
        ),
        pytest.param(
            told(own=own(None, cell="1"), nova=nova("share")),
            "share",
            "nova",
            "metadata policy",
            id="no policy at all",
        ),
        pytest.param(
            told(pins=PINNED, emulator="6", nova=nova("isolated")),
            "isolate",
            "shape",
            NOVA_KEY,
            id="wrong in Nova",
        ),
        pytest.param(
            told(nova=nova("isolate", key=NOVA_MISSPELT)),
            "float",
            "nova",
            NOVA_MISSPELT,
            id="the misspelt key is ignored as Nova does",
        ),
        pytest.param(
            told(emulator_realtime=True, nova=nova("isolate")),
            "ignore",
            "shape",
            "emulatorsched",
            id="real-time emulator threads would starve a pool",
        ),
    ],
)
def test_a_wrong_value_is_a_flaw_and_the_next_source_is_asked(
    one: Domain, policy: str, source: str, field: str
) -> None:
    verdict = resolve(NO_RULE, one, one.emulator, EMPTY)
    assert (verdict.policy, verdict.source) == (policy, source)
    assert [flaw.field for flaw in verdict.flaws] == [field]


def test_own_metadata_may_ask_for_a_pool_in_spite_of_real_time_emulator_threads() -> None:
    one = told(own=own("isolate"), emulator_realtime=True)
    verdict = resolve(NO_RULE, one, None, EMPTY)
    assert (verdict.policy, verdict.source, verdict.flaws) == ("isolate", "metadata", ())


def test_the_shape_looks_at_the_original_and_not_at_the_pin_of_now() -> None:
    repinned = told(pins=("4", "5"), emulator="0-3")
    assert resolve(NO_RULE, repinned, cpus("6"), EMPTY).policy == Policy.ISOLATE
    assert resolve(NO_RULE, repinned, None, EMPTY).source == Source.DEFAULT


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        pytest.param(Rule(name="guest-*"), True, id="name"),
        pytest.param(Rule(name="guest"), False, id="a glob matches the whole name"),
        pytest.param(Rule(name="GUEST-*"), False, id="case counts"),
        pytest.param(Rule(uuid=uuid_of(0xABC).upper()), True, id="uuid, whatever its case"),
        pytest.param(Rule(uuid=uuid_of(2)), False, id="another uuid"),
        pytest.param(Rule(flavor="*.nfv"), True, id="flavor"),
        pytest.param(Rule(flavor="m1"), False, id="another flavor"),
        pytest.param(
            Rule(name="guest-?", flavor="m2.*"), False, id="all that are given must match"
        ),
    ],
)
def test_what_a_rule_speaks_of(rule: Rule, *, matches: bool) -> None:
    one = replace(told(nova=OLD_NOVA), uuid=uuid_of(0xABC))
    assert rule.matches(one) is matches


def test_a_flavor_rule_does_not_speak_of_guests_without_flavor() -> None:
    assert not Rule(flavor="*").matches(told())
    assert not Rule(flavor="*").matches(told(nova=NovaMetadata(None, None)))


def test_rules_are_asked_in_order_and_field_by_field() -> None:
    settings = GuestSettings(
        rules=(
            Rule(policy=Policy.FLOAT, name="other"),
            Rule(weight=Fraction(7), name="other"),
            Rule(weight=Fraction(3), name="guest-*"),
            Rule(policy=Policy.SHARE, weight=Fraction(5), name="*"),
            Rule(policy=Policy.ISOLATE, name="*"),
        )
    )
    verdict = resolve(settings, told(), None, EMPTY)
    assert (verdict.policy, verdict.source, verdict.weight) == ("share", "rule", Fraction(3))


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        pytest.param(None, Fraction(2), id="absent: the rule's"),
        pytest.param("0.5", Fraction(1, 2), id="metadata goes before the rule"),
        pytest.param("65", Fraction(2), id="wrong: a flaw, and the rule's"),
    ],
)
def test_weight_is_asked_by_itself(text: str | None, weight: Fraction) -> None:
    settings = GuestSettings(rules=(Rule(weight=Fraction(2), name="*"),))
    verdict = resolve(settings, told(own=own("isolate", weight=text)), None, EMPTY)
    assert (verdict.weight, verdict.source) == (weight, Source.METADATA)
    assert [flaw.field for flaw in verdict.flaws] == ["metadata weight"] * (text == "65")
    nova_told = resolve(settings, told(nova=nova("isolate")), None, EMPTY)
    assert (nova_told.weight, nova_told.source) == (Fraction(2), Source.NOVA), (
        "a rule weighs Nova's guests"
    )


def test_who_says_nothing_weighs_one() -> None:
    assert resolve(NO_RULE, told(), None, EMPTY).weight == 1


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        pytest.param("1", 1, id="a number"),
        pytest.param("007", 7, id="zeros before it"),
        pytest.param("", None, id="empty"),
        pytest.param("-1", None, id="negative"),
        pytest.param("1.0", None, id="no integer"),
        pytest.param("²", None, id="a superscript"),
        pytest.param("٣", None, id="digits of another script"),
        pytest.param("1" * 10, None, id="ten digits"),
    ],
)
def test_the_cell_of_the_metadata(text: str, cell: int | None) -> None:
    verdict = resolve(NO_RULE, told(own=own("isolate", cell=text)), None, EMPTY)
    assert verdict.cell == cell
    assert [flaw.field for flaw in verdict.flaws] == ["metadata cell"] * (cell is None)


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        pytest.param("1", Fraction(1), id="one"),
        pytest.param("2.5", Fraction(5, 2), id="a decimal is exact"),
        pytest.param("0.01", Fraction(1, 100), id="the least"),
        pytest.param("64", Fraction(64), id="the most"),
        pytest.param(".5", Fraction(1, 2), id="no digit before the point"),
        pytest.param("0.00999999", None, id="less than the least"),
        pytest.param("64.000001", None, id="more than the most"),
        pytest.param("12.3456789", Fraction(123456789, 10**7), id="nine digits"),
        pytest.param("12.34567890", None, id="ten digits"),
        pytest.param("0", None, id="nothing"),
        pytest.param("-1", None, id="negative"),
        pytest.param("+1", None, id="a sign"),
        pytest.param("1e1", None, id="an exponent"),
        pytest.param("1/2", None, id="a fraction"),
        pytest.param("1_0", None, id="an underscore"),
        pytest.param(" 1", None, id="a space"),
        pytest.param("1\n", None, id="a line break"),
        pytest.param(".", None, id="a point"),
        pytest.param("", None, id="empty"),
        pytest.param("nan", None, id="not a number"),
        pytest.param("inf", None, id="infinity"),
        pytest.param("٣", None, id="digits of another script"),
        pytest.param("1..2", None, id="two points"),
    ],
)
def test_parse_weight(text: str, weight: Fraction | None) -> None:
    assert parse_weight(text) == weight


def test_a_weight_that_would_take_an_hour_is_refused_at_once() -> None:
    began = time.process_time()
    for text in ("1e2000000", "9" * 1_000_000, "0." + "1" * 1_000_000):
        assert parse_weight(text) is None
    assert time.process_time() - began < 0.5


@given(st.lists(st.frozensets(st.integers(0, 8)), max_size=6))
def test_shared_cpus_are_those_of_more_than_one_original(originals: list[frozenset[int]]) -> None:
    count = [sum(cpu in original for original in originals) for cpu in range(9)]
    expected = CpuSet(cpu for cpu in range(9) if count[cpu] > 1)
    assert shared_cpus([CpuSet(original) for original in originals] + [None]) == expected


@pytest.mark.parametrize(
    ("original", "exclusive"),
    [
        pytest.param("6", True, id="one pCPU of its own"),
        pytest.param("7", False, id="one that another's original contains"),
        pytest.param("5-6", False, id="several"),
        pytest.param(None, False, id="none"),
    ],
)
def test_exclusive(original: str | None, *, exclusive: bool) -> None:
    pin = cpus(original) if original else None
    assert resolve(NO_RULE, told(), pin, cpus("7")).exclusive is exclusive


HOSTILE: Final = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="<&'\""),
    max_size=50,
)


@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_no_tenants_text_can_break_the_answer(a: str, b: str, c: str, d: str) -> None:
    metadata = own_xml(policy=a, cell=b, weight=c) + nova_xml(d)
    one = parse(domain_xml(NOVA_ISOLATE, metadata=metadata))
    verdict = resolve(ALL_RULE, one, one.emulator, EMPTY)
    assert verdict.policy in Policy
    assert all(flaw.text.isprintable() and len(flaw.text) < 200 for flaw in verdict.flaws)


def test_flaws_of_the_definition_are_told_with_the_rest() -> None:
    one = parse(domain_xml("<cputune><emulatorpin cpuset='x'/></cputune>"))
    verdict = resolve(NO_RULE, one, one.emulator, EMPTY)
    assert [flaw.field for flaw in verdict.flaws] == ["emulatorpin@cpuset"]


@pytest.mark.parametrize(
    "glob", ["*a" * 50 + "b", "*a?" * 50 + "b", "*[ab]*a" * 30 + "b", "*" * 500]
)
def test_no_name_makes_a_rule_think_for_long(glob: str) -> None:
    """A search that goes back for each star would not end in this universe."""
    name = "a" * MAX_NAME
    found = parse(domain_xml(metadata=nova_xml(flavor=name)).replace("guest-1", name))
    assert Rule(name=glob).matches(found) == Rule(flavor=glob).matches(found) == (glob[-1] == "*")
