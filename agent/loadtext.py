"""A history of loads as the state file keeps it: a part of its own, with a version of its own.

    {"version": 1, "slot": 300.0, "cells": {"0": [[number, seconds, guests, ...], ...]}}

A slot is a list of numbers in the order of `Slot`. What is damaged, of another version or made of
other slots is refused as a whole, and nothing but the history is lost with it.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final

from agent.cpuset import CellId
from agent.errors import EmupoolError
from agent.load import History, Method, Slot

VERSION: Final = 1
_CELLS: Final = 1024  # of NUMA; the kernel knows no more
_MOST: Final = 1e15  # what no sum of seconds reaches
_FIELDS: Final = tuple(field.name for field in fields(Slot))
_VALUES: Final = attrgetter(*_FIELDS)


class HistoryError(EmupoolError):
    """What should be a history is none; `str` says why."""


def encode(history: History) -> str:
    """Return the JSON text of a history."""
    cells = {str(cell): [_VALUES(slot) for slot in slots] for cell, slots in history.cells.items()}
    document = {"version": VERSION, "slot": history.method.slot, "cells": cells}
    return json.dumps(document, separators=(",", ":"))


def decode(document: Any, method: Method) -> History:  # noqa: ANN401 - JSON
    """Return the history that a document holds; HistoryError if it is none, or not by `method`."""
    try:
        if document["version"] != VERSION or document["slot"] != method.slot:
            raise HistoryError("it is of another version")
        if len(document["cells"]) > _CELLS:
            raise HistoryError("it has more cells than any host")
        cells = {
            CellId(int(cell)): _window(slots, method) for cell, slots in document["cells"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise HistoryError(f"it is damaged: {type(error).__name__} {error}") from error
    return History(method, cells)


def _window(rows: list[list[float]], method: Method) -> tuple[Slot, ...]:
    slots = tuple(_slot(row) for row in rows[-method.slots :])
    if any(one.number >= two.number for one, two in pairwise(slots)):
        raise ValueError("slots out of order")
    return slots


def _slot(row: list[float]) -> Slot:
    if len(row) != len(_FIELDS):
        raise ValueError(f"{len(row)} numbers in a slot")
    number, *values = row
    if type(number) is not int or not all(_is_sum(value) for value in values):
        raise ValueError("a slot of no numbers")
    return Slot(number, *(float(value) for value in values))


def _is_sum(value: float) -> bool:
    return type(value) in {int, float} and math.isfinite(value) and 0 <= value <= _MOST
