"""How busy the pools are: what their pCPUs did, and what threads ran and waited.

`PoolUsage` reads the kernel's idle times through psutil. That lists the pCPUs on line, in order,
without naming them; when their number is not the number of pCPUs thought to be on line, nobody
knows which is which, and that reading is dropped. Times have a grain of 10 ms: a reading less than
`_WINDOW` after the one before is dropped too, and the last answer stands.

`EmulatorTime` turns what each thread used since its birth into differences. A thread that is new
in a guest already known was born since the last look, so all that it used counts (QEMU's workers
live for seconds); of a guest seen for the first time nothing counts. A thread id that was reused
shows as times that went back, and is a new thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from agent.cpuset import CellId, CpuSet
    from agent.transition import Kind

_WINDOW: Final = 0.5
"""Seconds between readings: with the grain of 10 ms, shares are right to two hundredths."""


class CpuTimes(Protocol):
    """What psutil tells of one pCPU, in seconds; `guest` times are also in `user` and `nice`."""

    @property
    def user(self) -> float:
        """Programs, and guests' vCPUs."""

    @property
    def nice(self) -> float:
        """The same at low priority."""

    @property
    def system(self) -> float:
        """The kernel for programs."""

    @property
    def idle(self) -> float:
        """Nothing to do."""

    @property
    def iowait(self) -> float:
        """Nothing to do but wait for a disk: idle too."""

    @property
    def irq(self) -> float:
        """Interrupts."""

    @property
    def softirq(self) -> float:
        """Their deferred part."""

    @property
    def steal(self) -> float:
        """Runnable, but the hypervisor above ran someone else."""


def read_cpu_times() -> Sequence[CpuTimes]:
    """Return the times of the pCPUs on line, in the order of their ids."""
    times: Sequence[CpuTimes] = psutil.cpu_times(percpu=True)
    return times


class PoolUsage:
    """The share of time that pools were not idle since the last call."""

    def __init__(self, read: Callable[[], Sequence[CpuTimes]] = read_cpu_times) -> None:
        """Measure from the first call of `busy` on."""
        self._read = read
        self._before: dict[int, tuple[float, float]] = {}
        self._spent: dict[int, tuple[float, float]] = {}

    def busy(self, online: CpuSet, pools: Mapping[CellId, CpuSet]) -> dict[CellId, float]:
        """Return 0 to 1 by cell, without the cells whose pools were not measured yet."""
        times = self._read()
        if len(times) == len(online):
            now = {cpu: _sums(spent) for cpu, spent in zip(online, times, strict=True)}
            self._advance(now)
        return {
            cell: share for cell, cpus in pools.items() if (share := self._share(cpus)) is not None
        }

    def _advance(self, now: dict[int, tuple[float, float]]) -> None:
        """Take `now` as the new reading, unless too little time has passed since the last."""
        spent = {
            cpu: (max(0.0, busy - self._before[cpu][0]), max(0.0, idle - self._before[cpu][1]))
            for cpu, (busy, idle) in now.items()
            if cpu in self._before
        }
        if spent and max(map(sum, spent.values())) < _WINDOW:
            return
        self._before, self._spent = now, spent

    def _share(self, cpus: CpuSet) -> float | None:
        measured = [self._spent[cpu] for cpu in cpus if cpu in self._spent]
        busy = sum(busy for busy, _ in measured)
        total = busy + sum(idle for _, idle in measured)
        return busy / total if total else None


def _sums(times: CpuTimes) -> tuple[float, float]:
    """Return (busy, idle) seconds."""
    busy = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    return busy, times.idle + times.iowait


Spent = tuple[int, int, int]
"""A thread's id, and since its birth the ns on a CPU and the ns ready but waiting."""


class EmulatorTime:
    """What threads of guests used, as differences."""

    def __init__(self) -> None:
        """Know no guest."""
        self._starts: dict[str, str] = {}
        self._threads: dict[tuple[str, Kind], dict[int, tuple[int, int]]] = {}

    def add(
        self, uuid: str, start: str, kind: Kind, threads: Iterable[Spent]
    ) -> tuple[float, float]:
        """Return the seconds that `threads` ran and waited since the last call for this guest.

        `start` tells one start of a guest from the next. Threads that are missing are forgotten.
        """
        if self._starts.get(uuid) != start:
            self._drop(uuid)
            self._starts[uuid] = start
        before = self._threads.get((uuid, kind))
        now = {tid: (ran, waited) for tid, ran, waited in threads}
        self._threads[uuid, kind] = now
        if before is None:
            return 0.0, 0.0
        grown = [_grown(before.get(tid, (0, 0)), used) for tid, used in now.items()]
        return sum(ran for ran, _ in grown) / 1e9, sum(waited for _, waited in grown) / 1e9

    def forget(self, alive: Iterable[str]) -> None:
        """Forget all guests that are not among `alive`, by UUID."""
        for uuid in self._starts.keys() - set(alive):
            self._drop(uuid)

    def _drop(self, uuid: str) -> None:
        self._starts.pop(uuid, None)
        for key in [key for key in self._threads if key[0] == uuid]:
            del self._threads[key]


def _grown(before: tuple[int, int], now: tuple[int, int]) -> tuple[int, int]:
    """Return what was used between two readings; times that went back are another thread's."""
    if now[0] < before[0] or now[1] < before[1]:
        return now
    return now[0] - before[0], now[1] - before[1]
