"""The configuration, held against random files: it round-trips, and nothing breaks the reader."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, Final

from hypothesis import given
from hypothesis import strategies as st

from agent.config import changes, effective, keys, load, parse, to_json
from agent.cpuset import CellId, CpuSet
from agent.errors import ConfigError
from agent.status import Standing, status
from tests.schemas import validated

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLE: Final = (Path(__file__).parent.parent / "config.example.toml").read_text()
RATIO: Final = "pool.emulator_overcommit_ratio"
RATIOS: Final = ("emulator_overcommit_ratio", "cpu_overcommit_ratio", "weight")


def decimals(most: int) -> st.SearchStrategy[str]:
    """Return texts of decimals from 0.01 to `most` with at most nine digits."""
    return st.decimals("0.01", most, places=5).map(lambda number: f"{number:f}")


def optional(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=strategies)


CPUS: Final = st.sets(st.integers(0, 40), min_size=1).map(lambda cpus: str(CpuSet(cpus)))
NAMES: Final = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
FILES: Final = st.from_regex(r"/[a-z ]+", fullmatch=True).map(str.rstrip).filter(lambda f: f != "/")
POLICIES: Final = st.sampled_from(["isolate", "share", "float"])
CELL: Final = {
    "emulator_overcommit_ratio": decimals(1000),
    "source": st.sampled_from(["auto", "free", "set", "reserved"]),
    "cpus": CPUS,
    "reserved_cpus": CPUS,
    "placement": st.sampled_from(["auto", "shared", "single"]),
    "smt": st.sampled_from(["prefer", "strict", "any"]),
    "on_shortage": st.sampled_from(["overcommit", "spill", "leave"]),
    "min_cpus": st.integers(0, 4),
    "max_cpus": st.integers(0, 8),
    "shrink_delay": st.floats(0, 1e6),
}
CELLS: Final = st.dictionaries(st.integers(0, 9).map(str), optional(**CELL), min_size=1, max_size=3)
POOL: Final = optional(
    **CELL,
    iothreads=st.booleans(),
    on_stop=st.sampled_from(["leave", "release"]),
    cell=CELLS,
)
TABLES_BUT_POOL: Final = optional(
    libvirt=optional(uri=st.just("test:///default"), pin_workers=st.integers(1, 8)),
    guests=optional(
        manage=st.lists(POLICIES, max_size=3),
        default_policy=POLICIES,
        rule=st.lists(
            st.fixed_dictionaries(
                {"name": NAMES, "weight": decimals(64)}, optional={"policy": POLICIES}
            )
        ),
    ),
    billing=optional(cpu_overcommit_ratio=decimals(1000)),
    http=optional(listen=st.sampled_from(["", "[::1]:80"]), status_page=st.booleans()),
    state=optional(path=FILES),
    log=optional(level=st.sampled_from(["debug", "error"])),
)
DOCUMENTS: Final = st.builds(lambda pool, rest: {"pool": pool, **rest}, POOL, TABLES_BUT_POOL)


def toml(value: object) -> str:
    """Write a value inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def document_of(tree: Mapping[str, object]) -> str:
    return "\n".join(f"{toml(key)} = {toml(value)}" for key, value in tree.items())


def rewritten(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Turn the JSON of a tree into what a file may say: ratios as decimals, nulls left out."""
    if isinstance(value, dict):
        return {
            key: _decimal(inner) if key in RATIOS else rewritten(inner)
            for key, inner in value.items()
            if inner is not None
        }
    return [rewritten(inner) for inner in value] if isinstance(value, list) else value


def _decimal(text: str) -> str:
    exact = Fraction(text)
    return f"{Decimal(exact.numerator) / exact.denominator:f}"


@given(DOCUMENTS)
def test_what_is_told_of_a_configuration_gives_it_again(document: dict[str, Any]) -> None:
    try:
        config = parse(document_of(document), "x")
    except ConfigError:
        return  # keys that are good alone, and clash
    assert parse(document_of(rewritten(to_json(config))), "x") == config
    validated("status", status(Standing("test:///x", config=to_json(config)), {}))
    assert changes(config, config) == ()
    for key in document.get("pool", {}).keys() & {"min_cpus", "smt", "cpus", "shrink_delay"}:
        assert to_json(config)["pool"][key] == document["pool"][key]


@given(DOCUMENTS, DOCUMENTS)
def test_changes_are_told_if_and_only_if_something_differs(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    try:
        old, new = parse(document_of(one), "x"), parse(document_of(other), "x")
    except ConfigError:
        return
    mixed = effective(old, new)
    assert all(change.restart for change in changes(mixed, new))
    assert not any(change.restart for change in changes(old, mixed))
    cells = {CellId(number) for number in range(10)}
    same = all(old.pool.of(cell) == new.pool.of(cell) for cell in cells) and replace(
        old, pool=replace(old.pool, cells={})
    ) == replace(new, pool=replace(new.pool, cells={}))
    assert bool(changes(old, new)) != same


@given(st.integers(0, 9), st.integers(1, 10**9 - 1))
def test_a_decimal_means_the_same_as_text_and_as_a_number(places: int, digits: int) -> None:
    text = f"{Decimal(digits).scaleb(-places):f}"
    for key, most in ((RATIO, 1000), ("guests.rule", 64)):
        forms = [text, f'"{text}"'] if "." in text else [text, f'"{text}"', f"{digits:#x}"]
        for form in forms:
            value = f'[{{name = "a", weight = {form}}}]' if key == "guests.rule" else form
            try:
                config = parse(f"{key} = {value}", "x")
            except ConfigError:
                count = sum(map(str.isdigit, text))
                assert count > 9 or not Fraction(1, 100) <= Fraction(text) <= most
            else:
                rules = config.guests.rules
                assert Fraction(text) == (rules[0].weight if rules else config.pool.default.ratio)


# What an operator's file may hold in the worst case: known names, with anything in them.

TABLES: Final = st.sampled_from(["pool", "guests", *keys.FLAT])
WORDS: Final = st.sampled_from(
    [
        *("cell", "rule", "manage", "0"),
        *(key for _, readers in keys.FLAT.values() for key in readers),
        *(key for readers in (keys.CELL, keys.POOL, keys.GUESTS, keys.RULE) for key in readers),
    ]
)
SCALARS: Final = (
    st.booleans()
    | st.integers()
    | st.sampled_from([2**63, 10**400, -(10**12)])
    | st.floats()
    | NAMES
    | CPUS
    | st.sampled_from(["isolate", "ignore", "set", "single", "[::1]:1", "/", "0.5", "1979-05-27"])
)


def tables(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(WORDS | WORDS | NAMES, values, min_size=1, max_size=5)


PATHS: Final = (
    *(f"{table}.{key}" for table, (_, readers) in keys.FLAT.items() for key in readers),
    *(f"{table}.{key}" for table in ("pool", "pool.cell.0") for key in keys.CELL),
    *(f"pool.{key}" for key in (*keys.POOL, "cell", "cell.0")),
    *(f"guests.{key}" for key in (*keys.GUESTS, "manage", "rule")),
    *(f"RULE{key}" for key in keys.RULE if key != "name"),
)
INNER: Final = tables(SCALARS | tables(SCALARS))
CONTENT: Final = tables(SCALARS | INNER | st.lists(SCALARS | INNER, max_size=3))
TREES: Final = st.dictionaries(TABLES | TABLES | NAMES, CONTENT | CONTENT | SCALARS, max_size=4)


def accepted(text: str) -> bool:
    """Tell whether a text is a configuration; a refusal must be fit to be read by an operator."""
    try:
        config = parse(text, "x")
    except ConfigError as error:
        for problem in error.problems:
            assert problem.path
            assert problem.remedy
            assert len(problem.value) <= 60
            assert str(problem).isprintable()
        return False
    json.dumps(to_json(config))
    return True


@given(TREES)
def test_any_toml_is_accepted_or_refused(tree: dict[str, Any]) -> None:
    accepted(document_of(tree))


@given(st.sampled_from(PATHS), SCALARS | st.lists(SCALARS) | tables(SCALARS))
def test_any_value_of_any_key_is_accepted_or_refused_at_its_place(path: str, value: object) -> None:
    accepted(f"{path} = {toml(value)}".replace("RULE", "[[guests.rule]]\nname = 'a'\n"))


@given(st.text())
def test_any_text_is_accepted_or_refused(text: str) -> None:
    accepted(text)


@given(st.data())
def test_a_damaged_file_is_accepted_or_refused(data: st.DataObject) -> None:
    text = re.sub(r"^#(?=[a-z_]+ = )", "", EXAMPLE, flags=re.MULTILINE)
    start = data.draw(st.integers(0, len(text)))
    end = start + data.draw(st.integers(0, 40))
    accepted(text[:start] + data.draw(st.text(max_size=5)) + text[end:])


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_accepted_or_refused_as_their_text_is(content: bytes) -> None:
    with NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            config = load(Path(file.name))
        except ConfigError:
            return  # by that name only
    assert config == parse(content.decode(), "x")
