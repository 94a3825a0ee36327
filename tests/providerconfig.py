"""Nova's provider configuration files: what Nova takes for one, and what Placement makes of it.

The rules are those of Nova's schema 1.0 and of Placement's inventories, written down here anew: the
program that prints such a file shares no code with what judges it.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

_MAX_INT: Final = 0x7FFFFFFF
_COUNT: Final = {"type": "integer", "minimum": 1, "maximum": _MAX_INT}
_UUID: Final = "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"

SCHEMA: Final = {
    "type": "object",
    "required": ["meta"],
    "properties": {
        "meta": {
            "type": "object",
            "required": ["schema_version"],
            # text: YAML reads an unquoted 1.0 as a number, and Nova then does not start
            "properties": {
                "schema_version": {"type": "string", "pattern": "^1[.](0|[1-9][0-9]*)$"}
            },
        },
        "providers": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["identification"],
                "properties": {
                    "identification": {
                        "type": "object",
                        "minProperties": 1,
                        "maxProperties": 1,
                        "additionalProperties": False,
                        "properties": {
                            "uuid": {"anyOf": [{"const": "$COMPUTE_NODE"}, {"pattern": _UUID}]},
                            "name": {"type": "string", "minLength": 1, "maxLength": 200},
                        },
                    },
                    "inventories": {
                        "type": "object",
                        "properties": {
                            "additional": {"type": "array", "items": {"$ref": "#/$defs/classes"}}
                        },
                    },
                },
            },
        },
    },
    "$defs": {
        "classes": {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
            "patternProperties": {"^CUSTOM_[A-Z0-9_]{1,248}$": {"$ref": "#/$defs/inventory"}},
        },
        "inventory": {
            "type": "object",
            "required": ["total"],
            "additionalProperties": False,
            "properties": {
                "total": _COUNT,
                "reserved": {"type": "integer", "minimum": 0, "maximum": _MAX_INT},
                "min_unit": _COUNT,
                "max_unit": _COUNT,
                "step_size": _COUNT,
                "allocation_ratio": {"type": "number", "exclusiveMinimum": 0, "maximum": 3.4e38},
            },
        },
    },
}


def fault(text: str) -> str | None:
    """Return what keeps nova-compute from starting with this file; None if nothing does."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return f"no YAML: {error}"
    wrong = best_match(Draft202012Validator(SCHEMA).iter_errors(document))
    if wrong is not None:
        return f"{wrong.json_path}: {wrong.message}"
    names = [str(provider["identification"]) for provider in document.get("providers", ())]
    return None if len(names) == len(set(names)) else "a provider is defined twice"


def inventory(text: str) -> dict[str, Any]:
    """Return the one inventory of emulator threads that a good file gives each compute node."""
    wrong = fault(text)
    assert wrong is None, wrong
    (provider,) = yaml.safe_load(text)["providers"]
    assert provider["identification"] == {"uuid": "$COMPUTE_NODE"}
    ((name, found),) = provider["inventories"]["additional"][0].items()
    assert name == "CUSTOM_EMULATOR_THREAD"
    known: dict[str, Any] = found
    return known


def capacities(found: dict[str, Any]) -> set[int]:
    """Return how many units Placement lets in, by databases of double and of single precision."""
    units = found["total"] - found["reserved"]
    ratio = float(found["allocation_ratio"])
    return {int(units * kept) for kept in (ratio, ctypes.c_float(ratio).value)}
