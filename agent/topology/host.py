"""The host as values, and as the answer of `emupool topology`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.cpuset import CellId, CpuSet


@dataclass(frozen=True, slots=True)
class Pcpu:
    """One logical CPU that is present; None is what this kernel does not tell."""

    id: int
    online: bool
    isolated: bool
    cell: CellId | None
    package: int | None
    die: int | None
    core: int | None
    siblings: CpuSet | None  # the hardware threads of its physical core, itself included
    l3: CpuSet | None  # the pCPUs it shares its last-level (L3) cache with, itself included


@dataclass(frozen=True, slots=True)
class Cell:
    """A NUMA cell that has online pCPUs."""

    id: CellId
    cpus: CpuSet  # online ones only
    memory_bytes: int | None
    distances: tuple[tuple[CellId, int], ...]  # to each cell of the host, by id


@dataclass(frozen=True, slots=True)
class Host:
    """Cells and pCPUs, each sorted by id."""

    cells: tuple[Cell, ...]
    cpus: tuple[Pcpu, ...]  # present ones
    online: CpuSet
    isolated: CpuSet


@dataclass(frozen=True, slots=True)
class Discovery:
    """A host, and what kept more of it from being known: a line per file that is wrong."""

    host: Host
    problems: tuple[str, ...] = ()


def to_json(host: Host) -> dict[str, object]:
    """Return the answer of `emupool topology --json`; None is what the kernel does not tell."""
    return {
        "schema": 1,
        "cells": [
            {
                "id": cell.id,
                "cpus": str(cell.cpus),
                "memory_bytes": cell.memory_bytes,
                "distances": {str(other): distance for other, distance in cell.distances},
            }
            for cell in host.cells
        ],
        "cpus": [
            {
                "id": cpu.id,
                "online": cpu.online,
                "isolated": cpu.isolated,
                "cell": cpu.cell,
                "package": cpu.package,
                "die": cpu.die,
                "core": cpu.core,
                "siblings": None if cpu.siblings is None else str(cpu.siblings),
                "l3": None if cpu.l3 is None else str(cpu.l3),
            }
            for cpu in host.cpus
        ],
    }
