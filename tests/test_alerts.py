"""deploy/prometheus and docs/runbook.md: rules as promtool judges them, and an entry for each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.prometheus import FOLDER, promtool
from tests.test_metrics import PROMISED
from tests.test_metrics_series import VALUES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1]
RULES: Final = (FOLDER / "emupool.rules.yml").read_text()
TESTS: Final = sorted((FOLDER / "tests").glob("*.test.yml"))
TESTED: Final = "".join(file.read_text() for file in TESTS)
RUNBOOK: Final = (ROOT / "docs/runbook.md").read_text()

SELECTOR: Final = re.compile(r"([a-z_]*:)?(emupool_[a-z_]+)(:[a-z0-9_]+)?(?:\{([^}]*)\})?")
MATCHER: Final = re.compile(r'([a-z]+)(?:=~|!~|!=|=)"([^"]*)"')
ADDED: Final = {"job", "instance"}
"""Labels that are Prometheus' own."""


def rules(kind: str) -> dict[str, str]:
    """Return the text of each rule of a kind, alert or record, by its name."""
    parts = re.split(r"(?m)^ +- (?=alert:|record:|name:)", RULES)
    named = (part.partition("\n") for part in parts if part.startswith(f"{kind}: "))
    return {head.removeprefix(f"{kind}: "): body for head, _, body in named}


ALERTS: Final = rules("alert")
RECORDED: Final = rules("record")
ENTRIES: Final = dict(re.findall(r"(?ms)^### (\w+)\n\n(.*?)(?=^##|\Z)", RUNBOOK))


def expression(rule: str) -> str:
    """Return what a rule evaluates."""
    found = re.search(r"(?m)^ +expr: (?:\|\n((?: {10}.*\n)+)|(.+)\n)", rule)
    assert found is not None, rule
    return found[1] or found[2]


def known(name: str) -> set[str] | None:
    """Return the labels of a metric of the product, None if it has no such metric."""
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    if name not in PROMISED and PROMISED.get(base, ("",))[0] == "histogram":
        return PROMISED[base][1] | {"le"}
    return PROMISED[name][1] if name in PROMISED else None


def mistakes(query: str) -> Iterator[str]:
    """Yield what a query names that neither the product nor a recording rule has."""
    for level, name, operations, matchers in SELECTOR.findall(query):
        if level or operations:
            if level + name + operations not in RECORDED:
                yield level + name + operations
            continue
        labels = known(name)
        if labels is None:
            yield name
            continue
        for label, value in MATCHER.findall(matchers):
            if label not in labels | ADDED:
                yield f"{name}{{{label}}}"
            elif "$" not in value and label not in ADDED and value not in VALUES[label]:
                yield f"{name}{{{label}={value}}}"


def anchors(text: str) -> set[str]:
    """Return where links within a document may lead: its headings as GitHub names them."""
    return {heading.lower().replace(" ", "-") for heading in re.findall(r"(?m)^#+ (.+)$", text)}


def test_promtool_finds_nothing_to_say_about_the_configuration_and_the_rules() -> None:
    status, said = promtool(
        *("check", "config", "--lint=all", "--lint-fatal", str(FOLDER / "prometheus.yml"))
    )
    assert status == 0, said
    assert f"{len(ALERTS) + len(RECORDED)} rules found" in said  # as many as are read here


def test_promtool_sees_each_rule_do_what_it_should() -> None:
    status, said = promtool("test", "rules", *map(str, TESTS))
    assert status == 0, said


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tested_silent_and_firing(alert: str) -> None:
    looks = re.findall(rf"alertname: {alert}\n +eval_time: \w+\n( +exp_alerts:)?", TESTED)
    assert {bool(fires) for fires in looks} == {False, True}


@pytest.mark.parametrize("series", RECORDED)
def test_a_recorded_series_is_tested_and_documented(series: str) -> None:
    assert f"expr: {series}\n" in TESTED
    assert re.search(rf"(?m)^\| `{series}` \| \w", RUNBOOK)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_and_where_its_entry_stands(alert: str) -> None:
    severity = re.search(r"severity: (\w+)\n", ALERTS[alert])
    assert severity is not None
    assert f"| `{severity[1]}` |" in RUNBOOK
    assert re.search(r"(?m)^ +summary: \S", ALERTS[alert])
    assert re.search(r"(?m)^ +description: \S", ALERTS[alert])
    (url,) = re.findall(r"runbook_url: (\S+)\n", ALERTS[alert])
    path, _, anchor = url.partition("#")
    assert anchor == alert.lower()
    assert anchor in anchors((ROOT / path).read_text())


def test_the_runbook_and_the_rules_know_the_same_alerts() -> None:
    assert sorted(ENTRIES) == sorted(ALERTS)


@pytest.mark.parametrize("alert", ENTRIES)
def test_an_entry_says_all_that_is_needed_at_night(alert: str) -> None:
    heads = re.findall(r"(?m)^(Means|Look|Do|Harmless): \S", ENTRIES[alert])
    assert heads == ["Means", "Look", "Do", "Harmless"]


def test_each_link_of_the_runbook_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", RUNBOOK)
    assert links
    for path, anchor in links:
        target = ROOT / "docs" / path if path else ROOT / "docs/runbook.md"
        assert target.exists(), path
        assert not anchor or anchor in anchors(target.read_text()), anchor


@pytest.mark.parametrize("rule", [*ALERTS, *RECORDED])
def test_a_rule_names_only_what_the_product_exposes(rule: str) -> None:
    text = {**ALERTS, **RECORDED}[rule]
    assert list(mistakes(expression(text))) == []
    shown = set(re.findall(r"\$labels\.(\w+)", text))
    names = {name for _, name, _, _ in SELECTOR.findall(expression(text))}
    has = {label for name in names for label in known(name) or {"cell"}}
    assert shown <= has | ADDED


def test_the_runbook_names_only_what_the_product_exposes() -> None:
    assert list(mistakes(RUNBOOK)) == []


@pytest.mark.parametrize(
    "query",
    [
        "emupool_pool_cpu",
        "job:emupool_saved_cpus:avg",
        'emupool_guests{cell="0"}',
        'emupool_guests{state="collided"}',
        "rate(emupool_pool_cpus_bucket[5m])",
    ],
)
def test_a_query_that_names_what_is_not_there_is_found(query: str) -> None:
    assert len(list(mistakes(query))) == 1
