"""Carrying steps out: a few workers, each with a connection of its own.

A pin of a busy guest blocks for 30 s, and five such calls freeze a connection for healthy guests
too. So each call has a worker to itself; a call that has not answered in `PATIENCE` is *overdue*:
its guest counts as busy, it no longer takes one of the `workers` places, and another worker takes
over. At most `LIMIT` calls are under way in all; from the sixth on only evacuations and arrivals
are sent. What an overdue call brings in the end is collected by a later cycle, which the worker
wakes.

The steps of one guest are one job, carried out in order by one worker: they would wait for the
same job lock. When a pin is set, the kernel is made to follow and is read back (`threads.settle`)
by the deciding thread: it has nothing else to do then, and three threads at once would only wait
for each other between the many small reads.

One thread calls `apply` and `collect`; workers touch nothing but their job and two queues.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol

from agent.errors import EmupoolError, HypervisorAway, unforeseen
from agent.transition import Kind, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agent.cpuset import CpuSet
    from agent.port import Hand
    from agent.snapshot import Settled
    from agent.threads import Place
    from agent.transition import Step

PATIENCE: Final = 0.040
"""Seconds after which a call is overdue."""
LIMIT: Final = 8
"""Calls under way at most."""
_CROWDED: Final = 5
"""With this many under way, only what is urgent is sent."""
_URGENT: Final = frozenset({Reason.EVACUATE, Reason.ARRIVE})


class Settler(Protocol):
    """Makes the kernel follow a pin; `agent.threads.Threads` does."""

    def settle(self, place: Place, target: CpuSet) -> Settled:
        """Loosen the emulator threads and read them back."""

    def settle_iothread(self, place: Place, iothread: int, target: CpuSet) -> Settled:
        """Loosen one iothread and read it back."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one step."""

    step: Step
    started: float  # monotonic seconds
    seconds: float
    error: EmupoolError | None = None
    settled: Settled | None = None  # None: failed, or the guest's threads cannot be found


@dataclass(slots=True)
class Job:
    """The steps of one guest, in order, and where its threads are."""

    steps: tuple[Step, ...]
    place: Place | None
    sent: float = 0.0
    overdue: bool = False
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def uuid(self) -> str:
        """The guest."""
        return self.steps[0].uuid

    @property
    def urgent(self) -> bool:
        """Whether it goes ahead even when many calls are stuck."""
        return self.steps[0].reason in _URGENT


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` did: outcomes so far; guests overdue, and guests not tried at all."""

    outcomes: tuple[Outcome, ...]
    overdue: frozenset[str]
    deferred: frozenset[str]


class Pinner:
    """Sends jobs to workers; see the module."""

    def __init__(
        self,
        connect: Callable[[], Hand],
        settler: Settler,
        nudge: Callable[[], None],
        workers: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Pin through `connect()`'s hands; workers `nudge` when an overdue call returns."""
        self.workers = workers
        self._connect = connect
        self._settler = settler
        self._nudge = nudge
        self._clock = clock
        self._todo: SimpleQueue[Job | None] = SimpleQueue()
        self._done: SimpleQueue[Job] = SimpleQueue()
        self._under_way: dict[str, Job] = {}
        self._threads = 0

    def warm_up(self) -> None:
        """Have the workers connect now, so that the first pin does not wait for it."""
        while self._threads < self.workers:
            self._spawn()

    def under_way(self) -> frozenset[str]:
        """Return the guests whose call has not returned yet."""
        return frozenset(self._under_way)

    def apply(self, jobs: Iterable[Job]) -> Applied:
        """Carry out `jobs` in the order given; return when all but overdue ones are done."""
        waiting = deque(job for job in jobs if job.uuid not in self._under_way)
        outcomes: list[Outcome] = []
        while waiting or self._fresh():
            while waiting and self._may_send(waiting[0]):
                self._send(waiting.popleft())
            if not self._fresh():
                break
            outcomes += self._next()
        outcomes += self.collect()
        return Applied(tuple(outcomes), self.under_way(), frozenset(job.uuid for job in waiting))

    def collect(self) -> list[Outcome]:
        """Return the outcomes of calls that returned since; never waits."""
        outcomes: list[Outcome] = []
        while True:
            try:
                outcomes += self._finished(self._done.get_nowait())
            except Empty:
                return outcomes

    def drain(self, timeout: float) -> list[Outcome]:
        """Wait up to `timeout` seconds for the calls under way, and return their outcomes."""
        outcomes: list[Outcome] = []
        end = self._clock() + timeout
        while self._under_way and (left := end - self._clock()) > 0:
            try:
                outcomes += self._finished(self._done.get(timeout=left))
            except Empty:
                break
        return outcomes

    def stop(self) -> None:
        """Let idle workers end; those in a call end with the process."""
        for _ in range(self._threads):
            self._todo.put(None)
        self._threads = 0

    def _fresh(self) -> Sequence[Job]:
        return [job for job in self._under_way.values() if not job.overdue]

    def _may_send(self, job: Job) -> bool:
        if len(self._fresh()) >= self.workers or len(self._under_way) >= LIMIT:
            return False
        return job.urgent or len(self._under_way) < _CROWDED

    def _send(self, job: Job) -> None:
        job.sent = self._clock()
        self._under_way[job.uuid] = job
        if self._threads < len(self._under_way):
            self._spawn()
        self._todo.put(job)

    def _next(self) -> list[Outcome]:
        """Wait for a job to be done, or for the oldest fresh one to become overdue."""
        oldest = min(job.sent for job in self._fresh())
        try:
            return self._finished(
                self._done.get(timeout=max(0.0, oldest + PATIENCE - self._clock()))
            )
        except Empty:
            for job in self._fresh():
                if self._clock() - job.sent >= PATIENCE:
                    job.overdue = True
            return []

    def _finished(self, job: Job) -> list[Outcome]:
        del self._under_way[job.uuid]
        if self._threads > max(self.workers, len(self._under_way)):
            self._threads -= 1
            self._todo.put(None)
        return [self._settle(outcome, job.place) for outcome in job.outcomes]

    def _settle(self, outcome: Outcome, place: Place | None) -> Outcome:
        """Make the kernel follow a pin that was set, and read back what it did."""
        step = outcome.step
        if outcome.error is not None or place is None:
            return outcome
        try:
            if step.iothread is None:
                settled = self._settler.settle(place, step.to)
            else:
                settled = self._settler.settle_iothread(place, step.iothread, step.to)
        except EmupoolError as error:
            return replace(outcome, error=error)
        except Exception as error:  # noqa: BLE001 - one guest's surprise must not end the cycle
            return replace(outcome, error=unforeseen(error))
        return replace(outcome, settled=settled)

    def _spawn(self) -> None:
        self._threads += 1
        worker = _Worker(self._connect, self._clock)
        name = f"pin-{self._threads}"
        threading.Thread(target=self._work, args=(worker,), name=name, daemon=True).start()

    def _work(self, worker: _Worker) -> None:
        """Run in a worker's thread."""
        worker.connect()
        while (job := self._todo.get()) is not None:
            worker.carry_out(job)
            self._done.put(job)
            # Marked overdue before this line: the deciding thread has stopped waiting, or will
            # collect once more after it marked. Either way nothing is lost.
            if job.overdue:
                self._nudge()
        worker.close()


class _Worker:
    """One thread's connection, and what it does with a job."""

    def __init__(self, connect: Callable[[], Hand], clock: Callable[[], float]) -> None:
        self._connect = connect
        self._clock = clock
        self._hand: Hand | None = None

    def connect(self) -> None:
        try:
            self._hand = self._connect()
        except Exception:  # noqa: BLE001 - tried again with the first job, which then tells
            self._hand = None

    def close(self) -> None:
        if self._hand is not None:
            self._hand.close()
            self._hand = None

    def carry_out(self, job: Job) -> None:
        for step in job.steps:
            started = self._clock()
            error = self._attempt(step)
            job.outcomes.append(Outcome(step, started, self._clock() - started, error))
            if error is not None:
                return

    def _attempt(self, step: Step) -> EmupoolError | None:
        try:
            self._pin(step)
        except EmupoolError as error:
            return error
        except Exception as error:  # noqa: BLE001 - one guest's surprise must not end the worker
            return unforeseen(error)
        return None

    def _pin(self, step: Step) -> None:
        """Pin, over a new connection if the one at hand turns out to be dead."""
        if self._hand is not None:
            try:
                self._call(self._hand, step)
            except HypervisorAway:
                self.close()
            else:
                return
        self._hand = self._connect()
        self._call(self._hand, step)

    def _call(self, hand: Hand, step: Step) -> None:
        if step.kind is Kind.EMULATOR:
            hand.pin_emulator(step.uuid, step.to)
        elif step.iothread is not None:
            hand.pin_iothread(step.uuid, step.iothread, step.to)


def jobs(steps: Iterable[Step], places: Callable[[str], Place | None]) -> list[Job]:
    """Return one job per guest, in the order of each guest's first step."""
    by_guest: dict[str, list[Step]] = {}
    for step in steps:
        by_guest.setdefault(step.uuid, []).append(step)
    return [Job(tuple(own), places(uuid)) for uuid, own in by_guest.items()]
