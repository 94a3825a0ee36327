"""Files mutated from the example: each error names a place of the document, and none takes long."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config import MAX_BYTES, parse
from agent.errors import ConfigError
from tests.exampleconfig import tree
from tests.test_config_properties import NAMES, SCALARS, WORDS, document_of, tables

if TYPE_CHECKING:
    from collections.abc import Iterator

Path = tuple[str | int, ...]


TREE: Final = tree()


def places(value: object, path: Path = ()) -> Iterator[Path]:
    """Yield all paths, in the order of the document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
    for key, part in inner:
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from places(part, (*path, key))


def at(tree: Any, path: Path) -> Any:  # noqa: ANN401 - TOML
    for key in path:
        tree = tree[key]
    return tree


def cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def named(path: Path) -> str:
    """Return how an error calls a place."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += "." * bool(text) + (
                key if re.fullmatch("[A-Za-z0-9_-]{1,60}", key) else cut(repr(key))
            )
    return text


ANYTHING: Final = SCALARS | st.lists(SCALARS, max_size=3) | tables(SCALARS)
SLIPS: Final[list[Any]] = [
    str.upper,
    str.title,
    lambda w: w[:-1],
    lambda w: w + "s",
    lambda w: w[::-1],
]


@st.composite
def mutants(draw: st.DrawFn) -> dict[str, Any]:
    """Return the example after one to four mistakes."""
    made = copy.deepcopy(TREE)
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from([*places(made)]))
        whole, key = at(made, path[:-1]), path[-1]
        match draw(
            st.sampled_from(["replace", "drop", "misspell", "add", "copy", "list", "table"])
        ):
            case "replace":
                whole[key] = draw(ANYTHING)
            case "drop" if len(made) > 1:
                del whole[key]
            case "misspell" if isinstance(key, str):
                value = whole.pop(key)
                whole[draw(st.sampled_from(SLIPS))(key)] = value
            case "add" if isinstance(whole, dict):
                whole[draw(WORDS | NAMES)] = draw(ANYTHING)
            case "copy":
                whole[key] = copy.deepcopy(at(made, draw(st.sampled_from([*places(made)]))))
            case "list":
                whole[key] = [whole[key]]
            case "table":
                whole[key] = {draw(WORDS): whole[key]}
    return made


def refusal(tree: dict[str, Any]) -> ConfigError | None:
    try:
        parse(document_of(tree), "x")
    except ConfigError as error:
        return error
    return None


@given(mutants())
@settings(max_examples=300)
def test_every_error_names_a_place_of_the_document_in_its_order_with_what_is_there(
    tree: dict[str, Any],
) -> None:
    error = refusal(tree)
    known = {named(path): (order, path) for order, path in enumerate(places(tree))}
    order = 0
    for problem in error.problems if error else ():
        assert problem.path in known, problem
        assert known[problem.path][0] >= order
        order = known[problem.path][0]
        assert problem.value == cut(repr(at(tree, known[problem.path][1])))
        assert str(problem).isprintable()
        assert len(str(problem)) < 500


@given(mutants())
def test_a_file_without_what_the_errors_name_is_a_good_one(tree: dict[str, Any]) -> None:
    """One round is not always enough: what is left of a set without its list needs one."""
    while error := refusal(tree):
        blamed = {problem.path for problem in error.problems}
        for path in reversed([path for path in places(tree) if named(path) in blamed]):
            del at(tree, path[:-1])[path[-1]]


LONG: Final = {
    "unknown keys": "\n".join(f"k{n:x} = 1" for n in range(MAX_BYTES // 12)),
    "rules without anything": "guests.rule = [" + "{}," * (MAX_BYTES // 3 - 10) + "]",
    "keys of fifty parts": "\n".join(f"a{n}" + ".a" * 49 + " = 1" for n in range(MAX_BYTES // 108)),
    "a key of very many parts": "a" + ".a" * (MAX_BYTES // 2 - 9) + " = 1",
    "words that are alike": "guests.manage = [" + "'isolat'," * (MAX_BYTES // 10) + "]",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_the_largest_file_is_refused_in_seconds(text: str) -> None:
    """They take one; without a limit for the parts of a key, hours."""
    assert MAX_BYTES * 0.8 < len(text) <= MAX_BYTES
    with pytest.raises(ConfigError):
        parse(text, "x")
