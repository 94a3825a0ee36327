"""A host lives: guests come and go, others interfere, the daemon is killed between two steps.

Each cycle plans from what was remembered, and must leave a world in which nothing is left to do,
nobody runs on claimed or offline pCPUs who could be elsewhere, and no pool shrank too early.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from agent.cpuset import CpuSet
from agent.planner import State
from agent.policy import Policy
from agent.pool import NOTHING, OnShortage, Placement, PoolSource, Smt
from tests.anyworld import consistent, draw_guest, some
from tests.builders import host, offlined, pool_settings, repinned
from tests.worlds import World

if TYPE_CHECKING:
    from agent.planner import NUMACell, Plan
    from agent.pool import PoolSettings
    from agent.snapshot import Guest

WHOLE: Final = host(cells=2, cores=3, smt=2, isolated="10-11")
DELAY: Final = 30.0
CONFIGURATIONS: Final = [
    pool_settings(ratio=2),
    pool_settings(ratio=1, placement=Placement.SINGLE),
    pool_settings(ratio=1, on_shortage=OnShortage.SPILL, smt=Smt.ANY),
    pool_settings(ratio=2, on_shortage=OnShortage.LEAVE, cpus="0-2,6-7,10-11"),
    pool_settings(ratio="2.5", source=PoolSource.RESERVED, smt=Smt.STRICT),
    pool_settings(ratio=1, min_cpus=2, max_cpus=3, iothreads=False, reserved_cpus="0,6"),
]


@dataclass(frozen=True, slots=True)
class Seen:
    """One cell in one cycle: how much it needed, and what it still held of its pool."""

    at: float
    need: int
    held: int


class Life(RuleBasedStateMachine):
    """The rules change the world; `cycle` is the daemon."""

    world: World
    random: Random
    numbers: int

    @initialize(seed=st.integers(0, 2**32), settings=st.sampled_from(CONFIGURATIONS))
    def boot(self, seed: int, settings: PoolSettings) -> None:
        self.world = World(WHOLE, settings=settings)
        self.random = Random(seed)  # noqa: S311 - not for keeping secrets
        self.numbers = 0
        self.seen: dict[int, list[Seen]] = {0: [], 1: []}

    def change(self, *guests: Guest) -> None:
        self.world = self.world.having(*consistent(guests))

    def anyone(self) -> Guest | None:
        return self.random.choice(self.world.guests) if self.world.guests else None

    # what happens to a host

    @precondition(lambda self: len(self.world.guests) < 9)
    @rule()
    def start(self) -> None:
        self.numbers += 1
        new = draw_guest(self.random, self.numbers, WHOLE.online, cells=2)
        self.change(*self.world.guests, replace(new, age=self.numbers, busy=False))

    @rule()
    def stop(self) -> None:
        gone = self.anyone()
        self.change(*(one for one in self.world.guests if one is not gone))

    @rule()
    def reboot(self) -> None:
        """Start again from the persistent definition."""
        if (one := self.anyone()) and one.active:
            self.numbers += 1
            fresh = replace(
                repinned(one, one.original.emulator) if one.original.emulator else one,
                start=f"again-{self.numbers}",
                age=self.numbers,
            )
            self.change(*(fresh if other is one else other for other in self.world.guests))

    @rule(policy=st.sampled_from(list(Policy)))
    def relabel(self, policy: Policy) -> None:
        if one := self.anyone():
            verdict = replace(one.verdict, policy=policy)
            self.world = self.world.changed(replace(one, verdict=verdict))

    @rule()
    def pinned_by_someone_else(self) -> None:
        if (one := self.anyone()) and one.active:
            self.world = self.world.changed(repinned(one, some(self.random, WHOLE.online, 1)))

    @rule()
    def a_job_begins_or_ends(self) -> None:
        if one := self.anyone():
            self.world = self.world.changed(replace(one, busy=not one.busy))

    @rule()
    def cpus_off_and_on_line(self) -> None:
        off = some(self.random, WHOLE.online) if self.random.random() < 0.5 else CpuSet()
        self.world = replace(self.world, host=offlined(WHOLE, off - CpuSet.of(0, 6)))

    @rule(seconds=st.sampled_from([1.0, 15.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.world = self.world.later(seconds)

    # what the daemon does

    @rule()
    def cycle(self) -> None:
        before, plan = self.world, self.world.plan()
        self.world = before.carry_out(plan, before.steps(plan))
        self.nothing_is_left_to_do(plan)
        self.nobody_is_where_he_must_not_be(plan)
        self.pools_shrink_in_time(before, plan)
        self.memory_is_of_who_runs()
        assert plan.deadline is None or plan.deadline > before.now

    @rule(part=st.floats(0, 1))
    def killed_between_two_steps(self, part: float) -> None:
        plan = self.world.plan()
        steps = self.world.steps(plan)
        self.world = self.world.carry_out(plan, steps, int(part * len(steps)))
        self.look(self.world, plan)

    @rule()
    def killed_and_its_state_lost(self) -> None:
        self.world = replace(self.world, memory=NOTHING)
        self.seen = {0: [], 1: []}

    @rule(settings=st.sampled_from(CONFIGURATIONS))
    def reload(self, settings: PoolSettings) -> None:
        reloaded = replace(self.world, settings=settings, damped=False)
        plan = reloaded.plan()
        settled = reloaded.carry_out(plan, reloaded.steps(plan))
        self.world = replace(settled, damped=True)
        self.seen = {0: [], 1: []}
        self.nothing_is_left_to_do(plan)
        for cell in plan.cells:
            assert len(cell.emulator_cpus) == min(cell.need, len(cell.candidates))

    # what must be true after a cycle

    def nothing_is_left_to_do(self, plan: Plan) -> None:
        again = self.world.plan()
        assert self.world.steps(again) == ()
        assert [c.emulator_cpus for c in again.cells] == [c.emulator_cpus for c in plan.cells]

    def nobody_is_where_he_must_not_be(self, plan: Plan) -> None:
        states = {one.uuid: one.state for one in plan.guests}
        for one in self.world.guests:
            if states[one.uuid] in {None, State.BUSY, State.COLLISION}:
                continue
            pin = one.domain.resting(self.world.host.online)
            assert pin
            assert pin <= self.world.host.online
            assert pin.isdisjoint(plan.claimed)

    def pools_shrink_in_time(self, before: World, plan: Plan) -> None:
        """A pool that lost more than claims and offlines took was too large all the while."""
        for cell in plan.cells:
            held = self.held(before, cell)
            recent = [s for s in self.seen[cell.id] if s.at > before.now - DELAY]
            if len(cell.emulator_cpus) < held:
                assert all(seen.need < seen.held for seen in recent)
                assert len(cell.emulator_cpus) >= max((seen.need for seen in recent), default=0)
                assert any(seen.at <= before.now - DELAY for seen in self.seen[cell.id])
            assert len(cell.emulator_cpus) >= min(cell.need, len(cell.candidates))
            assert len(cell.emulator_cpus) <= max(cell.need, held)
        self.look(before, plan)

    def look(self, before: World, plan: Plan) -> None:
        for cell in plan.cells:
            self.seen[cell.id].append(Seen(before.now, cell.need, self.held(before, cell)))

    def held(self, before: World, cell: NUMACell) -> int:
        """Return how many pCPUs of its pool before the cycle a cell could still use."""
        kept = before.memory.cells.get(cell.id)
        pool = cell.pool_now if kept is None else kept.cpus
        return len(pool & cell.candidates)

    def memory_is_of_who_runs(self) -> None:
        active = {one.uuid for one in self.world.guests if one.active}
        assert self.world.memory.guests.keys() <= active


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=50,
    stateful_step_count=35,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
