"""What must be true of any cycle, in any world: each check takes plain values and asserts."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

from agent.accounting import BillingSettings, account
from agent.cpuset import union
from agent.planner import State
from agent.pool import OnShortage
from agent.transition import Kind, Reason
from tests.oracles import claims

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from agent.cpuset import CpuSet
    from agent.planner import InstanceNUMACell, Plan
    from agent.snapshot import Guest
    from agent.transition import Step
    from tests.worlds import World


def nothing_is_left_to_do(plan: Plan, after: World) -> None:
    """A plan that was applied is followed by an empty one.

    But for a guest that is still arriving: it is not remembered, so under `spill` it may be sent
    elsewhere when others have settled.
    """
    ours = [one for one, _ in _ours(plan, after)]
    if any(one.busy and after.memory.guest(one.uuid, one.start) is None for one in ours):
        return
    again = after.plan()
    assert after.steps(again) == ()
    assert [c.emulator_cpus for c in again.cells] == [c.emulator_cpus for c in plan.cells]


def nobody_is_where_he_must_not_be(plan: Plan, after: World) -> None:
    """Nobody is on an empty set, nor on claimed or offline pCPUs while there is a candidate."""
    candidates = {cell.id: cell.candidates for cell in plan.cells}
    for one, planned in _ours(plan, after):
        pin = one.domain.resting(after.host.online)
        assert pin
        if one.busy or not harmful(pin, after):
            continue
        assert planned.state is State.COLLISION
        left = candidates[planned.cell] if planned.cell is not None else pin
        parent = one.kernel.parent if one.kernel is not None else None
        assert not (left if parent is None else left & parent)


def harmful(pin: CpuSet, world: World) -> bool:
    """Tell whether some of `pin` is claimed or off line."""
    cpus = set(pin)
    return bool(cpus & claims(world) or cpus - set(world.host.online))


def _ours(plan: Plan, world: World) -> list[tuple[Guest, InstanceNUMACell]]:
    planned = {one.uuid: one for one in plan.guests}
    return [(one, planned[one.uuid]) for one in world.guests if planned[one.uuid].managed]


def need_is_met_or_shortage_reported(plan: Plan) -> None:
    for cell in plan.cells:
        assert len(cell.emulator_cpus) >= min(cell.need, len(cell.candidates))
        if ceil(cell.weight / cell.ratio) > len(cell.emulator_cpus):
            assert cell.shortage > 0


def each_step_has_its_reason(before: World, plan: Plan, steps: Sequence[Step]) -> None:
    """The reason that a step gives is what the world before it shows."""
    guests = {one.uuid: one for one in before.guests}
    planned = {one.uuid: one for one in plan.guests}
    for step in steps:
        one = guests[step.uuid]
        memory = before.memory.guest(one.uuid, one.start) or plan.memory.guest(one.uuid, one.start)
        placed = memory.placed if memory is not None else None
        match step.reason:
            case Reason.EVACUATE:
                there = [placed, one.domain.resting(before.host.online)]
                there += [thread.cpus for thread in one.domain.iothreads]
                assert harmful(union(cpus for cpus in there if cpus), before)
            case Reason.ARRIVE:
                known = before.memory.guest(one.uuid, one.start)
                assert known is None or known.placed is None
            case Reason.DRIFT:
                assert placed == step.to
            case Reason.WIDEN:
                assert placed is not None
                assert not harmful(placed, before)
                assert placed < step.to
            case Reason.NARROW:
                assert placed is not None
                assert not harmful(placed, before)
                assert step.to < placed
            case Reason.MOVE:
                assert placed is not None
                assert not harmful(placed, before)
                assert not placed <= step.to
                assert not step.to <= placed
            case Reason.RELEASE:
                assert not planned[step.uuid].managed or step.kind is Kind.IOTHREAD
        assert not one.busy


def the_order_of_input_is_irrelevant(
    before: World, plan: Plan, steps: Sequence[Step], random: Random
) -> None:
    shuffled = list(before.guests)
    random.shuffle(shuffled)
    other = before.having(*shuffled)
    assert other.plan() == plan
    assert other.steps(plan) == steps


def every_prefix_is_safe(before: World, plan: Plan, steps: Sequence[Step], random: Random) -> None:
    """Killed after some steps, saved or not: nobody is worse off, and one cycle completes it."""
    done = random.randint(0, len(steps))
    halfway = before.carry_out(plan, steps, done)
    if random.random() < 0.5:
        halfway = replace(halfway, memory=before.memory)
    was = {one.uuid: one.domain.resting(before.host.online) for one in before.guests}
    for one, _ in _ours(plan, halfway):
        pin = one.domain.resting(before.host.online)
        assert pin
        assert pin == was[one.uuid] or not harmful(pin, before)
    completed = halfway.plan()
    nothing_is_left_to_do(completed, halfway.carry_out(completed, halfway.steps(completed)))


def bills_stay_within_the_host(plan: Plan, after: World) -> None:
    """Emulator shares fit in pools that lack nothing, claims and pools in their cells."""
    bills = account(after.host, BillingSettings(), plan, after.guests)
    for cell, planned in zip(after.host.cells, plan.cells, strict=True):
        shares = sum(bill.emulator for bill in bills if bill.cell == cell.id)
        assert planned.shortage or shares <= len(planned.emulator_cpus)
        claimed = claims(after) & set(cell.cpus)
        assert len(claimed) + len(planned.emulator_cpus) <= len(cell.cpus)


def memory_is_of_who_runs(after: World) -> None:
    active = {one.uuid for one in after.guests if one.active}
    assert after.memory.guests.keys() <= active


def visitors_leave_no_trace(world: World, visitors: Sequence[Guest]) -> None:
    """With damping off, pools have the sizes that they had when who came has left again."""
    own = [world.settings.of(cell.id) for cell in world.host.cells]
    if any(one.on_shortage is OnShortage.SPILL for one in own):
        return  # who was sent away may stay there
    rest = replace(world, damped=False).settle().settle()
    busy = rest.having(*rest.guests, *visitors).later(1).settle()
    gone = {one.uuid for one in visitors}
    left = busy.having(*(one for one in busy.guests if one.uuid not in gone))
    quiet = left.later(1).settle().later(60).settle()
    assert [len(c.emulator_cpus) for c in quiet.plan().cells] == [
        len(c.emulator_cpus) for c in rest.later(60).plan().cells
    ]
