"""What was decided ahead is the answer to the very question that is asked then, and to no other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent.decision import Foresight, decide
from tests.builders import EIGHT, cpus, fleet, obedient, pool_settings, relabelled
from tests.worlds import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.decision import Stuck
    from agent.planner import Question

STAYING = World(EIGHT, fleet(3), pool_settings(ratio=2)).settle()
SHRINKING = replace(STAYING, guests=STAYING.guests[:1])
"""A clock runs here, until the pool becomes smaller."""


def test_what_was_decided_is_taken_until_something_else_is_asked() -> None:
    foresight = Foresight()
    ahead = foresight.decide(STAYING.question, {})
    assert foresight.decide(STAYING.later(1).question, {}) is ahead
    assert foresight.decide(STAYING.later(2).question, {}) is ahead
    foresight.decide(SHRINKING.question, {})
    assert foresight.decide(STAYING.question, {}) is not ahead


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda q: replace(q, guests=q.guests[:2]), id="a guest left"),
        pytest.param(
            lambda q: replace(q, guests=(*q.guests[:2], relabelled(q.guests[2]))), id="a label"
        ),
        pytest.param(lambda q: replace(q, settings=pool_settings(ratio=1)), id="the ratio"),
        pytest.param(lambda q: replace(q, partition=cpus("0-2")), id="the partition"),
        pytest.param(lambda q: replace(q, damped=False), id="damping"),
        pytest.param(lambda q: replace(q, memory=replace(q.memory, cells={})), id="the memory"),
    ],
)
def test_to_another_question_the_answer_is_made_anew(
    change: Callable[[Question], Question],
) -> None:
    foresight, asked = Foresight(), change(STAYING.question)
    ahead = foresight.decide(STAYING.question, {})
    decision = foresight.decide(asked, {})
    assert decision is not ahead
    assert decision == decide(asked, {})


def test_threads_that_became_stuck_since_make_another_question() -> None:
    foresight, stuck = Foresight(), dict[str, frozenset[int]]()
    ahead = foresight.decide(STAYING.question, stuck)
    stuck[STAYING.guests[0].uuid] = frozenset({1})
    assert foresight.decide(STAYING.question, stuck) is not ahead


def test_while_a_clock_runs_the_answer_is_made_anew() -> None:
    foresight = Foresight()
    ahead = foresight.decide(SHRINKING.question, {})
    assert ahead.plan.deadline is not None
    late = SHRINKING.later(3600).question
    assert foresight.decide(late, {}) == decide(late, {}) != ahead


def test_threads_that_became_stuck_meanwhile_are_no_reason_for_a_step() -> None:
    guest = STAYING.guests[0]
    pool = STAYING.plan().guests[0].emulator_pcpus
    assert pool is not None
    lost = obedient(pool)
    strayed = replace(lost.threads[1], cpus=cpus("7"))
    lost = replace(lost, threads=(lost.threads[0], strayed))
    world = replace(STAYING, guests=(replace(guest, kernel=lost), *STAYING.guests[1:]))
    known: Stuck = {guest.uuid: frozenset({strayed.tid})}
    foresight = Foresight()
    assert [step.uuid for step in foresight.decide(world.question, {}).steps] == [guest.uuid]
    decision = foresight.decide(world.question, known)
    assert (decision.steps, decision.stuck) == ((), known)
