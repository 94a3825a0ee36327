"""What an idle cycle costs, in counts: exact on any machine, so that a regression shows.

The budgets are in benchmarks/steady.py, a tenth above what was measured when they were set. Who
needs more raises them, and says why in the commit; who lowers the cost lowers them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from agent.cycle import Cause
from benchmarks.steady import BUDGETS, CAUSES, counted
from tests.fake import Connection

if TYPE_CHECKING:
    from collections import Counter

FEW, MANY = 20, 100
SLACK: Final = 1.25


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("guests", [FEW, MANY])
def test_an_idle_cycle_calls_no_more_functions_than_its_budget(cause: Cause, guests: int) -> None:
    calls, _ = counted(cause, guests)
    assert calls <= BUDGETS[cause].of(guests)


@pytest.mark.parametrize("cause", CAUSES)
def test_a_budget_is_lowered_with_the_cost(cause: Cause) -> None:
    calls, _ = counted(cause, MANY)
    assert BUDGETS[cause].of(MANY) <= calls * SLACK


@pytest.mark.parametrize("cause", CAUSES)
def test_an_idle_cycle_costs_the_same_for_each_guest(cause: Cause) -> None:
    few, some, many = (counted(cause, n)[0] for n in (10, 50, 90))
    assert many - some == pytest.approx(some - few, rel=0.001)  # a table that grows costs a call


def test_an_idle_cycle_asks_once_for_each_thing_and_sends_no_pin() -> None:
    _, asked = counted(Cause.RECONCILE, FEW)
    assert of_libvirt(asked) == {"uuids": 1, "xml": FEW}
    assert (asked["read"], asked["discover"]) == (FEW, 1)
    _, asked = counted(Cause.EVENT, FEW)
    assert of_libvirt(asked) == {"xml": 1}
    assert (asked["read"], asked["discover"]) == (1, 0)


def of_libvirt(asked: Counter[str]) -> dict[str, int]:
    """Return what was asked of libvirt, and not of the host."""
    return {name: times for name, times in asked.items() if hasattr(Connection, name)}
