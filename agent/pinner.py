"""Carrying steps out: a few workers, each with a connection of its own.

A pin of a busy guest blocks for 30 s, and five such calls freeze a connection for healthy guests
too. So each call has a worker to itself; a call that has not answered in `PATIENCE` is *overdue*:
its guest counts as busy. One that has not answered in `SLOW` no longer takes one of the `workers`
places, and another worker takes over. A later cycle, which the worker wakes, collects the rest.

At most `LIMIT` calls are under way in all; from the sixth on only evacuations and arrivals are
sent. While libvirt has been holding a guest, nobody can know which: who asks for that one keeps
everybody from defining others. So then what is not urgent is sent to guests that answered just now.

The steps of one guest are one job, carried out in order by one worker: they would wait for the
same job lock. A guest that will soon be pinned for the first time can be looked up by a worker
beforehand (`prepare`), while libvirt still starts it; that worker then gets its job.

When a pin is set, the kernel is made to follow and is read back (`threads.settle`) by the deciding
thread, once there is no other pin to send: a pin is what is urgent, and three threads at once would
only wait for each other between the many small reads.

One thread calls `apply`, `prepare` and `collect`; workers touch only their task and two queues.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum
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

SLOW: Final = 0.010
"""Seconds after which a call frees its place; most take less than one thousandth."""
PATIENCE: Final = 0.040
"""Seconds after which a call is overdue."""
LIMIT: Final = 8
"""Calls under way at most."""
_CROWDED: Final = 5
"""With this many under way, only what is urgent is sent."""
_URGENT: Final = frozenset({Reason.EVACUATE, Reason.ARRIVE})


class _Order(Enum):
    """What a worker does besides its tasks, once those it was given before are done."""

    RENEW = "connect anew"
    END = "end"


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
    answered: bool = False  # libvirt told of it just now: it does not hold it
    sent: float = 0.0
    slow: bool = False
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
        stalled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Pin through `connect()`'s hands; workers `nudge` when an overdue call returns.

        `stalled` tells whether libvirt has been holding a guest for some time.
        """
        self.workers = workers
        self._connect = connect
        self._settler = settler
        self._nudge = nudge
        self._clock = clock
        self._stalled = stalled
        self._done: SimpleQueue[tuple[_Worker, Job | str]] = SimpleQueue()
        self._under_way: dict[str, Job] = {}
        self._workers: list[_Worker] = []  # the one that was used last comes last
        self._ready: dict[str, _Worker] = {}  # who looked a guest up for its job to come

    def warm_up(self) -> None:
        """Have the workers connect now, so that the first pin does not wait for it."""
        while len(self._workers) < self.workers:
            self._spawn()

    def renew(self) -> None:
        """Have every worker connect anew, as soon as the call that it is in has returned."""
        for worker in self._workers:
            worker.todo.put(_Order.RENEW)
        self.warm_up()

    def resize(self, workers: int) -> None:
        """Let so many guests be pinned at the same time; idle workers beyond that end."""
        self.workers = workers
        idle = [worker for worker in self._workers if not worker.load]
        for worker in idle[: max(0, len(self._workers) - workers)]:
            self._workers.remove(worker)
            worker.todo.put(_Order.END)

    def prepare(self, uuid: str) -> None:
        """Have an idle worker look a guest up that will soon be pinned."""
        worker = self._idle()
        if worker is not None and uuid not in self._under_way:
            worker.looks_up = uuid
            while len(self._ready) >= LIMIT:  # those were not pinned after all
                del self._ready[next(iter(self._ready))]
            self._ready[uuid] = worker
            worker.give(uuid)

    def under_way(self) -> frozenset[str]:
        """Return the guests whose call has not returned yet."""
        return frozenset(self._under_way)

    def apply(self, jobs: Iterable[Job]) -> Applied:
        """Carry out `jobs` in the order given; return when all but overdue ones are done."""
        outcomes = self.collect()
        done: deque[Job] = deque()
        waiting = deque(job for job in jobs if job.uuid not in self._under_way)
        while waiting or self._fresh():
            while waiting and self._may_send(waiting[0]):
                self._send(waiting.popleft())
            if not self._fresh():
                break
            if done and not waiting and self._done.empty():
                outcomes += self._settled(done.popleft())  # nothing else to do till one returns
            else:
                done += self._next()
        for job in done:
            outcomes += self._settled(job)
        outcomes += self.collect()
        return Applied(tuple(outcomes), self.under_way(), frozenset(job.uuid for job in waiting))

    def collect(self) -> list[Outcome]:
        """Return the outcomes of calls that returned since; never waits."""
        outcomes: list[Outcome] = []
        while True:
            try:
                done = self._finished(*self._done.get_nowait())
            except Empty:
                return outcomes
            for job in done:
                outcomes += self._settled(job)

    def drain(self, timeout: float) -> list[Outcome]:
        """Wait up to `timeout` seconds for the calls under way, and return their outcomes."""
        outcomes: list[Outcome] = []
        end = self._clock() + timeout
        while self._under_way and (left := end - self._clock()) > 0:
            try:
                done = self._finished(*self._done.get(timeout=left))
            except Empty:
                break
            for job in done:
                outcomes += self._settled(job)
        return outcomes

    def stop(self) -> None:
        """Let idle workers end; those in a call end with the process."""
        for worker in self._workers:
            worker.todo.put(_Order.END)
        self._workers, self._ready = [], {}

    def _fresh(self) -> Sequence[Job]:
        return [job for job in self._under_way.values() if not job.overdue]

    def _may_send(self, job: Job) -> bool:
        others = sum(worker.load > 0 and worker.looks_up != job.uuid for worker in self._workers)
        quick = sum(not job.slow for job in self._fresh())
        if quick >= self.workers or others >= LIMIT:
            return False
        return job.urgent or (others < _CROWDED and (job.answered or not self._stalled()))

    def _send(self, job: Job) -> None:
        job.sent = self._clock()
        self._under_way[job.uuid] = job
        worker = self._ready.pop(job.uuid, None)
        if worker not in self._workers or (worker.load and worker.looks_up != job.uuid):
            worker = self._idle() or self._spawn()
        worker.give(job)

    def _idle(self) -> _Worker | None:
        """Return the idle worker that was used last: most of what it needs is still in a cache."""
        return next((worker for worker in reversed(self._workers) if not worker.load), None)

    def _next(self) -> list[Job]:
        """Wait for a job to be done, and return it, or for the first to be slow or overdue."""
        due = min(job.sent + (PATIENCE if job.slow else SLOW) for job in self._fresh())
        try:
            return self._finished(*self._done.get(timeout=max(0.0, due - self._clock())))
        except Empty:
            for job in self._fresh():
                age = self._clock() - job.sent
                job.slow = age >= SLOW
                job.overdue = age >= PATIENCE
            return []

    def _finished(self, worker: _Worker, task: Job | str) -> list[Job]:
        """Take a task back from a worker; return it if it is a job."""
        worker.load -= 1
        if isinstance(task, str):
            worker.looks_up = None
            return []
        del self._under_way[task.uuid]
        if worker in self._workers:
            self._workers.remove(worker)
            if len(self._workers) < max(self.workers, len(self._under_way)):
                self._workers.append(worker)
            else:
                worker.todo.put(_Order.END)
        return [task]

    def _settled(self, job: Job) -> list[Outcome]:
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

    def _spawn(self) -> _Worker:
        worker = _Worker(self._connect, self._clock)
        self._workers.append(worker)
        name = f"pin-{len(self._workers)}"
        threading.Thread(target=self._work, args=(worker,), name=name, daemon=True).start()
        return worker

    def _work(self, worker: _Worker) -> None:
        """Run in a worker's thread."""
        worker.connect()
        while (task := worker.todo.get()) is not _Order.END:
            if isinstance(task, _Order):
                worker.close()
                worker.connect()
                continue
            worker.carry_out(task)
            self._done.put((worker, task))
            # Marked overdue before this line: the deciding thread has stopped waiting, or will
            # collect once more after it marked. Either way nothing is lost.
            if isinstance(task, Job) and task.overdue:
                self._nudge()
        worker.close()


class _Worker:
    """One thread's connection and tasks: jobs, and guests to look up.

    The deciding thread gives and counts them; all else is the worker's own.
    """

    def __init__(self, connect: Callable[[], Hand], clock: Callable[[], float]) -> None:
        self.todo: SimpleQueue[Job | str | _Order] = SimpleQueue()
        self.load = 0  # tasks that were given and have not come back
        self.looks_up: str | None = None
        self._connect = connect
        self._clock = clock
        self._hand: Hand | None = None

    def give(self, task: Job | str) -> None:
        self.load += 1
        self.todo.put(task)

    def connect(self) -> None:
        try:
            self._hand = self._connect()
        except Exception:  # noqa: BLE001 - tried again with the first job, which then tells
            self._hand = None

    def close(self) -> None:
        if self._hand is not None:
            self._hand.close()
            self._hand = None

    def carry_out(self, task: Job | str) -> None:
        if isinstance(task, str):
            self._look_up(task)
            return
        for step in task.steps:
            started = self._clock()
            error = self._attempt(step)
            task.outcomes.append(Outcome(step, started, self._clock() - started, error))
            if error is not None:
                return

    def _look_up(self, uuid: str) -> None:
        if self._hand is not None:
            with contextlib.suppress(Exception):  # the pin to come will tell
                self._hand.look_up(uuid)

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


def jobs(
    steps: Iterable[Step],
    places: Callable[[str], Place | None],
    answered: Callable[[str], bool] = lambda _: False,
) -> list[Job]:
    """Return one job per guest, in the order of each guest's first step."""
    by_guest: dict[str, list[Step]] = {}
    for step in steps:
        by_guest.setdefault(step.uuid, []).append(step)
    return [Job(tuple(own), places(uuid), answered(uuid)) for uuid, own in by_guest.items()]
