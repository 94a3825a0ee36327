"""The configuration file: what is refused and how that is told, and what values mean."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import pytest

from agent.config import MAX_BYTES, Config, load, parse
from agent.cpuset import CellId, CpuSet
from agent.errors import ConfigError, Problem
from agent.policy import Policy, Rule
from agent.pool import Smt
from tests.badconfig import BYTES, ONE_KEY, RATIO, SEVERAL_KEYS, SEVERAL_MISTAKES, UUID
from tests.exampleconfig import tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.toml")
    assert str(caught.value).startswith("x.toml: ")
    return caught.value.problems


@pytest.mark.parametrize(("key", "value", "remedy"), ONE_KEY.values(), ids=ONE_KEY)
def test_a_wrong_key_is_named_with_its_value_and_what_would_be_right(
    key: str, value: str, remedy: str
) -> None:
    (problem,) = problems_of(f"{key} = {value}")
    expected = repr(tomllib.loads(f"x = {value}")["x"])
    assert problem.path == key
    assert problem.value == (expected if len(expected) <= 60 else expected[:57] + "...")
    assert remedy in problem.remedy


@pytest.mark.parametrize(("text", "expected"), SEVERAL_KEYS.values(), ids=SEVERAL_KEYS)
def test_a_wrong_file_has_one_problem_that_blames_one_place(
    text: str, expected: tuple[str, str, str]
) -> None:
    (problem,) = problems_of(text)
    assert problem.path == expected[0]
    assert expected[1] in problem.value
    assert len(problem.value) <= 60
    assert expected[2] in problem.remedy


@pytest.mark.parametrize(("text", "paths"), SEVERAL_MISTAKES.values(), ids=SEVERAL_MISTAKES)
def test_all_errors_are_told_at_once_in_the_order_of_the_file(
    text: str, paths: tuple[str, ...]
) -> None:
    assert tuple(problem.path for problem in problems_of(text)) == paths


@pytest.mark.parametrize(
    "text",
    [
        '[pool]\nsource = "set"\ncpus = "2-x"',
        '[pool]\ncpus = "0-x"\nreserved_cpus = "0"',
        '[pool]\nsource = "set"\ncpus = "2-x"\n[pool.cell.0]\nsource = "set"',
        "[pool]\nmin_cpus = 2\nmax_cpus = -1\n[pool.cell.0]\nmin_cpus = 3",
        '[[guests.rule]]\nnam = "a"\npolicy = "share"',
        '[[guests.rule]]\nname = "a"\nwieght = 2',
    ],
)
def test_one_mistake_is_one_problem(text: str) -> None:
    assert len(problems_of(text)) == 1


def test_what_a_cell_says_is_judged_though_the_pool_says_something_wrong() -> None:
    text = '[pool]\ncpus = "0-x"\n[pool.cell.0]\ncpus = "1-2"\nreserved_cpus = "2"'
    assert [problem.path for problem in problems_of(text)] == ["pool.cpus", "pool.cell.0.cpus"]


@pytest.mark.parametrize(
    "text",
    [
        '[pool]\nplacement = "single"\nemulator_overcommit_ratio = 1',
        '[pool]\nplacement = "auto"\nemulator_overcommit_ratio = 0.5',
        "[pool]\nmin_cpus = 2\nmax_cpus = 2",
        "[pool]\nmin_cpus = 0\nmax_cpus = 0\nshrink_delay = 0",
        '[pool]\nsource = "set"\ncpus = " 2, 34 "\n[pool.cell.1]\nsource = "free"\ncpus = ""',
        "guests.manage = []",
        f'http.tls_cert = "/c"\nhttp.tls_key = "/k"\nadmission.socket = "/{"x" * 106}"',
    ],
)
def test_the_edge_of_what_is_allowed_is_allowed(text: str) -> None:
    parse(text, "x")


@pytest.mark.parametrize(("content", "expected"), BYTES.values(), ids=BYTES)
def test_what_is_no_text_is_refused_at_its_line(
    tmp_path: Path, content: bytes, expected: tuple[str, str, str]
) -> None:
    file = tmp_path / "x"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(file)
    (problem,) = caught.value.problems
    assert problem.path == expected[0]
    assert expected[1] in problem.value
    assert expected[2] in problem.remedy


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"#" * MAX_BYTES)
    assert load(tmp_path / "x") == Config()


@pytest.mark.parametrize("written", ["2.5", '"2.5"', "2.50", '"2.500"', "25e-1"])
def test_a_ratio_is_exact_however_it_is_written(written: str) -> None:
    assert parse(f"{RATIO} = {written}", "x").pool.default.ratio == Fraction(5, 2)


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("[::1]:9857", ("::1", 9857)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),  # noqa: S104 - nothing is bound
        ("localhost:65535", ("localhost", 65535)),
        ("", None),
    ],
)
def test_an_address_is_split(listen: str, address: tuple[str, int] | None) -> None:
    assert parse(f'http.listen = "{listen}"', "x").http.address == address


def test_one_cell_differs_only_where_it_says_so() -> None:
    text = '[pool]\ncpus = "2-3,^3,34"\nsmt = "any"\n[pool.cell.1]\nmax_cpus = 4\nsmt = "strict"'
    pool = parse(text, "x").pool
    assert pool.of(CellId(0)) == pool.default
    assert pool.of(CellId(1)) == replace(pool.default, max_cpus=4, smt=Smt.STRICT)
    assert pool.of(CellId(1)).cpus == CpuSet.of(2, 34)


def test_a_rule_matches_a_uuid_however_it_is_spelt() -> None:
    text = f'[[guests.rule]]\nuuid = "{UUID.upper()}"\npolicy = "share"'
    assert parse(text, "x").guests.rules == (Rule(policy=Policy.SHARE, uuid=UUID),)


# Every key: what TOML knows, by type.

KINDS: Final = {
    "boolean": "true",
    "whole number": "1",
    "fraction": "1.5",
    "text": '"?"',
    "list": "[]",
    "list of tables": "[{}]",
    "table": "{}",
    "date": "1979-05-27",
    "time": "07:32:00",
    "date and time": "1979-05-27T07:32:00Z",
}
EXACT: Final = {"emulator_overcommit_ratio", "cpu_overcommit_ratio", "weight"}
SECONDS: Final = {"shrink_delay", "interval", "reservation"}


def allowed(key: str, default: object) -> set[str]:
    """Return the types that a key may have, going by its default in the example."""
    if key in EXACT | SECONDS:
        return {"whole number", "fraction"} | ({"text"} if key in EXACT else set())
    return {{bool: "boolean", int: "whole number", str: "text", list: "list"}[type(default)]}


def keys_of(part: dict[str, Any], path: str = "") -> Iterator[tuple[str, str, object]]:
    """Yield (what begins a file that sets it, the key, its value) for each key of a table."""
    for key, value in part.items():
        if isinstance(value, dict):
            yield from keys_of(value, f"{path}{key}.")
        elif key == "rule":
            for one in value:
                yield from keys_of(one, "[[guests.rule]]\n")
        else:
            yield path, key, value


KEYS: Final = {f"{path}{key}": (path, key, value) for path, key, value in keys_of(tree())}


@pytest.mark.parametrize(("path", "key", "value"), KEYS.values(), ids=KEYS)
def test_a_key_takes_its_own_type_and_no_other(path: str, key: str, value: object) -> None:
    for kind in KINDS.keys() - allowed(key, value):
        problems = problems_of(f"{path}{key} = {KINDS[kind]}")
        blamed = f"{path}{key}".replace("[[guests.rule]]\n", "guests.rule[0].")
        assert any(problem.path.startswith(blamed) for problem in problems), kind


@pytest.mark.parametrize(("path", "key", "value"), KEYS.values(), ids=KEYS)
def test_a_key_that_lacks_a_letter_is_recognised(path: str, key: str, value: object) -> None:
    del value
    for slip in (key[:-1], key[1:], key.upper(), key + "s", key.replace("_", "-") + "-"):
        problems = problems_of(f"{path}{slip} = 1")
        assert f"did you mean {key}?" in problems[0].remedy
