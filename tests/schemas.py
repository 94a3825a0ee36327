"""The JSON Schemas of docs/schema, and documents held against them.

    validated("plan", document)

Beyond what a pattern can say, a CPU set has to be as the kernel would write it, and a fraction
reduced.
"""

from __future__ import annotations

import functools
import json
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

from agent.cpuset import CpuSet

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER: Final = Path(__file__).resolve().parents[1] / "docs/schema"
ANSWERS: Final = ("topology", "plan", "status", "account")
WHAT_IF: Final = ("comparison", "simulate", "advice")

FORMATS: Final = FormatChecker(())


@FORMATS.checks("cpu-set", ValueError)
def _is_kernels_notation(value: object) -> bool:
    return not isinstance(value, str) or str(CpuSet.parse(value)) == value


@FORMATS.checks("fraction", ValueError)
def _is_reduced(value: object) -> bool:
    return not isinstance(value, str) or str(Fraction(value)) == value


@functools.cache
def schemas() -> dict[str, dict[str, Any]]:
    """Return all schemas, by the names of their files."""
    return {file.name: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}


def _resource(schema: bool | Mapping[str, Any]) -> Resource[bool | Mapping[str, Any]]:  # noqa: FBT001 - a schema may be one
    return Resource.from_contents(schema)


@functools.cache
def validator(name: str) -> Draft202012Validator:
    """Return what holds a document against one of the schemas."""
    found = [(file, _resource(schema)) for file, schema in schemas().items()]
    registry: Registry[bool | Mapping[str, Any]] = Registry().with_resources(found)
    return Draft202012Validator(
        schemas()[f"{name}.json"], registry=registry, format_checker=FORMATS
    )


def fault(name: str, document: object) -> str | None:
    """Return what is wrong with a document as it is when sent, and where; None if nothing is."""
    sent = json.loads(json.dumps(document, allow_nan=False))
    error = best_match(validator(name).iter_errors(sent))
    return None if error is None else f"{error.json_path}: {error.message[:500]}"


def answer_of(command: str, document: Any) -> str:  # noqa: ANN401 - JSON
    """Return which answer a command has given: a plan may be a comparison of several."""
    if command == "advise":
        return "advice"
    return "comparison" if command == "plan" and "ratios" in document else command


def validated(name: str, document: Any) -> Any:  # noqa: ANN401 - JSON
    """Return the document, which is an answer of this name."""
    wrong = fault(name, document)
    assert wrong is None, f"{name}: {wrong}"
    return document
