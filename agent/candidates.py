"""Which pCPUs a pool may take at all.

What every source shares: online, in libvirt's partition, in `pool.cpus`, not reserved, not
claimed. Then each source subtracts or selects. `reserved` takes only what managed guests' own
definitions set aside, so the pool cannot collide with a control plane that hands those pCPUs to
nobody else while their owner exists; an owner that stopped leaves its pCPU to the pool for `GRACE`
seconds, so that a reboot of the owner moves nobody.

The result is a value per cell and the warnings met on the way; nothing here looks at need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.cpuset import EMPTY, CpuSet, union
from agent.groups import beside
from agent.policy import Policy
from agent.pool import PoolSource, SetAside, Smt
from agent.snapshot import followers, released

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from agent.cpuset import CellId
    from agent.groups import CellGroups
    from agent.pool import CellSettings
    from agent.question import Question
    from agent.snapshot import Guest
    from agent.topology import Cell

GRACE: Final = 30.0
"""Seconds for which a stopped guest's set-aside pCPU stays a candidate."""


@dataclass(frozen=True, slots=True)
class Warned:
    """One warning: the guest it is about (None: the host), the field, what is wrong."""

    guest: str | None
    field: str
    text: str


@dataclass(frozen=True, slots=True)
class Claims:
    """pCPUs that vCPUs are pinned to one-to-one, over all guests that count."""

    all: CpuSet
    realtime: CpuSet


@dataclass(frozen=True, slots=True)
class Candidates:
    """What each cell's pool may take, and what is remembered and said of it."""

    cells: Mapping[CellId, CpuSet]
    sources: Mapping[CellId, PoolSource]  # never AUTO
    hands_off: frozenset[CellId]  # nothing may be pinned there, not even to evacuate
    claims: Claims
    set_aside: tuple[SetAside, ...]
    warnings: tuple[Warned, ...]


def discover(
    question: Question, managed: Iterable[Guest], groups: Mapping[CellId, CellGroups]
) -> Candidates:
    """Return the candidates of each cell of the host."""
    settings = question.settings
    sources, hands_off = _sources(question)
    claims = _claims(question)
    warnings = list(_free_under_nova(hands_off))
    set_aside: tuple[SetAside, ...] = ()
    if PoolSource.RESERVED in sources.values():
        set_aside, contribute_nothing = _set_aside(question, managed)
        warnings += contribute_nothing
    reserve = CpuSet(aside.cpu for aside in set_aside)
    foreign = _foreign_pins(question)
    cells = {}
    for cell in question.host.cells:
        own, source = settings.of(cell.id), sources[cell.id]
        cpus = _base(cell, own, claims, question.partition)
        match source:
            case PoolSource.RESERVED:
                cpus &= reserve
            case PoolSource.SET:
                cpus = cpus & own.cpus - foreign
                warnings += _claims_in_set(cell, own, claims)
            case _:
                cpus -= foreign | (question.host.isolated - own.cpus)
        if own.smt is Smt.STRICT:
            cpus -= beside(groups[cell.id].cores, claims.all)
        cells[cell.id] = EMPTY if cell.id in hands_off else cpus
    return Candidates(cells, sources, hands_off, claims, set_aside, tuple(warnings))


def untouched(question: Question) -> frozenset[CellId]:
    """Return the cells in which nothing is pinned, as free pCPUs are another's to hand out."""
    return _sources(question)[1]


def _sources(question: Question) -> tuple[Mapping[CellId, PoolSource], frozenset[CellId]]:
    """Return what each cell's source comes to, and where nothing may be pinned at all."""
    settings = question.settings
    nova = any(guest.domain.nova is not None for guest in question.guests)
    sources = {cell.id: _source(settings.of(cell.id), nova=nova) for cell in question.host.cells}
    collides = (c for c, source in sources.items() if nova and _collides(settings.of(c), source))
    return sources, frozenset(collides)


def _claims(question: Question) -> Claims:
    """Return the claims of running guests and, if they count, of stopped ones."""
    everyone = question.settings.count_inactive
    counted = [guest.domain for guest in question.guests if everyone or guest.active]
    return Claims(
        union(domain.claims for domain in counted),
        union(domain.realtime_claims for domain in counted),
    )


def _source(settings: CellSettings, *, nova: bool) -> PoolSource:
    if settings.source is not PoolSource.AUTO:
        return settings.source
    return PoolSource.RESERVED if nova else PoolSource.FREE


def _collides(settings: CellSettings, source: PoolSource) -> bool:
    """Tell whether taking free pCPUs would race a control plane that hands them out."""
    return source is PoolSource.FREE and not settings.cpus


def _base(cell: Cell, settings: CellSettings, claims: Claims, partition: CpuSet | None) -> CpuSet:
    cpus = cell.cpus - settings.reserved_cpus - claims.all
    if partition is not None:
        cpus &= partition
    return cpus & settings.cpus if settings.cpus else cpus


def _foreign_pins(question: Question) -> CpuSet:
    """Return the pCPUs that are alone in a pin of a guest that is not ours to move."""
    everyone = question.settings.count_inactive
    pins = (
        pin
        for guest in question.guests
        if guest.verdict.policy not in question.manage and (everyone or guest.active)
        for pin in _own_pins(question, guest)
    )
    return union(pin for pin in pins if pin is not None and pin.only() is not None)


def _own_pins(question: Question, guest: Guest) -> Iterator[CpuSet | None]:
    """Yield a guest's pins; of one that we placed, those that it has once it is released."""
    memory = question.memory.guest(guest.uuid, guest.start)
    placed = memory.placed if memory is not None else None
    if placed is None:
        yield guest.domain.emulator
        for thread in guest.domain.iothreads:
            yield thread.cpus
        return
    back = released(guest, question.host.online)
    yield back
    following = {thread.id for thread in followers(guest, guest.original)}
    for thread in guest.domain.iothreads:
        moved = question.settings.iothreads or thread.cpus == placed
        yield back if moved and thread.id in following else thread.cpus


def _set_aside(
    question: Question, managed: Iterable[Guest]
) -> tuple[tuple[SetAside, ...], list[Warned]]:
    """Return what managed guests set aside, what stopped ones did, and who contributes nothing."""
    known = {aside.cpu: aside for aside in question.memory.set_aside}
    owned: dict[int, SetAside] = {}
    warnings = []
    for guest in managed:
        cpu = _own_cpu(guest)
        if cpu is None:
            warnings.append(Warned(guest.label, "emulatorpin", "sets no pCPU of its own aside"))
            continue
        aside = known.get(cpu)
        if aside is None or aside.owner != guest.uuid or aside.stopped_since is not None:
            aside = SetAside(cpu, guest.uuid)
        owned[cpu] = aside
    lost = [aside for aside in question.memory.set_aside if aside.cpu not in owned]
    for aside in _in_grace(question, lost):
        if not any(_contains(guest, aside) for guest in question.guests):
            owned[aside.cpu] = aside
    return tuple(owned[cpu] for cpu in sorted(owned)), warnings


def _own_cpu(guest: Guest) -> int | None:
    if guest.verdict.policy is not Policy.ISOLATE or not guest.verdict.exclusive:
        return None
    return guest.original.emulator.only() if guest.original.emulator else None


def _in_grace(question: Question, lost: Iterable[SetAside]) -> Iterator[SetAside]:
    """Yield those of `lost` whose owner stopped a short while ago."""
    running = {guest.uuid for guest in question.guests if guest.active}
    for aside in lost:
        since = question.now if aside.stopped_since is None else aside.stopped_since
        if aside.owner not in running and question.now < since + GRACE:
            yield SetAside(aside.cpu, aside.owner, since)


def _contains(guest: Guest, aside: SetAside) -> bool:
    """Tell whether the original of another guest than the owner contains the pCPU."""
    original = guest.original.emulator
    return guest.uuid != aside.owner and original is not None and aside.cpu in original


def _free_under_nova(cells: Iterable[CellId]) -> Iterator[Warned]:
    text = "Nova hands out free pCPUs: 'free' pins nothing here unless pool.cpus is given"
    for cell in sorted(cells):
        yield Warned(None, f"pool source of cell {cell}", text)


def _claims_in_set(cell: Cell, settings: CellSettings, claims: Claims) -> Iterator[Warned]:
    inside = cell.cpus & settings.cpus & claims.all
    if inside:
        text = f"pCPUs {inside} of the set are claimed by vCPUs: keep the set out of their reach"
        yield Warned(None, f"pool cpus of cell {cell.id}", text)
