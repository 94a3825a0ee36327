"""Which guests: the policy of each, and where the answer came from.

Five sources are asked in order, and the first that answers wins: the guest's own metadata,
Nova's, the operator's rules, the shape of its pins, the default. A wrong value in a tenant's
text is a flaw that names the field, and the next source is asked. Weight and cell are asked
in the same way, each for itself: a rule may give a weight to a guest whose policy Nova told.

The *shape* looks at the original emulator pin, not at what it is now: this program's own pins
must not change the answer. A pCPU is *exclusive* to an original if no other defined guest's
original contains it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from agent.cpuset import CellId, CpuSet
from agent.domainxml import NOVA_KEY, NOVA_MISSPELT, Flaw

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.domainxml import Domain

MIN_WEIGHT: Final = Fraction(1, 100)
MAX_WEIGHT: Final = Fraction(64)
_DECIMAL = re.compile(r"[0-9]*\.?[0-9]*\Z")
_MAX_DIGITS: Final = 9


class Policy(StrEnum):
    """Where a guest's emulator threads belong."""

    ISOLATE = "isolate"
    SHARE = "share"
    FLOAT = "float"
    IGNORE = "ignore"


_POLICIES: Final = {policy.value: policy for policy in Policy}


class Source(StrEnum):
    """Who gave the answer."""

    METADATA = "metadata"
    NOVA = "nova"
    RULE = "rule"
    SHAPE = "shape"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Rule:
    """An operator's rule: what it matches (all that are given), and what it says."""

    policy: Policy | None = None
    weight: Fraction | None = None
    name: str | None = None  # glob
    uuid: str | None = None
    flavor: str | None = None  # glob over Nova's flavor name

    def matches(self, domain: Domain) -> bool:
        """Tell whether the rule speaks of `domain`."""
        flavor = domain.nova.flavor if domain.nova else None
        return (
            (self.name is None or fnmatchcase(domain.name, self.name))
            and (self.uuid is None or domain.uuid == self.uuid.lower())
            and (self.flavor is None or (flavor is not None and fnmatchcase(flavor, self.flavor)))
        )


@dataclass(frozen=True, slots=True)
class GuestSettings:
    """The `[guests]` table."""

    manage: frozenset[Policy] = frozenset({Policy.ISOLATE})
    infer: bool = True
    default_policy: Policy = Policy.IGNORE
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one guest: policy with its source, weight, the cell its metadata names."""

    policy: Policy
    source: Source
    weight: Fraction = Fraction(1)
    cell: CellId | None = None
    exclusive: bool = False  # its original is one pCPU that no other guest's original contains
    flaws: tuple[Flaw, ...] = ()


def parse_weight(text: str) -> Fraction | None:
    """Read a decimal of at most nine digits, no exponent, from 0.01 to 64; None for any other."""
    digits = sum(map(str.isdigit, text)) if len(text) <= _MAX_DIGITS + 1 else 0
    if not 1 <= digits <= _MAX_DIGITS or not _DECIMAL.match(text):
        return None
    weight = Fraction(text)
    return weight if MIN_WEIGHT <= weight <= MAX_WEIGHT else None


def shared_cpus(originals: Iterable[CpuSet | None]) -> CpuSet:
    """Return the pCPUs that more than one of `originals` contains."""
    once = twice = 0
    for original in originals:
        bits = original.bits if original is not None else 0
        twice |= once & bits
        once |= bits
    return CpuSet.from_bits(twice)


def is_exclusive(original: CpuSet | None, shared: CpuSet) -> bool:
    """Tell whether an original is one pCPU that is not in `shared`."""
    return original is not None and original.only() is not None and original.isdisjoint(shared)


def resolve(
    settings: GuestSettings, domain: Domain, original: CpuSet | None, shared: CpuSet
) -> Verdict:
    """Answer for one guest.

    `original` is the emulator pin it was started with; `shared` are the pCPUs that more than
    one defined guest's original contains (`shared_cpus`).
    """
    flaws = list(domain.flaws)
    exclusive = is_exclusive(original, shared)
    policy, source = _policy(settings, domain, original, flaws, exclusive=exclusive)
    return Verdict(
        policy=policy,
        source=source,
        weight=_weight(settings, domain, flaws),
        cell=_cell(domain, flaws),
        exclusive=exclusive,
        flaws=tuple(flaws),
    )


def _policy(
    settings: GuestSettings,
    domain: Domain,
    original: CpuSet | None,
    flaws: list[Flaw],
    *,
    exclusive: bool,
) -> tuple[Policy, Source]:
    policy = _from_metadata(domain, flaws)
    if policy is not None:
        return policy, Source.METADATA
    if domain.emulator_realtime:
        flaws.append(
            Flaw("emulatorsched", "real-time emulator threads would starve a pool: ignored")
        )
        return Policy.IGNORE, Source.SHAPE
    policy = _from_nova(domain, flaws)
    if policy is not None:
        return policy, Source.NOVA
    rules = (rule.policy for rule in settings.rules if rule.policy and rule.matches(domain))
    policy = next(rules, None)
    if policy is not None:
        return policy, Source.RULE
    policy = _from_shape(domain.claims, original, exclusive=exclusive) if settings.infer else None
    if policy is not None:
        return policy, Source.SHAPE
    return settings.default_policy, Source.DEFAULT


def _from_metadata(domain: Domain, flaws: list[Flaw]) -> Policy | None:
    if domain.own is None:
        return None
    text = domain.own.policy or ""
    if text not in _POLICIES:
        flaws.append(Flaw("metadata policy", f"{text[:40]!r} is not one of {', '.join(Policy)}"))
    return _POLICIES.get(text)


def _from_nova(domain: Domain, flaws: list[Flaw]) -> Policy | None:
    specs = dict(domain.nova.extra_specs or ()) if domain.nova else {}
    if NOVA_MISSPELT in specs:
        flaws.append(Flaw(NOVA_MISSPELT, f"misspelt and ignored, as Nova does: it is {NOVA_KEY}"))
    if domain.nova is None or domain.nova.extra_specs is None:
        return None
    text = specs.get(NOVA_KEY)
    if text is None:
        return Policy.FLOAT
    if text in (Policy.ISOLATE, Policy.SHARE):
        return Policy(text)
    flaws.append(Flaw(NOVA_KEY, f"{text[:40]!r} is neither isolate nor share"))
    return None


def _from_shape(claims: CpuSet, original: CpuSet | None, *, exclusive: bool) -> Policy | None:
    if not claims or original is None:
        return None
    if original <= claims:
        return Policy.FLOAT
    if not original.isdisjoint(claims):
        return None
    return Policy.ISOLATE if exclusive else Policy.SHARE


def _weight(settings: GuestSettings, domain: Domain, flaws: list[Flaw]) -> Fraction:
    text = domain.own.weight if domain.own else None
    if text is not None:
        weight = parse_weight(text)
        if weight is not None:
            return weight
        flaws.append(Flaw("metadata weight", f"{text[:40]!r} is not a decimal from 0.01 to 64"))
    weights = (rule.weight for rule in settings.rules if rule.weight and rule.matches(domain))
    return next(weights, Fraction(1))


def _cell(domain: Domain, flaws: list[Flaw]) -> CellId | None:
    text = domain.own.cell if domain.own else None
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS:
        return CellId(int(text))
    flaws.append(Flaw("metadata cell", f"{text[:40]!r} is not the number of a NUMA cell"))
    return None
