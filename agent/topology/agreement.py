"""The host as somebody else sees it, held against what its kernel says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.cpuset import EMPTY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.cpuset import CellId, CpuSet
    from agent.topology.host import Host


@dataclass(frozen=True, slots=True)
class ForeignCell:
    """A NUMA cell as libvirt tells of it; it may have no pCPUs, and name some that are off line."""

    id: CellId
    cpus: CpuSet
    siblings: tuple[tuple[int, CpuSet], ...]  # of the pCPUs that it tells them of


def disagreements(host: Host, told: Iterable[ForeignCell]) -> tuple[str, ...]:
    """Return a line for each cell that is another one there, and one for cores that are others.

    Only online pCPUs are compared. What either side does not tell disagrees with nothing.
    """
    cells = tuple(told)
    return (*_cells(host, cells), *_cores(host, cells))


def _cells(host: Host, told: Iterable[ForeignCell]) -> Iterator[str]:
    ours = {cell.id: cell.cpus for cell in host.cells}
    theirs = {cell.id: cell.cpus & host.online for cell in told}
    for cell in sorted(ours | theirs):
        here, there = ours.get(cell, EMPTY), theirs.get(cell, EMPTY)
        if here != there:
            yield f"cell {cell} has pCPUs {here or 'none'}, libvirt says {there or 'none'}"


def _cores(host: Host, told: Iterable[ForeignCell]) -> Iterator[str]:
    ours = {cpu.id: cpu.siblings for cpu in host.cpus if cpu.siblings is not None}
    others = {
        cpu: (ours[cpu], cpus & host.online)
        for cell in told
        for cpu, cpus in cell.siblings
        if cpu in ours and ours[cpu] != cpus & host.online
    }
    if others:
        first = min(others)
        here, there = others[first]
        also = f", and {len(others) - 1} more pCPUs are like it" if len(others) > 1 else ""
        yield f"pCPU {first} shares its core with {here}, libvirt says {there or 'none'}{also}"
