"""From a TOML document to the tree: walks the tables, and notes each problem where it stands.

A key that is refused is noted once and left out; a rule over several keys (`rules`) keeps silent
where one of its keys was refused, so that one mistake is one problem.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from agent.config import keys, rules
from agent.config.settings import Config, HttpSettings
from agent.config.values import Wrong, nearest, shown
from agent.cpuset import CellId
from agent.errors import Problem
from agent.policy import GuestSettings, Policy, Rule
from agent.pool import CellSettings, PoolSettings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from agent.config.values import Reader

_BARE = re.compile(r"[A-Za-z0-9_-]{1,60}\Z")
_CELL = re.compile(r"(0|[1-9][0-9]{0,8})\Z")
_TABLES: Final = ("pool", "guests", *keys.FLAT)
_DEPTH: Final = 4  # pool.cell.N.key
_HOMES: Final = {
    key: table
    for table, known in (
        ("[[guests.rule]]", keys.RULE),
        *((f"[{name}]", flat) for name, (_, flat) in keys.FLAT.items()),
        ("[guests]", {**keys.GUESTS, "manage": None}),
        ("[pool]", {**keys.CELL, **keys.POOL}),
    )
    for key in known
}
"""Where a key belongs that was put into the wrong table."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one table gives: its text, the good values, and which keys were refused."""

    path: str
    written: Mapping[str, object]
    values: Mapping[str, Any]
    refused: frozenset[str]


class Walk:
    """One reading of one document."""

    def __init__(self, document: Mapping[str, object]) -> None:
        """Take what the TOML parser gave."""
        self._document = document
        self._problems: list[Problem] = []

    def config(self) -> Config:
        """Return the tree, with defaults where `problems` has an entry."""
        self._unknown("", self._document, _TABLES)
        flat = {
            name: self._flat(name, make, readers) for name, (make, readers) in keys.FLAT.items()
        }
        return Config(pool=self._pool(), guests=self._guests(), **flat)

    def problems(self) -> tuple[Problem, ...]:
        """Return all that is wrong, in the order of the document."""
        place = {path: at for at, path in enumerate(_paths(self._document, "", _DEPTH))}
        last = len(place)
        return tuple(sorted(self._problems, key=lambda problem: place.get(problem.path, last)))

    def _flat(self, name: str, make: type[Any], readers: Mapping[str, Reader]) -> Any:  # noqa: ANN401 - an instance of `make`
        part = self._part(name, self._document.get(name, {}), readers)
        settings = make(**part.values)
        if isinstance(settings, HttpSettings):
            self._note(part, rules.tls_clashes(settings, part.refused))
        return settings

    def _pool(self) -> PoolSettings:
        part = self._part(
            "pool", self._document.get("pool", {}), {**keys.CELL, **keys.POOL}, "cell"
        )
        own = {key: value for key, value in part.values.items() if key in keys.CELL}
        default = CellSettings(**own)
        self._note(part, rules.cell_clashes(default, part.written, part.refused))
        return PoolSettings(
            default=default,
            cells=dict(self._cells(part, own)),
            **{key: value for key, value in part.values.items() if key in keys.POOL},
        )

    def _cells(self, pool: Part, own: Mapping[str, Any]) -> Iterator[tuple[CellId, CellSettings]]:
        raw = self._table("pool.cell", pool.written.get("cell", {}))
        for number, table in raw.items():
            path = _join("pool.cell", number)
            if not _CELL.match(number):
                self._add(path, table, "the number of a NUMA cell, as in [pool.cell.0]")
                continue
            part = self._part(path, table, keys.CELL)
            settings = CellSettings(**{**own, **part.values})
            refused = part.refused | (pool.refused - part.written.keys())
            self._note(part, rules.cell_clashes(settings, part.written, refused))
            yield CellId(int(number)), settings

    def _guests(self) -> GuestSettings:
        part = self._part("guests", self._document.get("guests", {}), keys.GUESTS, "manage", "rule")
        own = dict(part.values)
        if "manage" in part.written:
            own["manage"] = self._manage(part.written["manage"])
        return GuestSettings(rules=tuple(self._rules(part.written.get("rule", []))), **own)

    def _manage(self, raw: object) -> frozenset[Policy]:
        if not isinstance(raw, list):
            self._add("guests.manage", raw, 'a list of policies, such as ["isolate"]')
            return frozenset()
        read = (
            self._value(f"guests.manage[{at}]", item, keys.managed) for at, item in enumerate(raw)
        )
        return frozenset(policy for policy in read if isinstance(policy, Policy))

    def _rules(self, raw: object) -> Iterator[Rule]:
        if not isinstance(raw, list):
            self._add("guests.rule", raw, "tables, each under its own [[guests.rule]]")
            return
        for at, table in enumerate(raw):
            part = self._part(f"guests.rule[{at}]", table, keys.RULE)
            if isinstance(table, dict) and part.written.keys() <= keys.RULE.keys():
                self._note(part, rules.rule_flaws(part.written))  # else a slip explains it
            yield Rule(**part.values)

    def _part(self, path: str, raw: object, readers: Mapping[str, Reader], *nested: str) -> Part:
        """Read one table; the keys `nested` are known, and left to the caller."""
        table = self._table(path, raw)
        self._unknown(path, table, (*readers, *nested))
        given: dict[str, Any] = {}
        refused = set()
        for key in (key for key in table if key in readers):
            value = self._value(f"{path}.{key}", table[key], readers[key])
            if isinstance(value, Wrong):
                refused.add(key)
            else:
                given[key] = value
        return Part(path, table, given, frozenset(refused))

    def _table(self, path: str, raw: object) -> Mapping[str, object]:
        if isinstance(raw, dict):
            return raw
        self._add(path, raw, f"a table: write {_header(path)} and its keys below")
        return {}

    def _value(self, path: str, raw: object, reader: Reader) -> object:
        try:
            return reader(raw)
        except Wrong as wrong:
            self._add(path, raw, str(wrong))
            return wrong

    def _unknown(self, path: str, table: Mapping[str, object], known: Collection[str]) -> None:
        for key in (key for key in table if key not in known):
            self._add(_join(path, key), table[key], _stranger(key, known))

    def _note(self, part: Part, clashes: Iterable[tuple[str, str]]) -> None:
        """Add (key, remedy) of rules that `part` breaks; the empty key is the table itself."""
        for key, remedy in clashes:
            value = part.written[key] if key else part.written
            self._add(_join(part.path, key) if key else part.path, value, remedy)

    def _add(self, path: str, value: object, remedy: str) -> None:
        self._problems.append(Problem(path, shown(value), remedy))


def _header(path: str) -> str:
    if path.startswith("guests.rule["):
        return "[[guests.rule]]"
    return "[pool.cell.0]" if path == "pool.cell" else f"[{path}]"


def _stranger(key: str, known: Collection[str]) -> str:
    if key in _HOMES:
        return f"unknown here: it is a key of {_HOMES[key]}"
    hint = nearest(key, known)
    return f"unknown{hint}" if hint else f"unknown; known here: {', '.join(known)}"


def _join(path: str, key: str) -> str:
    """Return the dotted path of `key`, quoted where TOML would quote it."""
    name = key if _BARE.match(key) else shown(key)
    return f"{path}.{name}" if path else name


def _paths(value: object, path: str, depth: int) -> Iterator[str]:
    """Yield the path of `value` and of all in it, in the order of the document."""
    yield path
    if depth < 0:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, _join(path, key), depth - 1)
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _paths(inner, f"{path}[{at}]", depth - 1)
