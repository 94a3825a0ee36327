"""The pCPUs of a cell as they are built: packages, L3 caches, cores, threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.cpuset import CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.words import Json

_UNTOLD: Final = "package not told"
_ROW: Final = 16

Core = tuple[int, ...]
"""The pCPUs of one physical core, ascending."""


@dataclass(frozen=True, slots=True)
class Cache:
    """The cores that share an L3, or of which none is told."""

    told: bool
    cores: tuple[Core, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """The cores of one package (or die of it) in a cell, by L3."""

    title: str
    caches: tuple[Cache, ...]

    @property
    def cores(self) -> list[Core]:
        """All of them, in order."""
        return [core for cache in self.caches for core in cache.cores]


def members(blocks: Iterable[Block]) -> CpuSet:
    """Return the pCPUs of some blocks."""
    return CpuSet(cpu for block in blocks for core in block.cores for cpu in core)


def coreless(cpus: CpuSet) -> tuple[Block, ...]:
    """Return pCPUs of unknown cores, each by itself; a row from the first to the last of 16.

    What a row has between them and nobody named may be another cell's.
    """
    rows: dict[int, list[int]] = {}
    for cpu in cpus:
        rows.setdefault(cpu // _ROW, []).append(cpu)
    spans = (range(row[0], row[-1] + 1) for row in rows.values())
    caches = (Cache(told=False, cores=tuple((cpu,) for cpu in span)) for span in spans)
    return (Block("", tuple(caches)),)


def blocks(host: Json, cell: int) -> tuple[Block, ...]:
    """Return the cores of a cell by package, die and L3, in the order of their pCPUs."""
    rows = {row["id"]: row for row in host["cpus"] if row["cell"] == cell}
    several = len({row["die"] for row in rows.values()} - {None}) > 1
    titles = {cpu: _title(row, several=several) for cpu, row in rows.items()}
    if len(set(titles.values()) - {_UNTOLD}) == 1:  # an offline pCPU tells no package
        titles = dict.fromkeys(titles, min(set(titles.values()) - {_UNTOLD}))
    found: dict[str, dict[str, dict[int, list[int]]]] = {}
    for cpu, core in _cores(rows).items():
        caches = found.setdefault(titles[core], {})
        caches.setdefault(rows[core]["l3"] or "", {}).setdefault(core, []).append(cpu)
    told = sorted(found, key=lambda title: title == _UNTOLD)  # stable: in order of their pCPUs
    return tuple(Block(title, _caches(found[title])) for title in told)


def _caches(caches: Mapping[str, Mapping[int, list[int]]]) -> tuple[Cache, ...]:
    """Return the cores by L3, those without last; if each core has its own, that tells nothing."""
    told = [tuple(map(tuple, cores.values())) for l3, cores in caches.items() if l3]
    untold = [tuple(map(tuple, cores.values())) for l3, cores in caches.items() if not l3]
    if len(told) > 1 and all(len(cores) == 1 for cores in told):
        told = [tuple(core for (core,) in told)]
    return (
        *(Cache(told=True, cores=cores) for cores in told),
        *(Cache(told=False, cores=cores) for cores in untold),
    )


def _title(row: Json, *, several: bool) -> str:
    if row["package"] is None:
        return _UNTOLD
    die = f", die {row['die']}" if several and row["die"] is not None else ""
    return f"package {row['package']}{die}"


def _cores(rows: Mapping[int, Json]) -> dict[int, int]:
    """Return, for each pCPU, the lowest one of its core; of offline ones only ids are known."""
    owner: dict[int, int] = {}
    by_ids: dict[tuple[object, ...], int] = {}
    here = CpuSet(rows)
    for cpu, row in sorted(rows.items(), key=lambda item: (not item[1]["online"], item[0])):
        core = cpu
        if row["siblings"] is not None:
            core = (CpuSet.parse(row["siblings"]) & here or CpuSet.of(cpu)).first()
        elif not row["online"] and row["core"] is not None:
            ids = row["package"], row["die"], row["core"]
            core = by_ids.setdefault(ids, cpu)
        if row["online"] and row["core"] is not None:
            by_ids.setdefault((row["package"], row["die"], row["core"]), core)
        owner[cpu] = core
    return {cpu: owner[cpu] for cpu in sorted(owner)}
