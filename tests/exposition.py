"""Scrapes as Prometheus' own tool judges them, and the series in them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.prometheus import promtool

Series = tuple[str, tuple[tuple[str, str], ...]]


def assert_lint_free(text: str) -> None:
    """Have `promtool check metrics` read a scrape; whatever it says fails the test."""
    assert promtool("check", "metrics", text=text) == (0, "")


def series(text: str) -> set[Series]:
    """Return each series of a scrape by its name and labels; two alike fail the test."""
    samples = [
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    found = set(samples)
    assert len(found) == len(samples)
    return found
