"""Telling what a cycle did: metrics, one log line, systemd's status line.

A cycle that changed something writes one line; one that did not is debug. A lasting fault (see
`faults`, and cycles that fail) is logged when it begins and when it ends; in between it is a gauge,
and debug. All events are described in docs/logs.md.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from agent import accounting, logs, topology
from agent.cycle import drifts
from agent.errors import EmupoolError, GuestFailed
from agent.faults import faults
from agent.load import PoolLoad, Used
from agent.metrics import shown
from agent.recorder import Recorder
from agent.snapshot import followers
from agent.transition import Kind, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from agent.accounting import BillingSettings
    from agent.config import Change
    from agent.cpuset import CellId, CpuSet
    from agent.cycle import Cause, CycleResult
    from agent.faults import About
    from agent.metrics import Metrics
    from agent.pinner import Outcome
    from agent.planner import InstanceNUMACell, Plan
    from agent.pool import PoolSettings
    from agent.snapshot import Guest, Kernel
    from agent.threads import Times
    from agent.topology import ForeignCell, Host
    from agent.usage import EmulatorTime, PoolUsage

_SPELLED_OUT: Final = 20
"""Pins, or disagreements, that a line names; more pins are only counted."""


class Teller:
    """Tells cycles to whom it concerns; called by the deciding thread."""

    def __init__(
        self,
        metrics: Metrics,
        pool_usage: PoolUsage,
        emulator_time: EmulatorTime,
        times: Callable[[Kernel], Times | None],
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Read threads' times by `times`; `clock` is wall-clock seconds."""
        self._metrics = metrics
        self._pool_usage = pool_usage
        self._emulator_time = emulator_time
        self._times = times
        self._recorder = recorder or Recorder()
        self._clock = clock
        self._log = logs.get("emupool")
        self._faults: dict[About, str] = {}
        self._failing: type[Exception] | None = None
        self._arrivals: dict[str, float] = {}
        self._disputed: tuple[str, ...] = ()
        self._shown: Plan | None = None  # what the gauges were made from,
        self._shown_with: tuple[object, ...] = ()  # and all else that they tell

    def arrived(self, uuid: str, at: float) -> None:
        """Remember that a guest's start was announced at `at`, monotonic seconds."""
        self._arrivals.setdefault(uuid, at)

    def cycle(self, result: CycleResult, pool: PoolSettings, billing: BillingSettings) -> None:
        """Count, show and log one cycle."""
        ended = None if result.errors else self._clock()
        self._metrics.cycle_done(result.cause, result.seconds, ended)
        for outcome in result.outcomes:
            self._count(outcome)
        for drift in drifts(result):
            self._metrics.drifted(drift)
        self._show(result, pool, billing)
        self._log_cycle(result)
        self._log_faults(result)
        for directory, cpus in result.mended.given:
            empty = [one for one in result.mended.empty if one.startswith(f"{directory}/")]
            self._log.warning(
                "cpuset.mended", partition=directory, cpus=str(cpus), unpinned=empty[:_SPELLED_OUT]
            )

    def failed(self, cause: Cause, error: Exception) -> None:
        """Count a cycle that came to nothing; log it, unless the last one failed alike."""
        self._metrics.cycle_done(cause, 0.0, None)
        write = self._log.debug if self._failing is type(error) else self._log.error
        trace = None if isinstance(error, EmupoolError) else error
        write("cycle.failed", cause=str(cause), error=str(error), exc_info=trace)
        self._failing = type(error)

    def changed(self, changes: Iterable[Change]) -> None:
        """Log what a reload changes, key by key."""
        for change in changes:
            self._log.info(
                "config.changed",
                key=change.key,
                old=change.old,
                new=change.new,
                needs_restart=change.restart,
            )

    def refused(self, error: EmupoolError) -> None:
        """Log why a reload changes nothing, mistake by mistake."""
        for line in str(error).splitlines():
            self._log.error("config.refused", problem=line)

    def opinion(self, host: Host, told: Iterable[ForeignCell]) -> None:
        """Say, once, where libvirt sees another host than its kernel; the kernel is believed."""
        disputed = topology.disagreements(host, told)
        if disputed and disputed != self._disputed:
            self._log.warning("topology.disagrees", about=list(disputed[:_SPELLED_OUT]))
        self._disputed = disputed

    def used(self, result: CycleResult, *, iothreads: bool = True) -> None:
        """Measure what pools and threads used; after full cycles, which just read every thread.

        `iothreads` tells whether they follow the emulator threads.
        """
        pools = _pools(result)
        busy = self._pool_usage.busy(result.host.online, pools)
        for cell, share in busy.items():
            self._metrics.pool_busy(cell, share)
        planned = {guest.uuid: guest for guest in result.plan.guests}
        found: list[Used] = []
        spent: dict[tuple[CellId, Kind], tuple[float, float]] = {}
        for guest in result.guests:
            home, kernel = planned.get(guest.uuid), guest.kernel
            if home is not None and home.cell is not None and kernel is not None:
                with suppress(EmupoolError):  # it cannot be read: the next look tells
                    times = self._times(kernel)
                    found += self._used(guest, home, home.cell, times, spent, iothreads)
        for (cell, kind), (ran, waited) in spent.items():
            self._metrics.usage(cell, kind, ran, waited)
        self._emulator_time.forget(guest.uuid for guest in result.guests if guest.active)
        # In a dry run no guest is in its pool.
        loads = {} if result.dry_run else pools
        self._recorder.look(
            found, {cell: PoolLoad(len(cpus), busy.get(cell, 0.0)) for cell, cpus in loads.items()}
        )

    def _used(
        self,
        guest: Guest,
        home: InstanceNUMACell,
        cell: CellId,
        times: Times | None,
        spent: dict[tuple[CellId, Kind], tuple[float, float]],
        iothreads: bool,  # noqa: FBT001 - a setting's value
    ) -> Iterable[Used]:
        """Yield what a guest used, if that was in a pool; all of it is added to `spent`."""
        if times is None:
            return
        use = self._emulator_time.add(guest.uuid, guest.start, Kind.EMULATOR, times.emulator)
        inner = self._emulator_time.add(guest.uuid, guest.start, Kind.IOTHREAD, times.iothreads)
        for kind, (ran, waited) in ((Kind.EMULATOR, use), (Kind.IOTHREAD, inner)):
            before = spent.get((cell, kind), (0.0, 0.0))
            spent[cell, kind] = before[0] + ran, before[1] + waited
        if home.emulator_pcpus is None:
            return
        # Which iothread used what is not known: if one of them follows, all count.
        if iothreads and next(followers(guest, home.original), None) is not None:
            use = use[0] + inner[0], use[1] + inner[1]
        yield Used(guest.uuid, guest.start, cell, float(home.weight), *use)

    def _count(self, outcome: Outcome) -> None:
        step = outcome.step
        if outcome.error is not None:
            self._metrics.repin_failed(step.reason)
            return
        self._metrics.repinned(step.reason, outcome.seconds)
        if step.reason is Reason.ARRIVE and step.kind is Kind.EMULATOR:
            announced = self._arrivals.pop(step.uuid, None)
            if announced is not None:
                self._metrics.event_to_pinned(outcome.started + outcome.seconds - announced)

    def _show(self, result: CycleResult, pool: PoolSettings, billing: BillingSettings) -> None:
        waiting = {guest.uuid for guest in result.guests if guest.active and guest.busy}
        waiting |= {uuid for uuid, _ in result.errors}
        self._arrivals = {u: at for u, at in self._arrivals.items() if u in waiting}
        self._metrics.dry_run(result.dry_run)
        pools, stuck = _pools(result), _stuck_by_cell(result)
        beside = (result.guests, billing, pools, stuck)
        # One plan is of one host and one `pool`; as long as nothing happens, it is the very object.
        if result.plan is self._shown and beside == self._shown_with:
            return
        self._shown, self._shown_with = result.plan, beside
        bills = accounting.account(result.host, billing, result.plan, result.guests)
        unverified = _unverified_by_cell(result)
        self._metrics.show(shown(result.plan, result.host, pool, bills, stuck, unverified, pools))

    def _log_cycle(self, result: CycleResult) -> None:
        done = [outcome for outcome in result.outcomes if outcome.error is None]
        write = self._log.info if done else self._log.debug
        names = {guest.uuid: guest.label for guest in result.guests}
        write(
            "cycle.done",
            cause=str(result.cause),
            seconds=round(result.seconds, 6),
            pins=len(done),
            reasons=dict(Counter(str(outcome.step.reason) for outcome in done)),
            moved=[_told(outcome, names) for outcome in done[:_SPELLED_OUT]],
            pools={str(cell): str(cpus) for cell, cpus in _pools(result).items()},
            errors=[f"{names.get(u, u)}: {error}" for u, error in result.errors[:_SPELLED_OUT]],
        )

    def _log_faults(self, result: CycleResult) -> None:
        if self._failing is not None:
            self._log.info("cycle.recovered", cause=str(result.cause))
            self._failing = None
        now = faults(result, self._faults)
        traces: dict[About, BaseException | None] = {
            ("guest", uuid): error.__cause__
            for uuid, error in result.errors
            if isinstance(error, GuestFailed)
        }
        for about, text in now.items():
            if about not in self._faults:
                trace = traces.get(about)
                self._log.warning("fault.began", about=list(about), text=text, exc_info=trace)
        for about in self._faults:
            if about not in now:
                self._log.info("fault.ended", about=list(about))
        self._faults = now


def status_line(result: CycleResult) -> str:
    """Return what `systemctl status` shows: the pools and their guests."""
    parts = [
        f"cell {cell.id}: {cell.guests} guests on {cell.emulator_cpus or 'no pCPU'}"
        + (f", short of {cell.shortage}" if cell.shortage else "")
        for cell in result.plan.cells
    ]
    return ("dry run; " if result.dry_run else "") + "; ".join(parts)


def _told(outcome: Outcome, names: Mapping[str, str]) -> str:
    step = outcome.step
    what = "" if step.iothread is None else f" iothread {step.iothread}"
    name = names.get(step.uuid, step.uuid)
    return f"{name}{what}: {step.was or 'unpinned'} to {step.to} ({step.reason})"


def _pools(result: CycleResult) -> dict[CellId, CpuSet]:
    """Return the pCPUs that carry emulator threads after the cycle."""
    if result.dry_run:
        return {cell.id: cell.emulator_cpus for cell in result.plan.cells}
    return {cell: kept.cpus | kept.lingering for cell, kept in result.memory.cells.items()}


def _stuck_by_cell(result: CycleResult) -> Counter[CellId]:
    counts: Counter[CellId] = Counter()
    for guest in result.plan.guests:
        if guest.cell is not None:
            counts[guest.cell] += len(result.stuck.get(guest.uuid, ()))
    return counts


def _unverified_by_cell(result: CycleResult) -> Counter[CellId]:
    """Count the guests in a pool of which the kernel shows no cpuset that is the target."""
    seen = {guest.uuid: guest for guest in result.guests}
    return Counter(
        guest.cell
        for guest in result.plan.guests
        if guest.cell is not None
        and guest.emulator_pcpus is not None
        and _unconfirmed(seen.get(guest.uuid), guest.emulator_pcpus)
    )


def _unconfirmed(guest: Guest | None, target: CpuSet) -> bool:
    return guest is None or guest.kernel is None or guest.kernel.cpus != target
