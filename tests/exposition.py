"""Scrapes as Prometheus' own tool judges them, and the series in them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, tuple[tuple[str, str], ...]]


@functools.cache
def promtool() -> str | None:
    """Return promtool as tools/setup.sh leaves it, beside this Python or in PATH."""
    beside = str(Path(sys.executable).parent)
    return shutil.which("promtool", path=os.pathsep.join((beside, os.environ.get("PATH", ""))))


def assert_lint_free(text: str) -> None:
    """Have `promtool check metrics` read a scrape; whatever it says fails the test."""
    tool = promtool()
    if tool is None:
        pytest.skip("promtool is missing: tools/setup.sh dev")
    done = subprocess.run(
        [tool, "check", "metrics"],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


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
