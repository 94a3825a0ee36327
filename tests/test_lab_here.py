"""The lab's scenarios that need neither systemd nor a second cell, on this machine's own kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab.scenarios import SCENARIOS, Scenario
from tests.labhere import Here
from tests.libvirtd import Libvirtd

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    with Libvirtd() as libvirtd:
        made = Here(libvirtd, tmp_path_factory.mktemp("lab"))
        yield made
        made.agent.stop()


@pytest.mark.parametrize(
    "scenario", [one for one in SCENARIOS if one.anywhere], ids=lambda one: one.name
)
def test_a_scenario_of_the_lab(lab: Here, scenario: Scenario) -> None:
    scenario.run(lab)
