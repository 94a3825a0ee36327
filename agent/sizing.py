"""The pool of one NUMA cell: how large it is, and which pCPUs are in it.

Size is need, damped; the set is the best of that size among the candidates. A better set of the
same size is taken at once if the pool lost a pCPU or a reload asks, else only SMT neighbours can
be the reason, and it waits for the shrink delay.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from agent.choice import Request, choose
from agent.cpuset import EMPTY, union
from agent.pool import CellMemory, NUMACell, Placement, Smt, damp, need, total, unclamped_need

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.candidates import Candidates
    from agent.cpuset import CellId, CpuSet
    from agent.groups import CellGroups
    from agent.pool import CellSettings, Memory, Sizing
    from agent.question import Question
    from agent.snapshot import Guest
    from agent.topology import Cell


class Sizer:
    """Sizes the pools of one plan, cell by cell."""

    def __init__(
        self,
        question: Question,
        memory: Memory,
        candidates: Candidates,
        groups: Mapping[CellId, CellGroups],
    ) -> None:
        """Take what was found out about the host before the first cell."""
        self._q = question
        self._memory = memory
        self._candidates = candidates
        self._groups = groups
        lingers = any(cell.lingering for cell in memory.cells.values())
        self._in_use = _in_use(question, memory) if lingers else EMPTY

    def pool(
        self, cell: Cell, guests: Sequence[Guest], natives: Sequence[Guest]
    ) -> tuple[NUMACell, CellMemory]:
        """Return the pool for `guests` at home in `cell`; `natives` are those that belong there."""
        settings = self._q.settings.of(cell.id)
        before = self._memory.cells.get(cell.id, CellMemory())
        candidates = self._candidates.cells[cell.id]
        weight = total(guest.verdict.weight for guest in guests)
        wanted = need(settings, weight)
        delay = settings.shrink_delay if self._q.damped else 0.0
        sizing = damp(self._q.now, wanted, len(before.cpus & candidates), before, delay)
        now = before.cpus | before.lingering & self._in_use
        request = self._request(cell.id, sizing.size, now, guests)
        cpus, smt_since = self._choose(request, before, delay)
        natural = weight if natives == guests else total(g.verdict.weight for g in natives)
        planned = NUMACell(
            id=cell.id,
            guests=len(guests),
            weight=weight,
            ratio=settings.ratio,
            need=wanted,
            emulator_cpus=cpus,
            pool_now=now,
            candidates=candidates,
            claimed=self._candidates.claims.all & cell.cpus,
            shortage=max(0, unclamped_need(natural, settings.ratio) - len(cpus)),
            source=self._candidates.sources[cell.id],
            placement=placement(settings, cpus, self._q.host.isolated),
            realtime=self._candidates.claims.realtime & cell.cpus,
            reserved=settings.reserved_cpus & cell.cpus,
        )
        return planned, _remember(before, now, cpus, sizing, smt_since)

    def _request(self, cell: CellId, size: int, now: CpuSet, guests: Sequence[Guest]) -> Request:
        settings = self._q.settings.of(cell)
        return Request(
            size=size,
            candidates=self._candidates.cells[cell],
            groups=self._groups[cell],
            claimed=self._candidates.claims.all,
            realtime=self._candidates.claims.realtime,
            reserved=settings.reserved_cpus,
            present=now,
            carried=self._carried(cell, guests),
            mind_siblings=settings.smt is not Smt.ANY,
        )

    def _choose(
        self, request: Request, before: CellMemory, delay: float
    ) -> tuple[CpuSet, float | None]:
        """Return the pool, and since when a better set of the same size waits to be taken."""
        best = choose(request)
        whole = before.cpus <= request.candidates and len(before.cpus) == len(best)
        if best == before.cpus or not whole:
            return best, None
        since = self._q.now if before.smt_since is None else before.smt_since
        if self._q.now >= since + delay:
            return best, None
        return before.cpus, since

    def _carried(self, cell: CellId, guests: Sequence[Guest]) -> Mapping[int, int] | None:
        """Return how many of `guests` each pCPU carries alone, where that matters."""
        settings = self._q.settings.of(cell)
        isolated = self._q.host.isolated
        if placement(settings, self._candidates.cells[cell], isolated) is Placement.SHARED:
            return None
        carried = (held(guest, self._memory) for guest in guests)
        return Counter(cpu for cpu in carried if cpu is not None)


def placement(settings: CellSettings, cpus: CpuSet, isolated: CpuSet) -> Placement:
    """Return what AUTO means for `cpus`: isolated pCPUs have no load balancing."""
    if settings.placement is not Placement.AUTO:
        return settings.placement
    return Placement.SHARED if settings.ratio < 1 or cpus.isdisjoint(isolated) else Placement.SINGLE


def held(guest: Guest, memory: Memory) -> int | None:
    """Return the one pCPU that a guest was placed on, or was started on."""
    known = memory.guest(guest.uuid, guest.start)
    cpus = known.placed if known is not None and known.placed else guest.domain.emulator
    return cpus.only() if cpus is not None else None


def _in_use(question: Question, memory: Memory) -> CpuSet:
    """Return the pCPUs on which guests were placed when last heard of."""
    known = (memory.guest(guest.uuid, guest.start) for guest in question.guests if guest.active)
    return union(one.placed for one in known if one is not None and one.placed is not None)


def _remember(
    before: CellMemory, now: CpuSet, cpus: CpuSet, sizing: Sizing, smt_since: float | None
) -> CellMemory:
    after = CellMemory(
        cpus,
        lingering=now - cpus,
        oversize_since=sizing.oversize_since,
        oversize_need=sizing.oversize_need,
        smt_since=smt_since,
    )
    return before if after == before else after
