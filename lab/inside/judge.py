"""Whether pins are right: an account of its own, which knows nothing of the agent's planner.

It knows the cells and what each guest was started with, and reads where each thread may run. Of
the choice it holds what an operator would see at once: the size of each pool, that nothing in it is
claimed, reserved, isolated or off line, and that it is not beside a claim without need.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

from lab.inside import host
from lab.inside.guests import Guest, masks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lab.inside.agent import Metrics
    from lab.inside.guests import Node, Thread
    from lab.inside.host import Cpus


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration asks for."""

    ratio: Fraction = Fraction(8)
    cpus: Cpus | None = None
    """`pool.cpus`: isolated pCPUs in it may be used."""
    partition: Cpus | None = None
    """What systemd leaves to guests, if that is less than what is on line."""
    single: bool = False

    def usable(self, cpus: Cpus) -> Cpus:
        """Return those that guests may use at all."""
        return cpus if self.partition is None else cpus & self.partition


def complaints(
    node: Node, present: Sequence[Guest], rules: Rules, told: Callable[[], Metrics]
) -> list[str]:
    """Return all that is wrong with the pins of the guests that are said to be there.

    And with the metrics, if `told` says something else than what is.
    """
    names = {guest.name for guest in present}
    if (running := node.running()) != names:
        return [f"guests run that should not, or the other way round: {running ^ names}"]
    try:
        seen = {guest: node.threads(guest) for guest in present}
    except FileNotFoundError as error:
        return [f"a guest is gone: {error}"]
    found: list[str] = []
    for cell, online in host.cells().items():
        mine = {g: seen[g] for g in present if g.managed and g.cell == cell}
        found += of_cell(cell, rules.usable(online), mine, present, rules)
    for guest, threads in seen.items():
        found += _others(guest, threads, rules.usable(host.online()))
        found += _record(node, guest, threads)
    return found or list(_word(present, rules, told()))


def candidates(online: Cpus, present: Sequence[Guest], rules: Rules) -> Cpus:
    """Return which of a cell's pCPUs its pool may use: neither claimed, nor others' alone."""
    others = [guest for guest in present if not guest.managed]
    pins = [pin for guest in others for pin in (guest.original, guest.iothread) if pin is not None]
    alone = frozenset().union(*(pin for pin in pins if len(pin) == 1))
    free = online - claimed(present) - alone
    return free & rules.cpus if rules.cpus is not None else free - host.isolated()


def claimed(present: Sequence[Guest]) -> Cpus:
    """Return the pCPUs of all vCPUs."""
    return frozenset(cpu for guest in present for cpu in guest.claims)


def need(number: int, rules: Rules) -> int:
    """Return the size of a pool for so many guests."""
    return ceil(number / rules.ratio)


def of_cell(
    cell: int,
    online: Cpus,
    seen: Mapping[Guest, Sequence[Thread]],
    present: Sequence[Guest],
    rules: Rules,
    core: Callable[[int], Cpus] = host.core,
) -> Iterator[str]:
    """Complain of the guests at home in a cell, whose pCPUs `online` are."""
    targets: dict[Guest, Cpus] = {}
    for guest, threads in seen.items():
        found = masks(threads, "emulator")
        if len(found) != 1:
            yield f"{guest.name}: its emulator threads are apart: {threads}"
            continue
        (targets[guest],) = found
        follower = targets[guest] if guest.follows else _left(guest.iothread, online)
        if follower and masks(threads, "iothread1") != {follower}:
            yield f"{guest.name}: its iothread is not on {sorted(follower)}: {threads}"
    pool = frozenset().union(*targets.values())
    free, claims = candidates(online, present, rules), claimed(present)
    size = min(need(len(seen), rules), len(free))
    if not free:
        return  # a scenario of its own says what is right then
    if pool - free:
        yield f"cell {cell}: {sorted(pool - free)} may not be in the pool {sorted(pool)}"
    if len(pool) != size:
        yield f"cell {cell}: the pool {sorted(pool)} has not {size} pCPUs for {len(seen)} guests"
    clean = frozenset(cpu for cpu in free if not core(cpu) & claims)
    if len(pool - clean) > max(0, size - len(clean)):
        yield f"cell {cell}: the pool {sorted(pool)} is beside claims, {sorted(clean)} are not"
    yield from _shares(cell, targets, pool, rules)


# parts


def _shares(cell: int, targets: Mapping[Guest, Cpus], pool: Cpus, rules: Rules) -> Iterator[str]:
    if not rules.single:
        for guest, cpus in targets.items():
            if cpus != pool:
                yield f"{guest.name}: on {sorted(cpus)}, the pool is {sorted(pool)}"
        return
    loads = Counter(cpu for cpus in targets.values() for cpu in cpus)
    for guest, cpus in targets.items():
        if len(cpus) != 1:
            yield f"{guest.name}: on {sorted(cpus)}, not on one pCPU"
    if loads and max(loads.values()) > ceil(len(targets) / len(pool)):
        yield f"cell {cell}: unevenly shared: {loads}"


def _left(pin: Cpus | None, online: Cpus) -> Cpus:
    """Return what the kernel makes of a pin while pCPUs of it are off line; empty: anything."""
    return (pin or frozenset()) & online


def _others(guest: Guest, threads: Sequence[Thread], online: Cpus) -> Iterator[str]:
    """Complain of vCPUs that were moved, and of guests that are not to be touched."""
    for number, cpu in enumerate(guest.claims):
        if cpu in online and masks(threads, f"vcpu{number}") != {frozenset({cpu})}:
            yield f"{guest.name}: vCPU {number} is not on {cpu}: {threads}"
    if not guest.managed and guest.original <= online:
        if masks(threads, "emulator") != {guest.original}:
            yield f"{guest.name}: not ours, but not on {sorted(guest.original)}: {threads}"
        iothread = _left(guest.iothread, online)
        if iothread and masks(threads, "iothread1") != {iothread}:
            yield f"{guest.name}: not ours, but its iothread was moved: {threads}"
    known = {"emulator", "iothread1", *(f"vcpu{n}" for n in range(len(guest.claims)))}
    for thread in threads:
        if thread.role not in known:
            yield f"{guest.name}: a thread in a cgroup that nobody expects: {thread}"


def _record(node: Node, guest: Guest, threads: Sequence[Thread]) -> Iterator[str]:
    recorded = node.recorded(guest)
    if guest.managed and masks(threads, "emulator") != {recorded}:
        yield f"{guest.name}: libvirt's record {sorted(recorded)} is not the kernel's: {threads}"


def _word(present: Sequence[Guest], rules: Rules, told: Metrics) -> Iterator[str]:
    """Complain of metrics that say something else than what is."""
    for cell in host.cells():
        number = sum(guest.managed and guest.cell == cell for guest in present)
        label = frozenset({("cell", str(cell))})
        for name, want in (("pool_guests", number), ("stuck_threads", 0), ("unverified_guests", 0)):
            if told.get(name, {}).get(label) != want:
                yield f"cell {cell}: {name} is {told.get(name, {}).get(label)}, not {want}"
        wanted = need(number, rules)
        has = told.get("pool_cpus", {}).get(label)
        short = told.get("pool_shortage_cpus", {}).get(label)
        if has is None or short is None or has + short != wanted:
            yield f"cell {cell}: pool_cpus {has} + pool_shortage_cpus {short} is not {wanted}"
    if busy := told.get("guests", {}).get(frozenset({("state", "busy")})):
        yield f"{busy:.0f} guests count as busy, and nothing holds any"
    with contextlib.suppress(KeyError):
        if told["inbox_depth"][frozenset()] > 0:
            yield "the inbox is not empty"
