"""The tree as JSON values, with the names and the nesting of the file."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config import keys
from agent.cpuset import CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.config.settings import Config

Leaf = str | int | float | bool | None


def to_json(config: Config) -> dict[str, Any]:
    """Return every key with its value in force; `pool.cell` has all keys of the cells it names.

    CPU sets are strings in the kernel's notation, ratios and weights strings of the reduced
    fraction (`8`, `5/2`), times are numbers; a file that is not set is null, a key that a rule
    leaves out is absent.
    """
    made: dict[str, Any] = {
        name: leaves(getattr(config, name), readers) for name, (_, readers) in keys.FLAT.items()
    }
    pool, guests = config.pool, config.guests
    cells = {str(cell): leaves(pool.cells[cell], keys.CELL) for cell in sorted(pool.cells)}
    made["pool"] = leaves(pool.default, keys.CELL) | leaves(pool, keys.POOL) | {"cell": cells}
    made["guests"] = {
        "manage": sorted(policy.value for policy in guests.manage),
        **leaves(guests, keys.GUESTS),
        "rule": [_without_null(leaves(rule, keys.RULE)) for rule in guests.rules],
    }
    return {field.name: made[field.name] for field in fields(config)}


def leaves(settings: object, names: Iterable[str]) -> dict[str, Leaf]:
    """Return the named keys of one table as JSON values."""
    return {name: _leaf(getattr(settings, name)) for name in names}


def _leaf(value: Any) -> Leaf:  # noqa: ANN401 - whatever a key may hold
    if isinstance(value, CpuSet | Fraction | Path):
        return str(value)
    leaf: Leaf = value.value if isinstance(value, Enum) else value
    return leaf


def _without_null(table: dict[str, Leaf]) -> dict[str, Leaf]:
    return {key: leaf for key, leaf in table.items() if leaf is not None}
