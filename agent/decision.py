"""What is decided of one question: a plan, the steps to it, and which threads are stuck still.

A decision does not depend on who asks or when, as long as no damping clock runs. So one can be made
ahead, while libvirt still starts a guest, and is there when its start is announced; and a host on
which nothing happens is decided once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent import planner, transition
from agent.cycle import misfits
from agent.transition import Present

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.planner import Plan, Question
    from agent.transition import Step

    Stuck = Mapping[str, frozenset[int]]  # thread ids, by guest


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a question."""

    plan: Plan
    stuck: Stuck
    steps: tuple[Step, ...]


def decide(question: Question, stuck: Stuck) -> Decision:
    """Plan, and compare what guests have with that; `stuck` are threads that were so before."""
    plan = planner.plan(question)
    still = _still_stuck(question, plan, stuck) if stuck else {}
    present = present_of(question, still)
    return Decision(plan, still, transition.diff(plan, question.guests, present))


def present_of(question: Question, stuck: Stuck) -> Present:
    """Return what the steps of an answer start from."""
    iothreads = question.settings.iothreads
    return Present(question.host.online, question.memory.guests, iothreads, stuck)


class Foresight:
    """Decides, and remembers the last decision, be it made ahead."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.last: tuple[Question, Stuck, Decision] | None = None

    def decide(self, question: Question, stuck: Stuck) -> Decision:
        """Decide, or take the last decision if it was made for this very question."""
        if self.last is not None:
            before, strayed, decision = self.last
            timeless = decision.plan.deadline is None
            if timeless and stuck == strayed and question == replace(before, now=question.now):
                return decision
        decision = decide(question, stuck)
        self.last = question, dict(stuck), decision  # whoever asked may add to his
        return decision


def _still_stuck(question: Question, plan: Plan, stuck: Stuck) -> Stuck:
    """Forget threads that follow now, or ended: should they drift later, that is news."""
    targets = {guest.uuid: guest.emulator_pcpus for guest in plan.guests}
    still = {}
    for guest in question.guests:
        known = stuck.get(guest.uuid)
        if known and guest.kernel is not None:
            left = known & misfits(guest, targets.get(guest.uuid))
            if left:
                still[guest.uuid] = left
    return still
