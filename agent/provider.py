"""What Placement is told, so that it counts emulator threads as the pools do, on every host alike.

Nova's provider configuration gives a host an inventory of CUSTOM_EMULATOR_THREAD: `total` are the
pCPUs that the pools can come to (not what they have now: a pool grows when Placement lets the next
guest in), `allocation_ratio` is the ratio. Placement then lets in what total x ratio carries.

Placement knows one amount and one ratio for a host, no NUMA cells; whole units, so a weight is
rounded up; and it keeps the ratio in single precision. Where the plain ratio would come to another
number of guests than the pools of all cells carry together, another is printed that does not.
Where the pools have no fixed pCPUs there is no total to tell, and the answer is no.
"""

from __future__ import annotations

import struct
import textwrap
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING, Final

from agent.cpuset import union
from agent.errors import Refused
from agent.pool import PoolSource, largest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.cpuset import CellId, CpuSet
    from agent.planner import Plan
    from agent.policy import GuestSettings, Rule
    from agent.pool import CellSettings, PoolSettings
    from agent.topology import Host

CLASS: Final = "CUSTOM_EMULATOR_THREAD"

_NOT_FIXED: Final = {
    PoolSource.AUTO: "which beside Nova's guests is reserved",
    PoolSource.RESERVED: "and what guests set aside comes and goes with them, while Nova counts a "
    "PCPU for each of them already",
    PoolSource.FREE: "and without pool.cpus what is free changes with each guest",
    PoolSource.SET: "and pool.cpus names no pCPU",
}
_WIDTH: Final = 80

_WHERE_TO: Final = (
    "For Placement: /etc/nova/provider_config/emupool.yaml of this host.",
    "nova-compute reads it once, when it starts, and does not start if anything in it is wrong.",
    "Only one file there may speak of $COMPUTE_NODE: if another does, add the inventory to that.",
)
_DOCUMENT: Final = """\
meta:
  schema_version: '1.0'
providers:
  - identification:
      uuid: '$COMPUTE_NODE'
    inventories:
      additional:
        - {name}:
            total: {total}
            reserved: 0
            min_unit: 1
            max_unit: {max_unit}
            step_size: 1
            allocation_ratio: {ratio}
"""


@dataclass(frozen=True, slots=True)
class Share:
    """What one cell's pool can come to."""

    cell: CellId
    cpus: int
    ratio: Fraction

    @property
    def guests(self) -> int:
        """How many guests of weight 1 it carries then."""
        return floor(self.cpus * self.ratio)


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is told of a host, and what an operator should know about it."""

    shares: tuple[Share, ...]  # by cell
    cpus: CpuSet  # that pools may take
    missing: CpuSet  # that the operator named, and no pool may take now
    weights: tuple[Fraction, ...]  # that guests have, ascending; 1 is always there
    rules: tuple[Rule, ...]  # that give a weight other than 1

    @property
    def total(self) -> int:
        """How many pCPUs the pools can come to."""
        return sum(share.cpus for share in self.shares)

    @property
    def guests(self) -> int:
        """How many guests of weight 1 they carry then; no cell carries another's fraction."""
        return sum(share.guests for share in self.shares)

    @property
    def max_unit(self) -> int:
        """What the heaviest guest asks for."""
        return ceil(self.weights[-1])

    @property
    def ratios(self) -> tuple[Fraction, ...]:
        """The ratios of the cells that have a pool, ascending."""
        return tuple(sorted({share.ratio for share in self.shares if share.cpus}))

    @property
    def ratio(self) -> str:
        """What is printed as the ratio: with it, Placement lets in `guests` and no more."""
        even = Fraction(self.guests, self.total)
        between = (self.guests + Fraction(1, 2)) / self.total
        texts = map(_decimal, (*self.ratios, even, between))
        return next(text for text in texts if self._comes_out(text))

    def _comes_out(self, ratio: str) -> bool:
        kept = float(ratio)
        (single,) = struct.unpack("f", struct.pack("f", kept))
        return {int(kept * self.total), int(single * self.total)} == {self.guests}


def inventory(host: Host, plan: Plan, settings: PoolSettings, guests: GuestSettings) -> Inventory:
    """Return what Placement is to be told; Refused, with what would be right, if nothing can be."""
    for cell in plan.cells:
        _require_fixed(cell.id, settings.of(cell.id))
    rules = tuple(
        rule
        for rule in guests.rules
        if rule.weight not in {None, 1} and (rule.policy is None or rule.policy in guests.manage)
    )
    found = {guest.weight for guest in plan.guests if guest.managed}
    weights = {Fraction(1), *found, *(rule.weight for rule in rules if rule.weight is not None)}
    told = Inventory(
        shares=tuple(
            Share(cell.id, largest(settings.of(cell.id), len(cell.candidates)), cell.ratio)
            for cell in plan.cells
        ),
        cpus=union(cell.candidates for cell in plan.cells),
        missing=_missing(host, plan, settings),
        weights=tuple(sorted(weights)),
        rules=rules,
    )
    if not told.total:
        raise Refused("no pool can have a pCPU here: `emupool plan` says why, pool.cpus names them")
    if not told.guests:
        at = ", ".join(f"{share.cpus} pCPUs at ratio {share.ratio}" for share in told.shares)
        raise Refused(f"{at}: that carries no whole guest; raise pool.emulator_overcommit_ratio")
    return told


def document(told: Inventory) -> str:
    """Return the file for nova-compute: comments for the operator, then the inventory."""
    paragraphs = ([" ".join(_WHERE_TO)], _numbers(told), _flavors(told))
    comments = "#\n".join("".join(map(_comment, lines)) for lines in paragraphs)
    return comments + _DOCUMENT.format(
        name=CLASS, total=told.total, max_unit=told.max_unit, ratio=told.ratio
    )


def warnings(told: Inventory) -> Iterator[str]:
    """Yield what Placement cannot be told, and what is not as the operator may think."""
    if told.missing:
        yield f"pool.cpus: {told.missing} not counted: off line, claimed, or kept from the pool now"
    for share in told.shares:
        if not share.cpus:
            yield f"cell {share.cell} has no pCPU for a pool, and Placement keeps no guest off it"
    if len(told.ratios) > 1:
        yield f"ratios {_list(told.ratios)}: Placement has one for a host, so it knows the sum only"
    broken = [weight for weight in told.weights if weight.denominator > 1]
    if broken:
        yield f"weights {_list(broken)}: Placement has whole units, so they are rounded up there"


def _require_fixed(cell: CellId, settings: CellSettings) -> None:
    """Refuse pools whose pCPUs are not the operator's to name."""
    if settings.source in {PoolSource.SET, PoolSource.FREE} and settings.cpus:
        return
    raise Refused(
        f"pool.source of cell {cell} is {settings.source}, {_NOT_FIXED[settings.source]}: "
        'Placement wants a number that stays, so name the pCPUs, with source = "set" and cpus'
    )


def _missing(host: Host, plan: Plan, settings: PoolSettings) -> CpuSet:
    """Return the pCPUs that the operator named and no pool may take now."""
    here = {cell.id: cell.cpus for cell in host.cells}
    named = {cell.id: settings.of(cell.id).cpus for cell in plan.cells}
    kept = union(named[cell.id] & here[cell.id] - cell.candidates for cell in plan.cells)
    return kept | union(named.values()) - host.online


# comments


def _numbers(told: Inventory) -> Iterator[str]:
    cells = ", ".join(f"{share.guests} in cell {share.cell}" for share in told.shares)
    yield (
        f"{told.total} pCPUs, of {told.cpus}, carry {told.guests} guests of weight 1: {cells}. "
        "Placement knows the sum only: it may fill one cell beyond the ratio while another has "
        "room, and pool.on_shortage says what becomes of those guests."
    )
    if told.ratio not in map(_decimal, told.ratios):
        yield (
            f"The ratio is {_list(told.ratios)}. With the one below, Placement comes to the same "
            "number of guests: it counts in whole guests, and in single precision."
        )


def _flavors(told: Inventory) -> Iterator[str]:
    yield "Each flavor whose guests belong in the pools asks for their share:"
    yield f"  openstack flavor set FLAVOR --property resources:{CLASS}=1"
    for rule in told.rules:
        asks = ceil(rule.weight or 1)
        yield f"  resources:{CLASS}={asks} for {_matched(rule)} (weight {rule.weight})"
    if told.max_unit > 1:
        yield f"Guests weigh up to {told.weights[-1]} here: a flavor asks for its guests' weight."
    yield "Guests that exist keep the flavor they were made with, and are not counted."


def _matched(rule: Rule) -> str:
    """Say whom a rule means; its texts may hold anything, so they are quoted as ASCII."""
    given = (("flavor", rule.flavor), ("name", rule.name), ("uuid", rule.uuid))
    return ", ".join(f"{key} {text!a}" for key, text in given if text is not None)


def _comment(text: str) -> str:
    """Return `text` as lines of a comment."""
    mark = "# "
    filled = textwrap.fill(
        text,
        _WIDTH,
        initial_indent=mark,
        subsequent_indent=mark,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{filled}\n"


def _decimal(value: Fraction) -> str:
    """Return nine digits, with a point: YAML reads a number without one as an integer."""
    text = f"{float(value):.9g}"
    return text if "." in text else f"{text}.0"


def _list(values: Iterable[Fraction]) -> str:
    return ", ".join(map(str, values))
