"""The cells of a host as they are drawn, from the documents of the command line."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from agent import words
from agent.cpuset import EMPTY, CpuSet, union
from agent.picture.cores import Block, Core, blocks, coreless, members
from agent.picture.guests import AMISS
from agent.picture.uses import IN_PLAN, IN_TOPOLOGY, Flags, Pool, Use

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agent.words import Json


class Tone(Enum):
    """How a fact is told."""

    PLAIN = "plain"
    STRONG = "strong"
    ODD = "odd"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is told of a cell, beside its pCPUs."""

    name: str
    text: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True)
class CellPicture:
    """What is drawn of one cell."""

    id: int
    facts: tuple[Fact, ...]
    blocks: tuple[Block, ...]
    uses: Mapping[int, Use]
    guests: Mapping[int, int] = field(default_factory=dict)  # how many a pool pCPU carries
    cored: bool = True  # False: nobody told which pCPUs are one core

    @property
    def title(self) -> str:
        """What it is called."""
        return f"cell {self.id}"

    @property
    def cores(self) -> list[Core]:
        """All of them, in order."""
        return [core for block in self.blocks for core in block.cores]

    def by_use(self) -> Iterator[tuple[Use, CpuSet]]:
        """Yield each use that there is, and its pCPUs."""
        found: dict[Use, list[int]] = {}
        for cpu, use in self.uses.items():
            found.setdefault(use, []).append(cpu)
        yield from ((use, CpuSet(found[use])) for use in Use if use in found)


@dataclass(frozen=True, slots=True)
class Picture:
    """A host: its cells by id, and the pCPUs that none of them has (offline ones, above all)."""

    cells: tuple[CellPicture, ...]
    meanings: Mapping[Use, str]
    homeless: CpuSet = EMPTY

    def meaning(self, use: Use) -> str:
        """Return what a use is called."""
        return self.meanings.get(use, "not told")

    def legend(self) -> Iterator[tuple[Use, str]]:
        """Yield each use that is seen somewhere and has a meaning."""
        seen = {use for cell in self.cells for use in cell.uses.values()}
        yield from ((use, self.meanings[use]) for use in Use if use in seen & self.meanings.keys())


def of_topology(host: Json) -> Picture:
    """Return the picture of a `topology` document."""
    flags = Flags.of(host)
    cells = []
    for row in host["cells"]:
        found = blocks(host, row["id"])
        uses = {cpu: flags.use(cpu) for cpu in members(found)}
        facts = tuple(_topology_facts(host, row, flags, members(found)))
        cells.append(CellPicture(row["id"], facts, found, uses))
    return Picture(tuple(cells), IN_TOPOLOGY, _homeless(host))


def of_plan(plan: Json, host: Json | None = None) -> Picture:
    """Return the picture of a `plan` or `status` document; without a host, cores are not known."""
    flags = Flags() if host is None else Flags.of(host)
    carried = _carried(plan)
    cells = []
    for row in plan["cells"]:
        pool = Pool.of(row, flags)
        found = coreless(pool.known) if host is None else blocks(host, row["id"])
        uses = {cpu: pool.use(cpu) for cpu in members(found)}
        if host is None:
            uses |= dict.fromkeys(members(found) - pool.known, Use.UNTOLD)
        guests = {cpu: carried[cpu] for cpu in pool.cpus | pool.now if carried[cpu]}
        facts = (*_plan_facts(plan, row, pool, guests), *_flag_facts(flags, members(found)))
        cells.append(
            CellPicture(row["id"], facts, found, uses, guests, cored=host is not None),
        )
    return Picture(tuple(cells), IN_PLAN, EMPTY if host is None else _homeless(host))


def _carried(plan: Json) -> Counter[int]:
    """Return how many guests each pCPU carries; those of one pool are counted at once."""
    alike = Counter(row["emulator_pcpus"] for row in plan["guests"] if row["emulator_pcpus"])
    carried: Counter[int] = Counter()
    for text, guests in alike.items():
        for cpu in CpuSet.parse(text):
            carried[cpu] += guests
    return carried


def _homeless(host: Json) -> CpuSet:
    """Return the pCPUs that no listed cell has."""
    cells = {cell["id"] for cell in host["cells"]}
    return CpuSet(row["id"] for row in host["cpus"] if row["cell"] not in cells)


# facts


def _topology_facts(host: Json, cell: Json, flags: Flags, cpus: CpuSet) -> Iterator[Fact]:
    online = CpuSet.parse(cell["cpus"])
    rows = [row for row in host["cpus"] if row["id"] in online]
    yield Fact("pCPUs", f"{len(online)}: {words.few(cell['cpus'])}")
    yield from _flag_facts(flags, cpus)
    yield Fact("cores", _cores_and_caches(rows))
    if sharers := _sharers(host, cell, rows):
        yield Fact("L3", f"shared with cell {words.cpus(str(sharers))}")
    for level in ("package", "die"):
        ids = sorted({row[level] for row in rows} - {None})
        if ids and (level == "package" or len(ids) > 1):
            yield Fact(level, ", ".join(map(str, ids)))
    if cell["memory_bytes"] is not None:
        yield Fact("memory", f"{cell['memory_bytes'] / 2**30:.1f} GiB")
    if distances := _distances(cell):
        yield Fact("distance", distances)


def _flag_facts(flags: Flags, cpus: CpuSet) -> Iterator[Fact]:
    if isolated := flags.isolated & cpus:
        yield Fact("isolated", words.few(str(isolated)), Tone.ODD)
    if offline := flags.offline & cpus:
        yield Fact("offline", words.few(str(offline)), Tone.WRONG)


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


def _plan_facts(plan: Json, row: Json, pool: Pool, guests: Mapping[int, int]) -> Iterator[Fact]:
    at_home = words.counted(row["guests"], "guest")
    weight = "" if row["weight"] == str(row["guests"]) else f" of weight {row['weight']}"
    yield Fact("need", f"{row['need']} for {at_home}{weight} at ratio {row['ratio']}")
    was = "" if pool.cpus == pool.now else f", was {words.cpus(row['pool_now'], 'none')}"
    yield Fact("pool", words.cpus(row["pool"], "none") + was, Tone.STRONG)
    if guests:
        yield Fact("carries", _loads(guests, pool.cpus))
    if row["shortage"]:
        yield Fact("short of", words.counted(row["shortage"], "pCPU"), Tone.WRONG)
    if amiss := _amiss(plan, row["id"]):
        yield Fact("amiss", amiss, Tone.ODD)
    room = pool.candidates - pool.cpus
    yield Fact("room", f"{len(room)} more: {words.cpus(str(room))}" if room else "none")
    yield Fact("claimed", words.cpus(row["claimed"], "none"))
    if pool.realtime:
        yield Fact("real-time", words.cpus(str(pool.realtime)))
    if pool.reserved:
        yield Fact("reserved", words.cpus(str(pool.reserved)))


def _loads(guests: Mapping[int, int], pool: CpuSet) -> str:
    """Return how many guests pCPUs carry: `3 guests each`, or `2 guests on 4, 1 guest on 5-6`."""
    alike: dict[int, list[int]] = {}
    for cpu, count in sorted(guests.items()):
        alike.setdefault(count, []).append(cpu)
    if len(alike) == 1 and pool == CpuSet(guests):
        (count,) = alike
        return words.counted(count, "guest") + (" each" if len(pool) > 1 else "")
    return ", ".join(
        f"{words.counted(count, 'guest')} on {words.cpus(str(CpuSet(cpus)))}"
        for count, cpus in alike.items()
    )


def _amiss(plan: Json, cell: int) -> str:
    """Return how many guests of a cell are not simply placed, by state."""
    states = Counter(row["state"] for row in plan["guests"] if row["cell"] == cell)
    return ", ".join(f"{states[state]} {state}" for state in AMISS if states[state])
