"""The scenarios: what each shows, on which machines, and whether the smoke has it.

A scenario takes the lab and returns its figures; it raises if something is not as it has to be.
They run in the order of this list, on one host: none relies on what another one left, and none
may leave a pCPU off line.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lab.inside.lab import Figures, Lab


@dataclass(frozen=True, slots=True)
class Scenario:
    """A function of this package, by module and name."""

    module: str
    function: str
    smoke: bool = False
    machines: tuple[str, ...] = ("nodes", "odd")

    @property
    def name(self) -> str:
        """Return what it is called by."""
        return f"{self.module}.{self.function}"

    def run(self, lab: Lab) -> Figures:
        """Carry it out."""
        module = import_module(f"lab.scenarios.{self.module}")
        figures: Figures = getattr(module, self.function)(lab)
        return figures


SCENARIOS: Final = (
    Scenario("unit", "starts", smoke=True),
    Scenario("unit", "confined", smoke=True),
    Scenario("unit", "reloads", smoke=True),
    Scenario("unit", "keeps_pins", smoke=True),
    Scenario("unit", "hangs", smoke=True),
)


def find(name: str) -> Scenario:
    """Return a scenario by its name."""
    for scenario in SCENARIOS:
        if name == scenario.name:
            return scenario
    raise LookupError(f"no scenario {name}: there are {', '.join(s.name for s in SCENARIOS)}")
