"""A host lives: guests come and go, others interfere, the daemon is killed between two steps.

After each thing that happens the daemon wakes: it runs a cycle, or is killed in one and runs
another, or sleeps until more has happened. What must be true of each cycle is in `invariants`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from agent.cpuset import CpuSet
from agent.domainxml import Pins
from agent.policy import Policy
from agent.pool import NOTHING, OnShortage, Placement, PoolSettings, PoolSource, Smt
from tests import invariants
from tests.anyworld import RATIOS, consistent, draw_guest, some
from tests.builders import host, offlined, pool_settings, repinned
from tests.effort import examples
from tests.worlds import World

if TYPE_CHECKING:
    from agent.planner import NUMACell, Plan
    from agent.pool import CellSettings
    from agent.snapshot import Guest

WHOLE: Final = host(cells=2, cores=3, smt=2, isolated="10-11")
CONFIGURATIONS: Final = [
    pool_settings(ratio=2),
    pool_settings(ratio=1, placement=Placement.SINGLE),
    pool_settings(ratio=1, on_shortage=OnShortage.SPILL, smt=Smt.ANY),
    pool_settings(ratio=2, on_shortage=OnShortage.LEAVE, cpus="0-2,6-7,10-11"),
    pool_settings(ratio="2.5", source=PoolSource.RESERVED, smt=Smt.STRICT),
    pool_settings(ratio=1, min_cpus=2, max_cpus=3, iothreads=False, reserved_cpus="0,6"),
]
KEYS: Final[list[dict[str, Any]]] = [
    *({"emulator_overcommit_ratio": ratio} for ratio in RATIOS),
    *({"source": source} for source in (PoolSource.FREE, PoolSource.RESERVED)),
    {"source": PoolSource.SET, "cpus": CpuSet.parse("1-4,8-11")},
    *({"placement": placement} for placement in Placement),
]


@dataclass(frozen=True, slots=True)
class Seen:
    """One cell in one cycle: how much it needed, and what it still held of its pool."""

    at: float
    need: int
    held: int


class Life(RuleBasedStateMachine):
    """The rules change the world; `wake` is the daemon."""

    world: World
    random: Random
    numbers: int

    @initialize(seed=st.integers(0, 2**64), settings=st.sampled_from(CONFIGURATIONS))
    def boot(self, seed: int, settings: PoolSettings) -> None:
        self.world = World(WHOLE, settings=settings)
        self.random = Random(seed)  # noqa: S311 - not for keeping secrets
        self.numbers = 0
        self.forget()
        self.change(*(self.newcomer() for _ in range(self.random.randint(0, 4))))

    def forget(self) -> None:
        self.seen: dict[int, list[Seen]] = {0: [], 1: []}

    def change(self, *guests: Guest) -> None:
        self.world = self.world.having(*consistent(guests))

    def become(self, one: Guest, *others: Guest) -> None:
        """Put `others` in the place of `one`."""
        self.change(*(each for each in self.world.guests if each.uuid != one.uuid), *others)

    def anyone(self, *, active: bool = True) -> Guest | None:
        who = [one for one in self.world.guests if one.active is active]
        return self.random.choice(who) if who else None

    def newcomer(self) -> Guest:
        self.numbers += 1
        new = draw_guest(self.random, self.numbers, WHOLE.online, cells=2)
        return replace(new, age=self.numbers, busy=False)

    # guests

    @precondition(lambda self: len(self.world.guests) < 9)
    @rule()
    def start(self) -> None:
        self.change(*self.world.guests, self.newcomer())
        self.wake()

    @rule()
    def start_again(self) -> None:
        if one := self.anyone(active=False):
            self.become(one, self.started(one))
        self.wake()

    def started(self, one: Guest) -> Guest:
        """Return the guest as its persistent definition starts it, with pins as they were."""
        self.numbers += 1
        pins = dict(one.original.iothreads)
        threads = tuple(replace(t, cpus=pins.get(t.id)) for t in one.domain.iothreads)
        domain = replace(
            one.domain, id=self.numbers, emulator=one.original.emulator, iothreads=threads
        )
        return replace(
            one, domain=domain, start=f"again-{self.numbers}", age=self.numbers, busy=False
        )

    @rule(undefined=st.booleans())
    def stop(self, *, undefined: bool) -> None:
        """It is undefined too, or stays defined and keeps its claims."""
        if one := self.anyone():
            self.become(one, *(() if undefined else (self.stopped(one),)))
        self.wake()

    def stopped(self, one: Guest) -> Guest:
        domain = replace(self.started(one).domain, id=None)
        return replace(one, domain=domain, start="", kernel=None, busy=False)

    @rule()
    def undefine(self) -> None:
        if one := self.anyone(active=False):
            self.become(one)
        self.wake()

    @rule()
    def reboot(self) -> None:
        """A control plane's hard reboot: the daemon may or may not wake in between."""
        if one := self.anyone():
            self.become(one, self.stopped(one))
            self.wake()
            self.become(one, self.started(one))
        self.wake()

    @rule()
    def crash(self) -> None:
        """It is destroyed while a job holds its lock."""
        if one := self.anyone():
            self.world = self.world.changed(replace(one, busy=True))
            self.wake()
            self.become(one, self.stopped(one))
        self.wake()

    @rule()
    def migrate_in(self) -> None:
        """Its pin is that of another host, and nothing tells what it was started with."""
        new = replace(self.newcomer(), original=Pins(None), busy=True)
        self.change(*self.world.guests, new)
        self.wake()
        if new.active:
            self.become(new, replace(new, busy=False))
        self.wake()

    @rule()
    def migrate_out(self) -> None:
        if one := self.anyone():
            self.world = self.world.changed(replace(one, busy=True))
            self.wake()
            self.become(one)
        self.wake()

    @rule(policy=st.sampled_from(list(Policy)))
    def relabel(self, policy: Policy) -> None:
        if one := self.anyone():
            verdict = replace(one.verdict, policy=policy)
            self.world = self.world.changed(replace(one, verdict=verdict))
        self.wake()

    @rule()
    def pinned_by_someone_else(self) -> None:
        if one := self.anyone():
            self.world = self.world.changed(repinned(one, some(self.random, WHOLE.online, 1)))
        self.wake()

    @rule()
    def a_job_begins_or_ends(self) -> None:
        if one := self.anyone():
            self.world = self.world.changed(replace(one, busy=not one.busy))
        self.wake()

    # the host, the time, the operator

    @rule()
    def cpus_off_and_on_line(self) -> None:
        off = some(self.random, WHOLE.online) if self.random.random() < 0.5 else CpuSet()
        self.world = replace(self.world, host=offlined(WHOLE, off - CpuSet.of(0, 6)))
        self.wake()

    @rule(seconds=st.sampled_from([1.0, 15.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.world = self.world.later(seconds)
        self.wake()

    @rule(settings=st.sampled_from(CONFIGURATIONS))
    def another_configuration(self, settings: PoolSettings) -> None:
        self.reload(settings)

    @rule(key=st.sampled_from(KEYS))
    def another_ratio_source_or_placement(self, key: dict[str, Any]) -> None:
        settings = self.world.settings
        own: CellSettings = replace(settings.default, **key)
        if own.ratio < 1 and own.placement is Placement.SINGLE:
            own = replace(own, placement=Placement.AUTO)
        self.reload(replace(settings, default=own))

    def reload(self, settings: PoolSettings) -> None:
        self.world = replace(self.world, settings=settings, damped=False)
        plan = self.cycle()
        self.world = replace(self.world, damped=True)
        self.forget()
        for cell in plan.cells:
            assert len(cell.emulator_cpus) == min(cell.need, len(cell.candidates))

    @rule()
    def visitors(self) -> None:
        come = consistent([*self.world.guests, self.newcomer(), self.newcomer()])
        invariants.visitors_leave_no_trace(self.world, come[-2:])

    # the daemon

    def wake(self) -> None:
        fate = self.random.random()
        if fate < 0.2:
            return
        if fate < 0.4:
            self.killed()
        self.cycle()

    def killed(self) -> None:
        """End between two steps: what the state file says is old, new, or lost."""
        plan = self.world.plan()
        steps = self.world.steps(plan)
        before = self.world
        self.world = before.carry_out(plan, steps, self.random.randint(0, len(steps)))
        saved = self.random.random()
        if saved < 0.4:
            self.look(before, plan)
        elif saved < 0.8:
            self.world = replace(self.world, memory=before.memory)
        else:
            self.world = replace(self.world, memory=NOTHING)
            self.forget()

    def cycle(self) -> Plan:
        before, plan = self.world, self.world.plan()
        steps = before.steps(plan)
        self.world = before.carry_out(plan, steps)
        invariants.nothing_is_left_to_do(plan, self.world)
        invariants.nobody_is_where_he_must_not_be(plan, self.world)
        invariants.need_is_met_or_shortage_reported(plan)
        invariants.each_step_has_its_reason(before, plan, steps)
        invariants.the_order_of_input_is_irrelevant(before, plan, steps, self.random)
        invariants.every_prefix_is_safe(before, plan, steps, self.random)
        invariants.bills_stay_within_the_host(plan, self.world)
        invariants.memory_is_of_who_runs(self.world)
        if before.damped:
            self.pools_change_in_time(before, plan)
        assert plan.deadline is None or plan.deadline > before.now
        return plan

    def pools_change_in_time(self, before: World, plan: Plan) -> None:
        """A pool that lost more than claims and offlines took was too large all the while."""
        for cell in plan.cells:
            held = self.held(before, cell)
            delay = before.settings.of(cell.id).shrink_delay
            recent = [s for s in self.seen[cell.id] if s.at > before.now - delay]
            if len(cell.emulator_cpus) < held:
                assert all(seen.need < seen.held for seen in recent)
                assert len(cell.emulator_cpus) >= max((seen.need for seen in recent), default=0)
                assert any(seen.at <= before.now - delay for seen in self.seen[cell.id])
            assert len(cell.emulator_cpus) <= max(cell.need, held)
            known = before.memory.cells.get(cell.id)
            if known is not None and known.cpus <= cell.candidates:
                same = len(known.cpus) == len(cell.emulator_cpus)
                waited = known.smt_since is not None and known.smt_since + delay <= before.now
                assert not same or waited or known.cpus == cell.emulator_cpus
        self.look(before, plan)

    def look(self, before: World, plan: Plan) -> None:
        for cell in plan.cells:
            self.seen[cell.id].append(Seen(before.now, cell.need, self.held(before, cell)))

    def held(self, before: World, cell: NUMACell) -> int:
        """Return how many pCPUs of its pool before the cycle a cell could still use."""
        kept = before.memory.cells.get(cell.id)
        pool = cell.pool_now if kept is None else kept.cpus
        return len(pool & cell.candidates)


TestLife = pytest.mark.soak(Life.TestCase)
TestLife.settings = settings(
    max_examples=examples(200, 5000),
    phases=(Phase.reuse, Phase.generate),  # what is drawn by a seed does not shrink
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
