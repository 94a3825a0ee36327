"""Carrying steps out: order, limits, calls that hang, connections that die, nothing lost.

The pinner's clock stands still here, so that a call is overdue only if a test says so.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from agent.cpuset import CpuSet
from agent.errors import (
    GuestBusy,
    GuestFailed,
    GuestGone,
    HypervisorAway,
    NotPermitted,
    TargetRefused,
)
from agent.pinner import LIMIT, PATIENCE, SLOW, Job, Pinner, _Order, jobs
from agent.transition import Kind, Reason, Step
from tests.fake import Call, Clock, Fake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from agent.pinner import Outcome
    from agent.threads import Place
    from tests.fakeguest import Hold

TARGET = CpuSet.of(2, 3)


def pin_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("pin-")}


class Bench:
    """A pinner over a fake."""

    def __init__(
        self,
        workers: int = 3,
        clock: Callable[[], float] | None = None,
        nudge: Callable[[], None] | None = None,
        stalled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.before = pin_threads()
        self.fake = Fake()
        self.clock = Clock()
        self.nudges = threading.Semaphore(0)
        self.pinner = Pinner(
            self.fake.hand,
            self.fake,
            nudge or self.nudges.release,
            workers,
            clock or self.clock,
            stalled,
        )

    def guests(self, count: int, **properties: object) -> list[str]:
        return [self.fake.create(f"guest-{n}", **properties) for n in range(count)]

    def hold(self, uuids: Iterable[str]) -> list[Hold]:
        """Let pins of these guests wait, and time pass when they begin to."""
        return [self.fake.hold(uuid, self.pass_time) for uuid in uuids]

    def pass_time(self) -> None:
        self.clock.now += 1

    def jobs(self, uuids: Iterable[str], reason: Reason = Reason.ARRIVE) -> list[Job]:
        return jobs((step(uuid, reason) for uuid in uuids), self.place)

    def place(self, uuid: str) -> Place | None:
        process = self.fake.guests[uuid].process
        return process.place if process else None

    def late(self) -> list[Outcome]:
        """Wait until the pinner says that a call has returned, and collect."""
        assert self.nudges.acquire(timeout=10), "nobody was told that a call returned"
        return self.pinner.collect()

    def workers(self) -> set[threading.Thread]:
        return pin_threads() - self.before


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.pinner.stop()


@pytest.fixture
def lonely() -> Iterator[Bench]:
    """One with one worker: all goes one after the other."""
    made = Bench(workers=1)
    yield made
    made.pinner.stop()


def step(
    uuid: str,
    reason: Reason = Reason.ARRIVE,
    iothread: int | None = None,
    to: CpuSet = TARGET,
) -> Step:
    kind = Kind.EMULATOR if iothread is None else Kind.IOTHREAD
    return Step(uuid, kind, iothread, None, to, reason)


def errors(outcomes: Sequence[Outcome]) -> list[type | None]:
    return [None if outcome.error is None else type(outcome.error) for outcome in outcomes]


# --- steps ---------------------------------------------------------------------------------------


def test_the_steps_of_one_guest_are_one_job_in_their_order() -> None:
    one, two, three = step("a"), step("b"), step("a", iothread=1)
    made = jobs([one, two, three], lambda _: None)
    assert [(job.uuid, job.steps) for job in made] == [("a", (one, three)), ("b", (two,))]


def test_the_steps_of_a_guest_are_carried_out_in_order_and_settled(bench: Bench) -> None:
    (uuid,) = bench.guests(1, iothreads=2)
    steps = [step(uuid), step(uuid, iothread=2), step(uuid, iothread=1)]
    applied = bench.pinner.apply(jobs(steps, bench.place))
    assert [outcome.step for outcome in applied.outcomes] == steps
    assert [call.iothread for call in bench.fake.pins] == [None, 2, 1]
    settled = [call for call in bench.fake.log if call.name == "settle"]
    assert [(call.cpus, call.iothread) for call in settled] == [
        (TARGET, None),
        (TARGET, 2),
        (TARGET, 1),
    ]
    for outcome in applied.outcomes:
        assert outcome.error is None
        assert outcome.settled is not None
        assert outcome.settled.verified
        assert outcome.settled.stuck == ()
    assert [bench.fake.masks(uuid, n) for n in (None, 1, 2)] == [{TARGET}] * 3
    assert not applied.overdue | applied.deferred


def test_threads_are_loosened_so_that_the_next_pin_widens_all_of_them(bench: Bench) -> None:
    (uuid,) = bench.guests(1, emulatorpin="2")
    wide = CpuSet.of(1, 2, 3)
    bench.fake.pin(uuid, wide)
    assert bench.fake.masks(uuid) == {wide, CpuSet.of(2)}  # the trap: call_rcu stays narrow
    bench.pinner.apply(jobs([step(uuid, to=wide)], bench.place))
    assert bench.fake.masks(uuid) == {wide}


def test_without_the_right_to_loosen_stuck_threads_are_named(bench: Bench) -> None:
    (uuid,) = bench.guests(1, emulatorpin="2")
    bench.fake.may_loosen = False
    (outcome,) = bench.pinner.apply(bench.jobs([uuid])).outcomes
    assert outcome.error is None
    assert outcome.settled is not None
    assert not outcome.settled.permitted
    assert len(outcome.settled.stuck) == 1


def test_a_guest_whose_threads_cannot_be_found_is_pinned_all_the_same(bench: Bench) -> None:
    (uuid,) = bench.guests(1)
    (outcome,) = bench.pinner.apply(jobs([step(uuid)], lambda _: None)).outcomes
    assert (outcome.error, outcome.settled) == (None, None)
    assert bench.fake.record(uuid) == TARGET
    assert bench.fake.count("settle") == 0


def test_a_guest_that_ends_before_it_is_settled_is_gone(bench: Bench) -> None:
    (uuid,) = bench.guests(1)
    work = bench.jobs([uuid])
    bench.fake.hook = lambda call: bench.fake.destroy(uuid) if call.name == "settle" else None
    assert errors(bench.pinner.apply(work).outcomes) == [GuestGone]


@pytest.mark.parametrize("error", [TargetRefused, GuestGone, NotPermitted, GuestFailed])
def test_an_error_ends_the_steps_of_its_guest_only(
    lonely: Bench, error: type[TargetRefused]
) -> None:
    bad, good = lonely.guests(2, iothreads=1)
    lonely.fake.fail("pin_emulator", error("no"), bad)
    steps = [step(bad), step(good), step(bad, iothread=1), step(good, iothread=1)]
    applied = lonely.pinner.apply(jobs(steps, lonely.place))
    assert errors(applied.outcomes) == [error, None, None]
    assert [call.uuid for call in lonely.fake.pins] == [good, good]


def test_a_surprise_in_a_call_is_a_failure_of_its_guest(lonely: Bench) -> None:
    bad, good = lonely.guests(2)

    def surprise(call: Call) -> None:
        if call.uuid == bad:
            raise ZeroDivisionError("surprise")

    lonely.fake.hook = surprise
    applied = lonely.pinner.apply(lonely.jobs([bad, good]))
    assert errors(applied.outcomes) == [GuestFailed, None]
    failure = applied.outcomes[0].error
    assert "ZeroDivisionError: surprise" in str(failure)
    assert isinstance(failure, GuestFailed)
    assert isinstance(failure.__cause__, ZeroDivisionError)


def test_no_steps_take_no_connection(bench: Bench) -> None:
    applied = bench.pinner.apply([])
    assert not applied.outcomes
    assert not applied.overdue | applied.deferred
    assert bench.fake.log == []


# --- workers -------------------------------------------------------------------------------------


def test_as_many_calls_are_under_way_as_there_are_workers(bench: Bench) -> None:
    together = threading.Barrier(3)
    inside, most = Counter[str](), list[int]()

    def enter(call: Call) -> None:
        if call.name == "pin_emulator":
            inside["now"] += 1
            together.wait(10)  # breaks if there are fewer, for ever
            most.append(inside["now"])
            together.wait(10)
            inside["now"] -= 1

    bench.fake.hook = enter
    applied = bench.pinner.apply(bench.jobs(bench.guests(9)))
    assert errors(applied.outcomes) == [None] * 9
    assert most == [3] * 9


def test_workers_connect_when_warmed_up_and_keep_their_connection(bench: Bench) -> None:
    connected = threading.Semaphore(0)
    bench.fake.hook = lambda call: connected.release() if call.name == "hand" else None
    bench.pinner.warm_up()
    bench.pinner.warm_up()
    assert all(connected.acquire(timeout=10) for _ in range(3))
    uuids = bench.guests(5)
    for _ in range(3):
        bench.pinner.apply(bench.jobs(uuids))
    assert bench.fake.count("hand") == 3
    assert len(bench.workers()) == 3


def test_stop_ends_the_workers_and_their_connections(bench: Bench) -> None:
    bench.pinner.apply(bench.jobs(bench.guests(3)))
    workers = bench.workers()
    assert workers
    bench.pinner.stop()
    for worker in workers:
        worker.join(10)
    assert not bench.workers()
    assert not bench.fake.connections


def test_workers_that_a_crowd_needed_end_with_it(bench: Bench) -> None:
    uuids = bench.guests(11)
    holds = bench.hold(uuids[:8])
    bench.pinner.apply(bench.jobs(uuids[:8]))
    crowd = bench.workers()
    assert len(crowd) == 8
    for hold in holds:
        hold.refuse()
    assert errors(bench.pinner.drain(10)) == [GuestBusy] * 8
    assert len(bench.pinner._workers) == 3
    assert errors(bench.pinner.apply(bench.jobs(uuids[8:])).outcomes) == [None] * 3
    bench.pinner.stop()
    for worker in crowd | bench.workers():
        worker.join(10)
    assert not bench.workers()


# --- guests that will soon be pinned -------------------------------------------------------------


def test_a_guest_is_pinned_by_the_worker_that_looked_it_up(bench: Bench) -> None:
    uuids = bench.guests(3)
    bench.pinner.warm_up()
    workers: dict[str, set[str]] = {}
    bench.fake.hook = lambda call: workers.setdefault(call.uuid, set()).add(
        threading.current_thread().name
    )
    for uuid in uuids:
        bench.pinner.prepare(uuid)
    assert errors(bench.pinner.apply(jobs(map(step, uuids), lambda _: None)).outcomes) == [None] * 3
    assert bench.fake.count("look_up") == 3
    assert [len(workers[uuid]) for uuid in uuids] == [1, 1, 1]
    assert len(set.union(*workers.values())) == 3


def test_a_look_up_that_hangs_holds_up_no_other_guest(lonely: Bench) -> None:
    held, other = lonely.guests(2)
    entered, go_on = threading.Event(), threading.Event()

    def wait(call: Call) -> None:
        if call.name == "look_up":
            entered.set()
            assert go_on.wait(10)

    lonely.fake.hook = wait
    lonely.pinner.warm_up()
    lonely.pinner.prepare(held)
    assert entered.wait(10)
    lonely.pinner.prepare(other)  # nobody is idle: it is not looked up
    applied = lonely.pinner.apply(lonely.jobs([other]))
    assert errors(applied.outcomes) == [None]
    go_on.set()
    assert errors(lonely.pinner.apply(lonely.jobs([held])).outcomes) == [None]
    assert lonely.fake.count("look_up") == 1


@pytest.mark.parametrize("error", [GuestGone("gone"), HypervisorAway("away"), ValueError("odd")])
def test_a_look_up_that_fails_is_for_the_pin_to_tell(lonely: Bench, error: Exception) -> None:
    (uuid,) = lonely.guests(1)
    lonely.fake.fail("look_up", error)  # type: ignore[arg-type]
    lonely.pinner.warm_up()
    lonely.pinner.prepare(uuid)
    assert errors(lonely.pinner.apply(lonely.jobs([uuid])).outcomes) == [None]


def test_guests_that_were_looked_up_and_never_pinned_are_forgotten(bench: Bench) -> None:
    uuids = bench.guests(100)
    bench.pinner.warm_up()
    for uuid in uuids:
        bench.pinner.prepare(uuid)
        bench.pinner.collect()
    assert len(bench.pinner._ready) <= LIMIT
    assert errors(bench.pinner.apply(bench.jobs(uuids)).outcomes) == [None] * 100
    assert not bench.pinner._ready


def test_pins_are_sent_before_threads_are_settled(lonely: Bench) -> None:
    uuids = lonely.guests(5)
    lonely.pinner.apply(lonely.jobs(uuids))
    order = [c.name for c in lonely.fake.log if c.name in {"pin_emulator", "settle"}]
    assert order.index("settle") >= 4  # the last pin may be under way
    assert Counter(order) == {"pin_emulator": 5, "settle": 5}


# --- while libvirt holds a guest -----------------------------------------------------------------


def test_while_libvirt_holds_a_guest_only_what_is_urgent_or_answered_is_sent() -> None:
    stalled = True
    made = Bench(stalled=lambda: stalled)
    urgent, asked, other = made.guests(3)
    todo = [
        *made.jobs([urgent]),
        *jobs([step(asked, Reason.DRIFT)], made.place, lambda uuid: uuid == asked),
        *made.jobs([other], Reason.WIDEN),
    ]
    applied = made.pinner.apply(todo)
    assert {outcome.step.uuid for outcome in applied.outcomes} == {urgent, asked}
    assert applied.deferred == {other}
    stalled = False
    applied = made.pinner.apply(made.jobs([other], Reason.WIDEN))
    assert errors(applied.outcomes) == [None]
    assert not applied.deferred
    made.pinner.stop()


# --- calls that hang -----------------------------------------------------------------------------


def test_a_call_that_hangs_holds_nobody_up(lonely: Bench) -> None:
    uuids = lonely.guests(3)
    (hold,) = lonely.hold(uuids[:1])
    applied = lonely.pinner.apply(lonely.jobs(uuids))
    assert [outcome.step.uuid for outcome in applied.outcomes] == uuids[1:]
    assert errors(applied.outcomes) == [None, None]
    assert applied.overdue == lonely.pinner.under_way() == {uuids[0]}
    assert applied.deferred == set()
    assert lonely.pinner.collect() == []
    hold.refuse()
    (late,) = lonely.late()
    assert late.step.uuid == uuids[0]
    assert isinstance(late.error, GuestBusy)
    assert not lonely.pinner.under_way()


def test_a_slow_call_frees_its_place_before_it_is_overdue(lonely: Bench) -> None:
    slow, other = lonely.guests(2)
    overdue: list[bool] = []

    def watch(call: Call) -> None:
        if call.name == "pin_emulator" and call.uuid == other:
            overdue.append(lonely.pinner._under_way[slow].overdue)
            lonely.pass_time()

    def pass_some() -> None:
        lonely.clock.now += (SLOW + PATIENCE) / 2

    lonely.fake.hook = watch
    hold = lonely.fake.hold(slow, pass_some)
    applied = lonely.pinner.apply(lonely.jobs([slow, other]))
    assert overdue == [False]
    assert [outcome.step.uuid for outcome in applied.outcomes] == [other]
    assert applied.overdue == {slow}
    hold.refuse()


def test_a_call_that_hangs_may_succeed_in_the_end(lonely: Bench) -> None:
    (uuid,) = lonely.guests(1, iothreads=1)
    lonely.hold([uuid])
    steps = [step(uuid), step(uuid, iothread=1)]
    assert lonely.pinner.apply(jobs(steps, lonely.place)).outcomes == ()
    lonely.fake.free(uuid)
    late = lonely.late()
    assert [outcome.step for outcome in late] == steps
    assert errors(late) == [None, None]
    assert lonely.fake.masks(uuid) == {TARGET}


def test_whoever_is_told_that_a_call_returned_finds_its_outcome() -> None:
    found: list[bool] = []
    made = Bench(workers=1, nudge=lambda: found.append(not made.pinner._done.empty()))
    (uuid,) = made.guests(1)
    (hold,) = made.hold([uuid])
    made.pinner.apply(made.jobs([uuid]))
    hold.refuse()
    made.pinner.stop()
    for worker in made.workers():
        worker.join(10)
    assert found == [True]


def test_a_guest_under_way_is_not_sent_again(lonely: Bench) -> None:
    uuids = lonely.guests(2)
    (hold,) = lonely.hold(uuids[:1])
    lonely.pinner.apply(lonely.jobs(uuids[:1]))
    again = lonely.pinner.apply(lonely.jobs(uuids))
    assert [outcome.step.uuid for outcome in again.outcomes] == uuids[1:]
    assert again.overdue == {uuids[0]}
    assert again.deferred == set()
    assert lonely.fake.count("pin_emulator") == 2
    hold.refuse()
    assert errors(lonely.late()) == [GuestBusy]


def test_a_call_within_its_patience_is_waited_for(lonely: Bench) -> None:
    (uuid,) = lonely.guests(1)
    hold = lonely.fake.hold(uuid)

    def let_go() -> None:
        assert hold.waiting.acquire(timeout=10)
        lonely.fake.free(uuid)

    threading.Thread(target=let_go).start()
    applied = lonely.pinner.apply(lonely.jobs([uuid]))
    assert errors(applied.outcomes) == [None]
    assert applied.overdue == set()
    assert not lonely.nudges.acquire(blocking=False)


def test_at_most_so_many_calls_are_under_way(bench: Bench) -> None:
    uuids = bench.guests(LIMIT + 2)
    holds = bench.hold(uuids)
    applied = bench.pinner.apply(bench.jobs(uuids))
    assert applied.outcomes == ()
    assert applied.overdue == set(uuids[:LIMIT])
    assert applied.deferred == set(uuids[LIMIT:])
    assert all(hold.waiting.acquire(timeout=10) for hold in holds[:LIMIT])
    assert bench.fake.count("pin_emulator") == LIMIT
    for hold in holds:
        hold.refuse()
    outcomes = bench.pinner.drain(10)
    assert {outcome.step.uuid for outcome in outcomes} == set(uuids[:LIMIT])
    assert bench.pinner.apply(bench.jobs(uuids[LIMIT:])).deferred == set()


@pytest.mark.parametrize("reason", list(Reason))
def test_in_a_crowd_only_evacuations_and_arrivals_are_sent(lonely: Bench, reason: Reason) -> None:
    *busy, more = lonely.guests(6)
    holds = lonely.hold(busy)
    lonely.pinner.apply(lonely.jobs(busy, Reason.MOVE))
    assert lonely.pinner.under_way() == set(busy)
    applied = lonely.pinner.apply(lonely.jobs([more], reason))
    urgent = reason in {Reason.EVACUATE, Reason.ARRIVE}
    assert errors(applied.outcomes) == ([None] if urgent else [])
    assert applied.deferred == (set() if urgent else {more})
    holds[0].refuse()
    assert errors(lonely.late()) == [GuestBusy]
    assert len(lonely.pinner.apply(lonely.jobs([more], reason)).outcomes) == 1
    for hold in holds:
        hold.refuse()


def test_drain_waits_for_what_is_under_way(lonely: Bench) -> None:
    uuids = lonely.guests(2)
    holds = lonely.hold(uuids)
    lonely.pinner.apply(lonely.jobs(uuids))
    threading.Thread(target=holds[0].refuse).start()
    threading.Thread(target=holds[1].refuse).start()
    assert errors(lonely.pinner.drain(10)) == [GuestBusy] * 2
    assert lonely.pinner.drain(10) == []


def test_drain_gives_up_in_time(lonely: Bench) -> None:
    (uuid,) = lonely.guests(1)
    (hold,) = lonely.hold([uuid])
    lonely.pinner.apply(lonely.jobs([uuid]))
    assert lonely.pinner.drain(0.01) == []
    assert lonely.pinner.under_way() == {uuid}
    hold.refuse()


@pytest.mark.parametrize("leap", [0.1, 10])
def test_drain_survives_that_its_time_ends_while_it_looks_at_the_clock(
    lonely: Bench, leap: float
) -> None:
    (uuid,) = lonely.guests(1)
    (hold,) = lonely.hold([uuid])
    lonely.pinner.apply(lonely.jobs([uuid]))
    lonely.clock.leap = leap
    assert lonely.pinner.drain(0.15) == []
    hold.refuse()


def test_a_call_that_returns_just_when_it_is_given_up_is_not_lost() -> None:
    """The worker has looked whether it is overdue, and was not; only then it is."""
    readings: list[float] = []

    def clock() -> float:
        if threading.current_thread() is threading.main_thread():
            readings.append(len(readings))
            if len(readings) == 3:  # sent, waited for, and now about to be marked
                assert hold.waiting.acquire(timeout=10)
                bench.fake.free(uuid)
                bench.pinner._workers[0].todo.put(_Order.END)
                while bench.fake.connections:  # until the worker has closed its own
                    pass
        return readings[-1]

    bench = Bench(workers=1, clock=clock)
    (uuid,) = bench.guests(1)
    hold = bench.fake.hold(uuid)
    applied = bench.pinner.apply(bench.jobs([uuid]))
    assert errors(applied.outcomes) == [None]
    assert not bench.nudges.acquire(blocking=False)
    assert not bench.pinner.under_way()


# --- connections that die ------------------------------------------------------------------------


def test_a_dead_hand_is_replaced_under_the_call(lonely: Bench) -> None:
    uuids = lonely.guests(2)
    lonely.pinner.apply(lonely.jobs(uuids[:1]))
    lonely.fake.lose()
    assert errors(lonely.pinner.apply(lonely.jobs(uuids)).outcomes) == [None, None]
    assert lonely.fake.count("hand") == 2
    assert len(lonely.fake.connections) == 1


def test_while_libvirt_is_away_steps_fail_and_later_ones_succeed(lonely: Bench) -> None:
    uuids = lonely.guests(2)
    lonely.pinner.warm_up()
    lonely.fake.reachable = False
    lonely.fake.lose()
    assert errors(lonely.pinner.apply(lonely.jobs(uuids)).outcomes) == [HypervisorAway] * 2
    lonely.fake.reachable = True
    assert errors(lonely.pinner.apply(lonely.jobs(uuids)).outcomes) == [None] * 2


def test_a_connection_that_dies_under_a_call_is_replaced(lonely: Bench) -> None:
    (uuid,) = lonely.guests(1)
    (hold,) = lonely.hold([uuid])
    lonely.pinner.apply(lonely.jobs([uuid]))
    assert hold.waiting.acquire(timeout=10)
    lonely.fake.lose()
    assert hold.waiting.acquire(timeout=10)  # it asks again
    lonely.fake.free(uuid)
    assert errors(lonely.late()) == [None]


@pytest.mark.parametrize("error", [HypervisorAway("not yet"), ZeroDivisionError("surprise")])
def test_a_worker_that_cannot_connect_tries_again_with_its_first_job(
    lonely: Bench, error: Exception
) -> None:
    tried = threading.Semaphore(0)

    def refuse_once(call: Call) -> None:
        if call.name == "hand" and lonely.fake.count("hand") == 1:
            tried.release()
            raise error

    lonely.fake.hook = refuse_once
    lonely.pinner.warm_up()
    assert tried.acquire(timeout=10)
    assert errors(lonely.pinner.apply(lonely.jobs(lonely.guests(1))).outcomes) == [None]


# --- everything at once --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_each_step_has_one_outcome_whatever_the_interleaving(seed: int) -> None:
    """Time flies, so that calls are overdue at any moment; a third of the guests is held."""
    rng = random.Random(seed)  # noqa: S311 - chance, not secrecy
    ticks = itertools.count()
    bench = Bench(workers=rng.randint(1, 4), clock=lambda: next(ticks) * 0.01)
    uuids = bench.guests(40, iothreads=1)
    inside: Counter[str] = Counter()
    crowds: list[int] = []
    entered: SimpleQueue[str | None] = SimpleQueue()

    def watch(call: Call) -> None:
        if call.name.startswith("pin_"):
            inside[call.uuid] += 1
            crowds.append(sum(worker.load > 0 for worker in tuple(bench.pinner._workers)))
            assert inside[call.uuid] == 1
        elif call.name == "settle":
            inside[call.uuid] -= 1

    def let_go() -> None:
        chance = random.Random(seed)  # noqa: S311
        while (uuid := entered.get()) is not None:
            sum(range(chance.randrange(20_000)))  # some time, but not always the same
            inside[uuid] -= 1
            holds[uuid].refuse()

    bench.fake.hook = watch
    holds = {
        uuid: bench.fake.hold(uuid, lambda uuid=uuid: entered.put(uuid))  # type: ignore[misc]
        for uuid in rng.sample(uuids, 13)
    }
    releaser = threading.Thread(target=let_go)
    releaser.start()
    outcomes: list[Outcome] = []
    left = uuids
    while left:
        steps = [step(uuid, rng.choice(list(Reason))) for uuid in left]
        applied = bench.pinner.apply(jobs(steps, bench.place))
        outcomes += applied.outcomes
        while bench.pinner.under_way():
            outcomes += bench.late()
        left = [uuid for uuid in left if uuid in applied.deferred]
    entered.put(None)
    releaser.join(10)
    assert Counter(outcome.step.uuid for outcome in outcomes) == Counter(uuids)
    refused = {o.step.uuid for o in outcomes if isinstance(o.error, GuestBusy)}
    assert refused == set(holds)
    assert {o.step.uuid for o in outcomes if o.error is None} == set(uuids) - refused
    assert max(crowds) <= LIMIT
    bench.pinner.stop()
