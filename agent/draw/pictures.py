"""What the documents say of a host's cells: each pCPU's use, its core, the facts beside them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from rich.text import Text

from agent.cpuset import EMPTY, CpuSet, union
from agent.draw import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from agent.draw.words import Json


_UNTOLD: Final = "package not told"
_ROW: Final = 16


class Use(StrEnum):
    """What a pCPU is used for, by its letter."""

    POOL = "P"
    JOINS = "+"
    LEAVES = "-"
    TAKEN = "!"
    CLAIMED = "C"
    REALTIME = "R"
    CANDIDATE = "o"
    RESERVED = "#"
    ISOLATED = "i"
    OFFLINE = "x"
    ONLINE = "."
    UNTOLD = " "


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


@dataclass(frozen=True, slots=True)
class CellPicture:
    """What is drawn of one cell."""

    title: str
    facts: tuple[tuple[str, Text], ...]
    blocks: tuple[Block, ...]
    uses: Mapping[int, Use]
    cored: bool = True  # False: nobody told which pCPUs are one core

    @property
    def cores(self) -> list[Core]:
        """All of them, in order."""
        return [core for block in self.blocks for core in block.cores]


@dataclass(frozen=True, slots=True)
class _Pool:
    """What a plan says of the pCPUs of one cell."""

    pool: CpuSet
    now: CpuSet
    candidates: CpuSet
    claimed: CpuSet
    realtime: CpuSet
    reserved: CpuSet
    isolated: CpuSet
    offline: CpuSet

    @property
    def known(self) -> CpuSet:
        """The pCPUs that the plan names."""
        return union((self.pool, self.now, self.candidates, self.claimed))

    def use(self, cpu: int) -> Use:
        """Return the first that holds."""
        uses = (
            (Use.OFFLINE, cpu in self.offline),
            (Use.POOL, cpu in self.pool and cpu in self.now),
            (Use.JOINS, cpu in self.pool),
            (Use.TAKEN, cpu in self.now and cpu in self.claimed),
            (Use.LEAVES, cpu in self.now),
            (Use.REALTIME, cpu in self.realtime),
            (Use.CLAIMED, cpu in self.claimed),
            (Use.RESERVED, cpu in self.reserved),
            (Use.CANDIDATE, cpu in self.candidates),
            (Use.ISOLATED, cpu in self.isolated),
        )
        return next((use for use, holds in uses if holds), Use.ONLINE)


def of_topology(host: Json) -> list[CellPicture]:
    """Return the cells of a `topology` document."""
    isolated, offline = _flagged(host)
    pictures = []
    for cell in host["cells"]:
        blocks = _blocks(host, cell["id"])
        members = _members(blocks)
        uses = {cpu: _state(cpu, isolated, offline) for cpu in members}
        facts = tuple(_topology_facts(host, cell, members & isolated, members & offline))
        pictures.append(CellPicture(f"cell {cell['id']}", facts, blocks, uses))
    return pictures


def of_plan(plan: Json, host: Json | None = None) -> list[CellPicture]:
    """Return the cells of a `plan` or `status` document; without a host, cores are not known."""
    isolated, offline = _flagged(host) if host is not None else (EMPTY, EMPTY)
    pictures = []
    for row in plan["cells"]:
        cell = _pool(row, _reserved(plan, row["id"]), isolated, offline)
        blocks = _blocks(host, row["id"]) if host is not None else _coreless(cell)
        members = _members(blocks)
        uses = {cpu: cell.use(cpu) for cpu in members}
        if host is None:
            uses |= dict.fromkeys(members - cell.known, Use.UNTOLD)
        facts = (*_plan_facts(row, cell), *_flag_facts(members & isolated, members & offline))
        picture = CellPicture(f"cell {row['id']}", facts, blocks, uses, cored=host is not None)
        pictures.append(picture)
    return pictures


def homeless(host: Json) -> CpuSet:
    """Return the pCPUs that no listed cell has: offline ones, above all."""
    cells = {cell["id"] for cell in host["cells"]}
    return CpuSet(row["id"] for row in host["cpus"] if row["cell"] not in cells)


# facts


def _topology_facts(
    host: Json, cell: Json, isolated: CpuSet, offline: CpuSet
) -> Iterator[tuple[str, Text]]:
    online = CpuSet.parse(cell["cpus"])
    rows = [row for row in host["cpus"] if row["id"] in online]
    yield "pCPUs", Text(f"{len(online)}: {words.few(cell['cpus'])}")
    yield from _flag_facts(isolated, offline)
    yield "cores", Text(_cores_and_caches(rows))
    if sharers := _sharers(host, cell, rows):
        yield "L3", Text(f"shared with cell {words.cpus(str(sharers))}")
    for level in ("package", "die"):
        ids = sorted({row[level] for row in rows} - {None})
        if ids and (level == "package" or len(ids) > 1):
            yield level, Text(", ".join(map(str, ids)))
    if cell["memory_bytes"] is not None:
        yield "memory", Text(f"{cell['memory_bytes'] / 2**30:.1f} GiB")
    if distances := _distances(cell):
        yield "distance", Text(distances)


def _flag_facts(isolated: CpuSet, offline: CpuSet) -> Iterator[tuple[str, Text]]:
    if isolated:
        yield "isolated", Text(words.few(str(isolated)), "yellow")
    if offline:
        yield "offline", Text(words.few(str(offline)), "red")


def _cores_and_caches(rows: Sequence[Json]) -> str:
    cores = {row["siblings"] or str(row["id"]) for row in rows}
    threads = CpuSet(len(CpuSet.parse(core)) for core in cores)
    caches = {row["l3"] for row in rows} - {None}
    noun = "thread" if threads == CpuSet.of(1) else "threads"
    text = f"{len(cores)} of {threads} {noun}"
    return f"{text}, {len(caches)} L3" if caches else text


def _sharers(host: Json, cell: Json, rows: Sequence[Json]) -> CpuSet:
    """Return the other cells that have pCPUs below the L3s of this one."""
    below = union(CpuSet.parse(row["l3"]) for row in rows if row["l3"] is not None)
    return CpuSet(
        other["id"]
        for other in host["cells"]
        if other["id"] != cell["id"] and CpuSet.parse(other["cpus"]) & below
    )


def _distances(cell: Json) -> str:
    """Return the distances to other cells, the near ones first: `12 to 1-3, 21 to 4-7`."""
    by_distance: dict[int, CpuSet] = {}
    for other, distance in cell["distances"].items():
        if int(other) != cell["id"]:
            by_distance[distance] = by_distance.get(distance, EMPTY) | CpuSet.of(int(other))
    parts = sorted(by_distance.items())
    return ", ".join(f"{far} to {words.cpus(str(cells))}" for far, cells in parts)


def _plan_facts(row: Json, cell: _Pool) -> Iterator[tuple[str, Text]]:
    guests = words.counted(row["guests"], "guest")
    weight = "" if row["weight"] == str(row["guests"]) else f" of weight {row['weight']}"
    yield "need", Text(f"{row['need']} for {guests}{weight} at ratio {row['ratio']}")
    pool = Text.assemble((words.cpus(row["pool"], "none"), "bold"))
    if cell.pool != cell.now:
        pool.append(f", was {words.cpus(row['pool_now'], 'none')}")
    yield "pool", pool
    if row["shortage"]:
        yield "short of", Text(words.counted(row["shortage"], "pCPU"), "bold red")
    room = cell.candidates - cell.pool
    yield "room", Text(f"{len(room)} more: {words.cpus(str(room))}" if room else "none")
    yield "claimed", Text(words.cpus(row["claimed"], "none"))


# uses


def _pool(row: Json, reserved: CpuSet, isolated: CpuSet, offline: CpuSet) -> _Pool:
    """Read a row of `cells`; `realtime`, a part of `claimed`, may be missing."""
    return _Pool(
        pool=CpuSet.parse(row["pool"]),
        now=CpuSet.parse(row["pool_now"]),
        candidates=CpuSet.parse(row["candidates"]),
        claimed=CpuSet.parse(row["claimed"]),
        realtime=CpuSet.parse(row.get("realtime", "")),
        reserved=reserved,
        isolated=isolated,
        offline=offline,
    )


def _reserved(plan: Json, cell: int) -> CpuSet:
    """Return the reserved pCPUs of a cell, which only a `status` document tells."""
    pool = plan.get("config", {}).get("pool", {})
    own = pool.get("cell", {}).get(str(cell), pool)
    return CpuSet.parse(own.get("reserved_cpus", ""))


def _flagged(host: Json) -> tuple[CpuSet, CpuSet]:
    """Return the isolated and the offline pCPUs."""
    rows = host["cpus"]
    return (
        CpuSet(row["id"] for row in rows if row["isolated"]),
        CpuSet(row["id"] for row in rows if not row["online"]),
    )


def _state(cpu: int, isolated: CpuSet, offline: CpuSet) -> Use:
    if cpu in offline:
        return Use.OFFLINE
    return Use.ISOLATED if cpu in isolated else Use.ONLINE


# cores


def _members(blocks: Iterable[Block]) -> CpuSet:
    return CpuSet(cpu for block in blocks for core in block.cores for cpu in core)


def _coreless(cell: _Pool) -> tuple[Block, ...]:
    """Return the pCPUs that a plan names, each by itself; a row from the first to the last of 16.

    What a row has between them and the plan does not name may be another cell's.
    """
    rows: dict[int, list[int]] = {}
    for cpu in cell.known:
        rows.setdefault(cpu // _ROW, []).append(cpu)
    spans = (range(row[0], row[-1] + 1) for row in rows.values())
    caches = (Cache(told=False, cores=tuple((cpu,) for cpu in span)) for span in spans)
    return (Block("", tuple(caches)),)


def _blocks(host: Json, cell: int) -> tuple[Block, ...]:
    """Return the cores of a cell by package, die and L3, in the order of their pCPUs."""
    rows = {row["id"]: row for row in host["cpus"] if row["cell"] == cell}
    several = len({row["die"] for row in rows.values()} - {None}) > 1
    titles = {cpu: _title(row, several=several) for cpu, row in rows.items()}
    if len(set(titles.values()) - {_UNTOLD}) == 1:  # an offline pCPU tells no package
        titles = dict.fromkeys(titles, min(set(titles.values()) - {_UNTOLD}))
    blocks: dict[str, dict[str, dict[int, list[int]]]] = {}
    for cpu, core in _cores(rows).items():
        caches = blocks.setdefault(titles[core], {})
        caches.setdefault(rows[core]["l3"] or "", {}).setdefault(core, []).append(cpu)
    told = sorted(blocks, key=lambda title: title == _UNTOLD)  # stable: in order of their pCPUs
    return tuple(Block(title, _caches(blocks[title])) for title in told)


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
    for cpu, row in sorted(rows.items(), key=lambda item: (not item[1]["online"], item[0])):
        core = cpu
        if row["siblings"] is not None:
            core = (CpuSet.parse(row["siblings"]) & CpuSet(rows) or CpuSet.of(cpu)).first()
        elif not row["online"] and row["core"] is not None:
            ids = row["package"], row["die"], row["core"]
            core = by_ids.setdefault(ids, cpu)
        if row["online"] and row["core"] is not None:
            by_ids.setdefault((row["package"], row["die"], row["core"]), core)
        owner[cpu] = core
    return {cpu: owner[cpu] for cpu in sorted(owner)}
