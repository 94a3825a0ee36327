"""The cycle: look, plan, compare, act, read back, remember.

Level-triggered: an event only says which guests to look at again. What a cycle remembers is
intent (pools, homes, originals) and what it gave up on for a while (busy and failing guests,
stuck threads); all else is read anew. Killed at any point, the next start derives the rest.

A guest's original pins are safe before it is first pinned: the persistent definition tells them,
or the state file does before the pin is sent.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from agent import pinner, planner, transition
from agent.checkpoint import StateError
from agent.cpuset import CpuSet
from agent.cpusets import NOTHING_MENDED, Mended
from agent.cycle import PARTIAL, Cause, CycleResult, remember, spared, undone
from agent.decision import Decision, Foresight, present_of
from agent.errors import GuestBusy, GuestGone
from agent.events import Named
from agent.policy import GuestSettings
from agent.pool import NOTHING, Memory, PoolSettings
from agent.transition import Kind, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agent.checkpoint import Checkpoint
    from agent.observer import Observer
    from agent.pinner import Outcome, Pinner
    from agent.planner import Plan
    from agent.port import Link
    from agent.sight import Cpusets, Snapshot
    from agent.snapshot import Guest
    from agent.transition import Step

BACK_OFF: Final = (5.0, 10.0, 30.0)
"""Seconds until a busy or failing guest is tried again, if no event says so before."""
_CROWD: Final = (0.25, 0.5, 1.0, 2.0, 5.0)
"""The same for one that was not tried, since too many calls were under way."""
PATIENCE_AT_END: Final = 5.0
"""Seconds that a clean stop or a release waits for calls under way."""
_RELEASING: Final = 20.0
"""Seconds for which a release goes on with guests that there was no room for."""
_GAP: Final = 1.0
"""Seconds by which a busy guest lets another one go first."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a cycle follows."""

    pool: PoolSettings = field(default_factory=PoolSettings)
    guests: GuestSettings = field(default_factory=GuestSettings)
    dry_run: bool = False


@dataclass(slots=True)
class _Retry:
    """A guest that is not tried before `due`."""

    due: float
    busy: bool
    attempts: int = 1
    crowded: bool = False  # it was not tried: too many calls were under way


class Rebalancer:
    """Owns the memory; one thread calls it."""

    def __init__(
        self,
        settings: Settings,
        observer: Observer,
        pins: Pinner,
        checkpoint: Checkpoint | None,
        memory: Memory = NOTHING,
        clock: Callable[[], float] = time.monotonic,
        mender: Cpusets | None = None,
    ) -> None:
        """Begin from `memory`; without a checkpoint nothing outlives this process.

        Without a `mender` cpusets that the kernel cut stay as they are.
        """
        self.settings = settings
        self._observer = observer
        self._pins = pins
        self._checkpoint = checkpoint
        self._memory = memory
        self._clock = clock
        self._mender = mender
        self._retries: dict[str, _Retry] = {}
        self._turn = ""
        self._stuck: dict[str, frozenset[int]] = {}
        self._deadline: float | None = None
        self._state_error: str | None = None
        self._foresight = Foresight()

    @property
    def deadline(self) -> float | None:
        """When time alone calls for a cycle, in the clock's seconds."""
        times = [retry.due for retry in self._retries.values()]
        if self._deadline is not None:
            times.append(self._deadline)
        first = min(times, default=math.inf)
        return None if first == math.inf else first

    def reconfigure(self, settings: Settings) -> None:
        """Follow other settings from the next cycle on."""
        self.settings = settings
        self._observer.reconsider()

    def reconnected(self) -> None:
        """Trust nothing that was read over an earlier connection."""
        self._observer.forget()
        self._retries.clear()

    def expected(self, uuid: str, tuned: Iterable[tuple[str, str]]) -> bool:
        """Tell whether tunables that an event reports are what is known already."""
        domain = self._observer.live(uuid)
        if domain is None or not (reported := tuple(tuned)):
            return False
        known = {"cputune.emulatorpin": domain.emulator}
        known |= {f"cputune.iothreadpin{t.id}": t.cpus for t in domain.iothreads}
        return all(name in known and _same(known[name], value) for name, value in reported)

    def cycle(self, link: Link, cause: Cause, named: Named | None = None) -> CycleResult:
        """Look, plan and act once; `named` is what events said, for the cycles that follow them.

        HypervisorAway if libvirt cannot be asked, Held if it cannot tell all now: then nothing was
        done.
        """
        started = self._clock()
        self._deadline = None  # should this cycle fail, time alone calls for no other one
        named = named or Named()
        late = self._pins.collect()
        self._absorb(late, started)
        if late:  # there is room again
            self._retries = {u: r for u, r in self._retries.items() if not r.crowded}
        for uuid in named.freed:
            self._retries.pop(uuid, None)
        due = self._take_turns(started)
        named.guests |= due | {outcome.step.uuid for outcome in late}
        looked = named if cause in PARTIAL else None
        mended = self._mend(cause)
        snapshot = self._observer.look(
            link,
            self.settings.guests,
            self._memory,
            looked,
            self._held(started),
            plugged=cause is Cause.CPU,
        )
        for uuid in snapshot.held:
            self._fail(uuid, started, busy=True)
        snapshot, decision = self._decide(snapshot, started, damped=cause is not Cause.RELOAD)
        plan, steps = decision.plan, decision.steps
        self._deadline = plan.deadline
        self._stuck = dict(decision.stuck)
        outcomes = late
        for uuid in due - {step.uuid for step in steps}:
            self._retries.pop(uuid, None)  # nothing is left to try
        if not self.settings.dry_run:
            outcomes = late + self._act(plan, snapshot, steps, cause)
        self._look_ahead(snapshot, named)
        return CycleResult(
            cause=cause,
            seconds=self._clock() - started,
            host=snapshot.host,
            plan=plan,
            guests=self._observer.guests(self._held(self._clock())),
            steps=steps,
            outcomes=tuple(outcomes),
            memory=self._memory,
            stuck=dict(self._stuck),
            failures=snapshot.failures,
            problems=snapshot.problems,
            state_error=self._state_error,
            mended=mended,
            dry_run=self.settings.dry_run,
            partition=snapshot.partition,
        )

    def release(self, link: Link) -> CycleResult:
        """Give every guest that is or was ours its original pins back."""
        started = self._clock()
        # What is under way first: it would move guests after they were released.
        self._absorb(self._pins.drain(PATIENCE_AT_END), started)
        snapshot = self._observer.look(link, self.settings.guests, self._memory, None)
        question = self._question(snapshot, started, damped=True)
        plan = planner.plan(question)
        ours = [g for g in snapshot.guests if self._is_ours(g)]
        steps = transition.releases(ours, present_of(question, self._stuck))
        outcomes = self._send_in_turn(steps)
        self._absorb(outcomes, self._clock())
        late = {o.step.uuid for o in outcomes if o.step.reason is not Reason.RELEASE}
        left = undone(steps, outcomes) | self._pins.under_way() | late
        kept = {u: m for u, m in self._memory.guests.items() if u in left}
        self._memory = replace(self._memory, cells={}, guests=kept)
        self._save(self._clock())
        return CycleResult(
            cause=Cause.RECONCILE,
            seconds=self._clock() - started,
            host=snapshot.host,
            plan=plan,
            guests=self._observer.guests(),
            steps=steps,
            outcomes=tuple(outcomes),
            memory=self._memory,
            stuck=dict(self._stuck),
            failures=snapshot.failures,
        )

    def _send_in_turn(self, steps: Iterable[Step]) -> list[Outcome]:
        """Take steps, those for which there is no room at first as soon as there is some.

        Not for ever: who ends the daemon waits for it.
        """
        jobs = pinner.jobs(steps, self._observer.place)
        outcomes: list[Outcome] = []
        end = self._clock() + _RELEASING
        while jobs:
            applied = self._pins.apply(jobs)
            outcomes += [*applied.outcomes, *self._pins.drain(PATIENCE_AT_END)]
            waiting = [job for job in jobs if job.uuid in applied.deferred]
            goes_on = len(waiting) < len(jobs) and self._clock() < end
            jobs = waiting if goes_on else []
        return outcomes

    def close(self) -> None:
        """Save what the next start is to begin from; a dry run leaves no trace."""
        if not self.settings.dry_run:
            self._save(self._clock())

    def _mend(self, cause: Cause) -> Mended:
        """Give libvirt's partitions back what the kernel took: before they are looked at."""
        if self._mender is None or cause in PARTIAL:
            return NOTHING_MENDED
        return self._mender.mend(
            self._observer.partitions(),
            self._observer.online(),
            plugged=cause is Cause.CPU,
            act=not self.settings.dry_run,
        )

    # decide

    def _decide(self, snapshot: Snapshot, now: float, *, damped: bool) -> tuple[Snapshot, Decision]:
        """Decide; who has just started and gets no pin, which would tell of it, is read first."""
        question = self._question(snapshot, now, damped=damped)
        decision = self._foresight.decide(question, self._stuck)
        pinned = () if self.settings.dry_run else {step.uuid for step in decision.steps}
        whole = self._observer.completed(snapshot, self.settings.guests, self._memory, pinned)
        if whole is not snapshot:
            decision = self._foresight.decide(replace(question, guests=whole.guests), self._stuck)
        return whole, decision

    def _look_ahead(self, snapshot: Snapshot, named: Named) -> None:
        """Get ready for the start of a guest that libvirt still holds: all but the pin itself."""
        for uuid in named.early:
            guests = self._observer.foresee(uuid, self._observer.guests())
            if guests is not None:
                then = replace(snapshot, guests=guests)
                question = self._question(then, self._clock(), damped=True)
                plan = self._foresight.decide(question, self._stuck).plan
                wanted = next(guest for guest in plan.guests if guest.uuid == uuid)
                if wanted.emulator_pcpus is not None and not self.settings.dry_run:
                    self._pins.prepare(uuid)

    def _question(self, snapshot: Snapshot, now: float, *, damped: bool) -> planner.Question:
        return planner.Question(
            host=snapshot.host,
            settings=self.settings.pool,
            manage=self.settings.guests.manage,
            guests=snapshot.guests,
            memory=self._memory,
            now=now,
            partition=snapshot.partition,
            damped=damped,
        )

    def _is_ours(self, guest: Guest) -> bool:
        managed = guest.verdict.policy in self.settings.guests.manage
        return managed or guest.uuid in self._memory.guests

    def _take_turns(self, now: float) -> set[str]:
        """Let what is due be tried: failing guests all, busy ones one at a time; return them.

        The one whose turn it is gets its next date now; success or failure will say better.
        """
        due = sorted((r.due, uuid) for uuid, r in self._retries.items() if r.due <= now)
        waits = bool(self._pins.under_way() & self._retries.keys())
        self._turn, tried = "", set[str]()
        for _, uuid in due:
            retry = self._retries[uuid]
            if retry.busy and waits:
                retry.due = now + _GAP
                continue
            tried.add(uuid)
            if not retry.busy:
                retry.due = math.inf
            else:
                self._turn, waits = uuid, True
                retry.due = now + BACK_OFF[-1]
        return tried

    def _held(self, now: float) -> set[str]:
        """Return the guests that are known to be busy and not to be tried now."""
        waiting = {u for u, r in self._retries.items() if r.busy and r.due > now}
        return waiting - {self._turn} | self._pins.under_way()

    # act

    def _act(
        self, plan: Plan, snapshot: Snapshot, steps: tuple[Step, ...], cause: Cause
    ) -> list[Outcome]:
        before = self._memory
        self._memory = spared(plan.memory, before, snapshot.failures)
        if any(s.uuid in snapshot.untold and not self._had_pinned(before, s.uuid) for s in steps):
            self._save(self._clock())  # the original would die with us
        now = self._clock()
        ready = [s for s in steps if cause not in PARTIAL or not self._backs_off(s.uuid, now)]
        jobs = pinner.jobs(ready, self._observer.place, self._observer.answered)
        applied = self._pins.apply(jobs)
        now = self._clock()
        self._absorb(applied.outcomes, now)
        for uuid in applied.deferred:
            self._fail(uuid, now, busy=False, crowded=True)
        left = undone(steps, applied.outcomes)
        self._memory = remember(self._memory, plan, before, snapshot.guests, left)
        active = {guest.uuid for guest in snapshot.guests if guest.active}
        self._retries = {u: r for u, r in self._retries.items() if u in active}
        self._save(now)
        return list(applied.outcomes)

    def _backs_off(self, uuid: str, now: float) -> bool:
        retry = self._retries.get(uuid)
        return retry is not None and not retry.busy and now < retry.due < math.inf

    def _had_pinned(self, before: Memory, uuid: str) -> bool:
        """Tell whether this start of a guest was pinned by us already."""
        now = self._memory.guests.get(uuid)
        known = before.guest(uuid, now.start) if now is not None else None
        return known is not None and known.placed is not None

    def _absorb(self, outcomes: Sequence[Outcome], now: float) -> None:
        """Take in what became of steps; those of one guest come together."""
        failed = {outcome.step.uuid for outcome in outcomes if outcome.error is not None}
        for outcome in outcomes:
            uuid = outcome.step.uuid
            if outcome.error is None:
                self._follow(outcome)
                if uuid not in failed:
                    self._place(outcome.step)
            elif not isinstance(outcome.error, GuestGone):
                self._fail(uuid, now, busy=isinstance(outcome.error, GuestBusy))

    def _follow(self, outcome: Outcome) -> None:
        step, settled = outcome.step, outcome.settled
        kernel = settled.kernel if settled else None
        self._observer.pinned(step.uuid, step.iothread, step.to, kernel)
        if settled is not None:
            self._stuck[step.uuid] = self._stuck.get(step.uuid, frozenset()) | set(settled.stuck)

    def _place(self, step: Step) -> None:
        """Remember where a guest is, now that none of its steps failed."""
        self._retries.pop(step.uuid, None)
        memory = self._memory.guests.get(step.uuid)
        if memory is not None and step.kind is Kind.EMULATOR:
            placed = None if step.reason is Reason.RELEASE else step.to
            guests = {**self._memory.guests, step.uuid: replace(memory, placed=placed)}
            self._memory = replace(self._memory, guests=guests)

    def _fail(self, uuid: str, now: float, *, busy: bool, crowded: bool = False) -> None:
        before = self._retries.get(uuid)
        attempts = before.attempts + 1 if before else 1
        delays = _CROWD if crowded else BACK_OFF
        delay = delays[min(attempts, len(delays)) - 1]
        self._retries[uuid] = _Retry(now + delay, busy, attempts, crowded)

    def _save(self, now: float) -> None:
        if self._checkpoint is None:
            return
        try:
            self._checkpoint.save(self._memory, now)
            self._state_error = None
        except StateError as error:
            self._state_error = str(error)


def _same(cpus: CpuSet | None, text: str) -> bool:
    try:
        return cpus == CpuSet.parse(text)
    except ValueError:
        return False
