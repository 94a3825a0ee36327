"""What libraries bring along and nobody uses is not imported, and still can be."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from agent.lean import without

SPARED = {
    "agent.logs": ("asyncio", "rich"),
    "agent.metrics": (
        *("email", "http.client", "http.server", "tempfile", "urllib.error", "urllib.request"),
        "wsgiref.simple_server",
    ),
}


@pytest.mark.parametrize("module", SPARED)
def test_what_is_not_used_is_not_imported_and_still_can_be(module: str) -> None:
    names = SPARED[module]
    code = f"""
import importlib, sys
import {module}
print([m for m in sys.modules if any(m == name or m.startswith(name + ".") for name in {names})])
print([bool(importlib.import_module(name).__file__) for name in {names}])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["[]", str([True] * len(names))]


def test_what_is_there_already_stays() -> None:
    with without(absent=("subprocess",), hollow=("sys",)):
        assert importlib.import_module("subprocess") is subprocess
        assert importlib.import_module("sys") is sys


def test_a_hollow_module_has_any_class_and_no_special_name() -> None:
    with without(hollow=("no.such",)):
        made = importlib.import_module("no.such")
        assert isinstance(made.Anything, type)
        assert made.Anything is made.Anything
        assert not hasattr(made, "__path__")
    assert "no.such" not in sys.modules
