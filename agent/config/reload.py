"""What a reload changes, and what of that has to wait for a restart."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

from agent.config import keys
from agent.config.export import Leaf, leaves, to_json
from agent.config.settings import Config, HttpSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.cpuset import CellId

RESTART: Final = frozenset(
    {"libvirt.uri", "state.path", *(f"http.{field.name}" for field in fields(HttpSettings))}
)
"""Keys that only a restart applies; all others apply at once."""

_OF_ONE_CELL = re.compile(r"pool\.cell\.[0-9]+\.")
_ORDER: Final = tuple(field.name for field in fields(Config))


@dataclass(frozen=True, slots=True)
class Change:
    """One key whose value in force differs, as JSON values; None is not set."""

    key: str
    old: Leaf
    new: Leaf
    restart: bool


def changes(old: Config, new: Config) -> tuple[Change, ...]:
    """Return what differs, in the order of the tree.

    A cell is compared by what holds for it, whoever says so; where it merely follows `[pool]`,
    the change is told once, there.
    """
    cells = sorted(old.pool.cells.keys() | new.pool.cells.keys())
    before, after = dict(_flat(old, cells)), dict(_flat(new, cells))
    pairs = {key: (before.get(key), after.get(key)) for key in {**before, **after}}
    return tuple(
        Change(key, *pairs[key], restart=key in RESTART)
        for key in sorted(pairs, key=lambda key: _ORDER.index(key.split(".")[0]))
        if pairs[key][0] != pairs[key][1] and not _follows(key, pairs)
    )


def effective(old: Config, new: Config) -> Config:
    """Return `new`, with what only a restart applies as it is in `old`."""
    config = new
    for key in sorted(RESTART):
        table, name = key.split(".")
        kept = {name: getattr(getattr(old, table), name)}
        config = replace(config, **{table: replace(getattr(config, table), **kept)})
    return config


def _follows(key: str, pairs: dict[str, tuple[Leaf, Leaf]]) -> bool:
    general = _OF_ONE_CELL.sub("pool.", key)
    return general != key and pairs[general] == pairs[key]


def _flat(config: Config, cells: Iterable[CellId]) -> Iterator[tuple[str, Leaf]]:
    """Yield (dotted key, value) of all keys, and of what holds for each of `cells`."""
    tree = to_json(config)
    tree["pool"]["cell"] = {cell: leaves(config.pool.of(cell), keys.CELL) for cell in cells}
    tree["guests"]["manage"] = ",".join(tree["guests"]["manage"])
    yield from _leaves("", tree)


def _leaves(path: str, node: Any) -> Iterator[tuple[str, Leaf]]:  # noqa: ANN401 - JSON
    match node:
        case dict():
            for key, inner in node.items():
                yield from _leaves(f"{path}.{key}" if path else key, inner)
        case list():
            for at, inner in enumerate(node):
                yield from _leaves(f"{path}[{at}]", inner)
        case _:
            yield path, node
