"""Which guests need the operator: the order in which every list has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agent.words import Json

AMISS: Final = ("collision", "left", "busy", "remote", "overcommitted")
"""States of guests that are not simply in their pool, the worst first."""
_RANKS: Final = {state: rank for rank, state in enumerate((*AMISS, "placed"))}


def urgency(row: Json) -> tuple[int, int, str, str]:
    """Return the sort key of a row of `guests`; those that are left alone come last."""
    cell = -1 if row["cell"] is None else row["cell"]
    return _RANKS.get(row["state"], len(_RANKS)), cell, row.get("name") or "", row["uuid"]
