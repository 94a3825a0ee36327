"""Fixtures of the whole suite, and what counts as a pass.

A test that uses `libvirtd` or `own_libvirtd` is marked `real`: it is skipped where none can run.
Under CI=true such a skip is a failure, and so is any other but those whose reason begins with
`host: `, which name what the machine is not made of (`host: has 2 pCPUs, 4 are needed`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, settings

from tests import browser
from tests.effort import SOAK
from tests.libvirtd import Libvirtd, missing
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from tests.guests import Guest

CI: Final = os.environ.get("CI") == "true"
ALLOWED_SKIP: Final = "host: "

# Two busy cores make any deadline a coin toss. CI repeats what it did the last time; a soak draws
# anew each time.
settings.register_profile("emupool", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("emupool"), derandomize=True, database=None)
settings.register_profile("soak", settings.get_profile("emupool"), database=None)
settings.load_profile("soak" if SOAK else "ci" if CI else "emupool")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a libvirtd of their own, and put `last` ones last."""
    for item in items:
        if {"libvirtd", "own_libvirtd"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("real")
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run here, before any fixture starts."""
    if item.get_closest_marker("real") and (reason := missing()):
        pytest.skip(reason)
    if item.get_closest_marker("browser") and browser.program() is None:
        pytest.skip(f"{ALLOWED_SKIP}has no Chromium: make test-page installs it")


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not CI or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(ALLOWED_SKIP):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not accept: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip that CI does not accept into a failure."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole module into an error, likewise."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.fixture(scope="session")
def _session_libvirtd() -> Iterator[Libvirtd]:
    with Libvirtd() as started:
        yield started


@pytest.fixture
def libvirtd(_session_libvirtd: Libvirtd) -> Libvirtd:
    """A libvirtd that runs, shared by all tests; they may kill it, and it is started again."""
    _session_libvirtd.recover()
    return _session_libvirtd


@pytest.fixture
def own_libvirtd() -> Iterator[Libvirtd]:
    """A libvirtd for this test alone, with no guest in it."""
    with Libvirtd() as started:
        yield started


@pytest.fixture
def make_guest(libvirtd: Libvirtd) -> Iterator[Callable[..., Guest]]:
    """`Libvirtd.guest` of the shared libvirtd; ends and forgets what it made after the test."""
    made: list[Guest] = []

    def make(name: str, **properties: object) -> Guest:
        made.append(libvirtd.guest(name, **properties))
        return made[-1]

    yield make
    libvirtd.recover()
    libvirtd.remove_all(made)


@pytest.fixture
def service(libvirtd: Libvirtd, tmp_path: Path) -> Iterator[Service]:
    """Run the daemon beside the shared libvirtd; its pools may take pCPUs 0 and 1."""
    with Service(libvirtd.uri, tmp_path, pool={"cpus": "0-1"}) as running:
        yield running


@pytest.fixture
def start(make_guest: Callable[..., Guest]) -> Callable[..., Guest]:
    """Define and start an isolate guest."""

    def make(name: str, **properties: object) -> Guest:
        return make_guest(name, **{"metadata_policy": "isolate", **properties}).define().start()

    return make
