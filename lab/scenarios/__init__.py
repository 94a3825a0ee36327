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


_NODES: Final = ("nodes",)

SCENARIOS: Final = (
    Scenario("unit", "starts", smoke=True),
    Scenario("unit", "confined", smoke=True),
    Scenario("unit", "reloads", smoke=True),
    Scenario("unit", "keeps_pins", smoke=True),
    Scenario("unit", "hangs", smoke=True),
    Scenario("pools", "ratios", smoke=True, machines=_NODES),
    Scenario("pools", "comings_and_goings", smoke=True),
    Scenario("pools", "drift", smoke=True, machines=_NODES),
    Scenario("pools", "isolated", machines=("odd",)),
    Scenario("pools", "vhost"),
    Scenario("cpus", "of_a_pool", smoke=True),
    Scenario("cpus", "claimed"),
    Scenario("cpus", "core", machines=_NODES),
    Scenario("cpus", "all_candidates", smoke=True),
    Scenario("faults", "libvirtd_restarts", smoke=True),
    Scenario("faults", "libvirtd_hangs"),
    Scenario("faults", "guests_die"),
    Scenario("faults", "killed_in_a_storm", smoke=True, machines=_NODES),
    Scenario("lifecycle", "save_and_restore", smoke=True),
    Scenario("lifecycle", "managed_save"),
    Scenario("lifecycle", "migration"),
    Scenario("lifecycle", "reboots"),
    Scenario("lifecycle", "burst"),
    Scenario("resources", "clock_steps"),
    Scenario("resources", "starved"),
    Scenario("resources", "full_state"),
    Scenario("cgroups", "daemon_reload"),
    Scenario("cgroups", "allowed_cpus", smoke=True),
    Scenario("leaving", "upgrade"),
    Scenario("leaving", "release"),
    Scenario("leaving", "removal", smoke=True),
)


def find(name: str) -> Scenario:
    """Return a scenario by its name."""
    for scenario in SCENARIOS:
        if name == scenario.name:
            return scenario
    raise LookupError(f"no scenario {name}: there are {', '.join(s.name for s in SCENARIOS)}")
