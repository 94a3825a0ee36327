"""The memory of a plan, rebuilt where there is none.

A daemon that lost its state finds pools and homes again in the guests themselves: a live pin that
differs from the original and lies within one cell's candidates is ours, as far as anyone can tell.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agent.cpuset import EMPTY
from agent.pool import CellMemory, GuestMemory, Memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.cpuset import CellId, CpuSet
    from agent.snapshot import Guest


def recall(memory: Memory, managed: Iterable[Guest], candidates: Mapping[CellId, CpuSet]) -> Memory:
    """Return `memory`, or what live pins tell if it knows of no pool."""
    if memory.cells:
        return memory
    pools: dict[CellId, CpuSet] = {}
    guests = dict(memory.guests)
    for guest in managed:
        live = guest.domain.emulator
        cell = _cell_of(live, candidates) if live != guest.original.emulator else None
        if live is None or cell is None:
            continue
        pools[cell] = pools.get(cell, EMPTY) | live
        known = memory.guest(guest.uuid, guest.start) or GuestMemory(guest.start, guest.original)
        guests[guest.uuid] = replace(
            known, natural=cell if known.natural is None else known.natural, home=cell, placed=live
        )
    return Memory(
        {cell: CellMemory(cpus) for cell, cpus in pools.items()}, guests, memory.set_aside
    )


def _cell_of(live: CpuSet | None, candidates: Mapping[CellId, CpuSet]) -> CellId | None:
    if live is None:
        return None
    return next((cell for cell, cpus in candidates.items() if live <= cpus), None)
