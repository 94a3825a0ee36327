"""deploy/grafana/emupool.json as Grafana reads it: its panels, its queries, its variables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE: Final = Path(__file__).parents[1] / "deploy/grafana/emupool.json"
DOCUMENT: Final[dict[str, Any]] = json.loads(FILE.read_text())
PANELS: Final[list[dict[str, Any]]] = [p for p in DOCUMENT["panels"] if p["type"] != "row"]
VARIABLES: Final[dict[str, dict[str, Any]]] = {v["name"]: v for v in DOCUMENT["templating"]["list"]}

WINDOW: Final = "5m"
"""What Grafana's own variable of a rate stands for in tests: all that was scraped so far."""
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_LABEL_VALUES: Final = re.compile(r"label_values\((.*), (\w+)\)")


class Query(NamedTuple):
    """One query, with variables in it."""

    name: str
    text: str
    shows: frozenset[str]
    """The labels that the legend names."""


def queries() -> list[Query]:
    """Return the queries of all panels."""
    return [
        Query(
            f"{panel['title']} {target['refId']}",
            target["expr"],
            frozenset(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))),
        )
        for panel in PANELS
        for target in panel["targets"]
    ]


def choices() -> list[Query]:
    """Return the queries that variables are chosen from; each shows its label."""
    found = []
    for name, variable in VARIABLES.items():
        if variable["type"] == "query":
            asked = _LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert asked is not None, name
            found.append(Query(f"${name}", asked[1], frozenset({asked[2]})))
    return found


def variables(text: str) -> set[str]:
    """Return the variables that a text names, without those that Grafana has itself."""
    return {one or other for one, other in _VARIABLE.findall(text)} - {"__rate_interval"}


def chosen(text: str, values: Mapping[str, list[str]]) -> str:
    """Return a text with its variables replaced as Grafana does for these values of each."""

    def value(name: str) -> str:
        if name == "__rate_interval":
            return WINDOW
        return "({})".format("|".join(map(re.escape, values[name]))).replace("\\", "\\\\")

    return _VARIABLE.sub(lambda found: value(found[1] or found[2]), text)
