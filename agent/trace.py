"""Arrivals and departures of guests over time, as a table of comma-separated values.

    time     seconds, never less than in the row before
    guest    its name; a name may come again after it has stopped
    event    start or stop; a stop needs no more than these three
    vcpus    how many, 1 by default
    cells    over how many NUMA cells, 1 by default; a part of the vCPUs in each
    policy   isolate (default), share, float or ignore
    weight   1 by default
    pins     pCPU of each vCPU, parted by blanks; without them it is placed as Nova would

The first row names the columns, in any order; those after `event` may be left out.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from agent.cpuset import LIMIT
from agent.domainxml import MAX_VCPUS
from agent.errors import Refused
from agent.policy import Policy, parse_weight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

COLUMNS: Final = ("time", "guest", "event", "vcpus", "cells", "policy", "weight", "pins")
_NEEDED: Final = COLUMNS[:3]
_MORE: Final = "more"
_LONGEST_NAME: Final = 255
_LATEST: Final = 1e12


@dataclass(frozen=True, slots=True)
class Event:
    """One guest starts or stops; `pins` are empty where the trace names none."""

    time: float
    guest: str
    starts: bool
    vcpus: int = 1
    cells: int = 1
    policy: Policy = Policy.ISOLATE
    weight: Fraction = Fraction(1)
    pins: tuple[int, ...] = ()


def read(lines: Iterable[str], name: str) -> Iterator[Event]:
    """Yield the events of a table, one at a time; Refused names the line that is wrong."""
    rows = csv.DictReader(lines, restkey=_MORE, restval="")
    before = 0.0
    try:
        _check_columns(rows.fieldnames or ())
        for row in rows:
            event = _event(row, before)
            before = event.time
            yield event
    except (_Wrong, csv.Error) as error:
        raise Refused(f"{name}: line {max(1, rows.line_num)}: {error}") from None


class _Wrong(Exception):
    """What is wrong with a row."""


def _check_columns(columns: Iterable[str]) -> None:
    if not set(_NEEDED) <= set(columns) <= set(COLUMNS):
        raise _Wrong(f"the columns are {', '.join(COLUMNS)}; the first three are needed")


def _event(row: dict[str, str], before: float) -> Event:
    if _MORE in row:
        raise _Wrong("more values than columns")
    try:
        time = float(row["time"])
    except ValueError:
        time = -1.0
    if not 0 <= time < _LATEST:
        raise _Wrong(f"time {row['time'][:40]!r} is no number of seconds")
    if time < before:
        raise _Wrong(f"time {row['time'][:40]} is before that of the row above")
    if row["event"] not in {"start", "stop"}:
        raise _Wrong(f"event {row['event'][:40]!r} is neither start nor stop")
    guest = row["guest"]
    if not 0 < len(guest) <= _LONGEST_NAME:
        raise _Wrong(f"a guest's name has 1 to {_LONGEST_NAME} letters")
    if row["event"] == "stop":
        return Event(time, guest, starts=False)
    vcpus = _number(row, "vcpus", MAX_VCPUS)
    cells = _number(row, "cells", vcpus)
    pins = _pins(row.get("pins") or "")
    if pins and len(pins) != vcpus:
        raise _Wrong(f"{len(pins)} pins for {vcpus} vCPUs")
    return Event(time, guest, True, vcpus, cells, _policy(row), _weight(row), pins)  # noqa: FBT003 - starts


def _number(row: dict[str, str], column: str, most: int) -> int:
    text = row.get(column) or "1"
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):  # noqa: PLR2004 - digits of any count
        raise _Wrong(f"{column} {text[:40]!r} is not a number from 1 to {most}")
    return int(text)


def _pins(text: str) -> tuple[int, ...]:
    words = text.split()
    if not all(w.isascii() and w.isdigit() and int(w[:9]) < LIMIT for w in words):
        raise _Wrong(f"pins {text[:40]!r} are not pCPUs parted by blanks")
    return tuple(int(word) for word in words)


def _policy(row: dict[str, str]) -> Policy:
    text = row.get("policy") or Policy.ISOLATE
    try:
        return Policy(text)
    except ValueError:
        raise _Wrong(f"policy {text[:40]!r} is not one of {', '.join(Policy)}") from None


def _weight(row: dict[str, str]) -> Fraction:
    text = row.get("weight") or "1"
    weight = parse_weight(text)
    if weight is None:
        raise _Wrong(f"weight {text[:40]!r} is not a decimal from 0.01 to 64")
    return weight
