"""deploy/grafana/emupool.json, as far as can be told without Grafana.

What its queries find is seen in tests/test_prometheus.py.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.dashboard import DOCUMENT, PANELS, VARIABLES, choices, queries, variables
from tests.test_alerts import SELECTOR, mistakes
from tests.test_metrics import PROMISED

KINDS: Final = {"stat", "timeseries", "table", "bargauge", "state-timeline"}
"""Panels that Grafana itself brings."""
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24


def test_the_dashboard_is_as_grafana_imports_it() -> None:
    assert DOCUMENT["schemaVersion"] == 39  # of Grafana 10.4; later ones read it
    assert (DOCUMENT["id"], DOCUMENT["uid"]) == (None, "emupool")
    ids = [panel["id"] for panel in DOCUMENT["panels"]]
    assert len(set(ids)) == len(ids)


def test_panels_are_side_by_side_and_not_one_upon_the_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DOCUMENT["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not own & taken, panel["title"]
        assert at["x"] + at["w"] <= WIDTH, panel["title"]
        taken |= own


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_asks_the_chosen_source(panel: dict[str, Any]) -> None:
    assert panel["type"] in KINDS
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert [target["datasource"] for target in (panel, *panel["targets"])] == [SOURCE] * (
        1 + len(panel["targets"])
    )
    refs = [target["refId"] for target in panel["targets"]]
    assert len(set(refs)) == len(refs)


def test_titles_are_told_apart() -> None:
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("query", [*choices(), *queries()], ids=lambda query: query.name)
def test_a_query_names_what_there_is_and_obeys_the_choice(query: tuple[str, str]) -> None:
    _, text = query[:2]
    assert list(mistakes(text)) == []
    assert variables(text) <= VARIABLES.keys()
    if query[0] != "$job":
        assert "job" in variables(text)


def test_each_metric_of_the_product_is_drawn() -> None:
    drawn = {name for query in queries() for _, name, _, _ in SELECTOR.findall(query.text)}
    missing = {
        name
        for name, (kind, _) in PROMISED.items()
        if (f"{name}_bucket" if kind == "histogram" else name) not in drawn
    }
    assert missing == set()


def test_fleet_node_and_cell_can_be_chosen() -> None:
    assert list(VARIABLES) == ["datasource", "job", "instance", "cell"]
    for name in ("instance", "cell"):
        assert (VARIABLES[name]["multi"], VARIABLES[name]["includeAll"]) == (True, True)
        assert any(name in variables(query.text) for query in queries())
