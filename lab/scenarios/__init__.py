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
    anywhere: bool = False
    """It needs neither systemd nor a second cell: `make test` has it, on cgroup v1 too."""

    @property
    def name(self) -> str:
        """Return what it is called by."""
        return f"{self.module}.{self.function}"

    def run(self, lab: Lab) -> Figures:
        """Carry it out."""
        module = import_module(f"lab.scenarios.{self.module}")
        figures: Figures = getattr(module, self.function)(lab)
        return figures


_NODES: Final = ("nodes",)  # also for what neither the kernel nor the cells make a difference to

SCENARIOS: Final = (
    Scenario("unit", "starts", smoke=True),
    Scenario("unit", "confined", smoke=True),
    Scenario("unit", "reloads", machines=_NODES, smoke=True, anywhere=True),
    Scenario("unit", "keeps_pins", smoke=True, anywhere=True),
    Scenario("unit", "hangs", machines=_NODES, smoke=True),
    Scenario("pools", "ratios", smoke=True, machines=_NODES),
    Scenario("pools", "comings_and_goings", smoke=True, anywhere=True),
    Scenario("pools", "drift", smoke=True, machines=_NODES, anywhere=True),
    Scenario("pools", "isolated", machines=("odd",)),
    Scenario("pools", "vhost"),
    Scenario("cpus", "of_a_pool", smoke=True),
    Scenario("cpus", "claimed"),
    Scenario("cpus", "core", machines=_NODES),
    Scenario("cpus", "all_candidates", smoke=True),
    Scenario("faults", "libvirtd_restarts", smoke=True, anywhere=True),
    Scenario("faults", "libvirtd_hangs", machines=_NODES, anywhere=True),
    Scenario("faults", "guests_die", machines=_NODES, anywhere=True),
    Scenario("faults", "killed_in_a_storm", smoke=True, machines=_NODES, anywhere=True),
    Scenario("lifecycle", "save_and_restore", smoke=True, anywhere=True),
    Scenario("lifecycle", "managed_save", machines=_NODES, anywhere=True),
    Scenario("lifecycle", "migration"),
    Scenario("lifecycle", "reboots", machines=_NODES, anywhere=True),
    Scenario("lifecycle", "burst", machines=_NODES, anywhere=True),
    Scenario("resources", "clock_steps", machines=_NODES),
    Scenario("resources", "starved", machines=_NODES, anywhere=True),
    Scenario("resources", "full_state", anywhere=True),
    Scenario("cgroups", "daemon_reload"),
    Scenario("cgroups", "allowed_cpus", smoke=True),
    Scenario("leaving", "upgrade"),
    Scenario("leaving", "release", anywhere=True),
    Scenario("leaving", "removal", smoke=True),
)


def find(name: str) -> Scenario:
    """Return a scenario by its name."""
    for scenario in SCENARIOS:
        if name == scenario.name:
            return scenario
    raise LookupError(f"no scenario {name}: there are {', '.join(s.name for s in SCENARIOS)}")
