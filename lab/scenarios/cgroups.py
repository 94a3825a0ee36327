"""systemd and the cpusets of guests: what it imposes is followed, what it reloads is no matter."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lab.inside import host, systemd
from lab.inside.waiting import check

if TYPE_CHECKING:
    from lab.inside.lab import Figures, Lab


def daemon_reload(lab: Lab) -> Figures:
    """A daemon-reload of systemd leaves every pin as it is, or it is put right."""
    lab.use("2")
    lab.populate(8)
    lab.settle()
    systemd.ctl("daemon-reload")
    took = lab.settle("all pins to be right after a daemon-reload")
    return {"right": f"{took:.1f}s"}


def allowed_cpus(lab: Lab) -> Figures:
    """AllowedCPUs= of machine.slice takes pool pCPUs away: pools leave them, and come back."""
    lab.use("2")
    lab.populate(2 * len(lab.cells))  # so that each cell has others to go to
    lab.settle()
    everything = host.online()
    gone = {max(lab.pool(cell)) for cell in lab.cells}
    try:
        _allow(everything - gone)
        lab.rules = replace(lab.rules, partition=everything - gone)
        took = lab.settle("the pools to leave what systemd took away")
        told = {row["id"]: host.parse(row["candidates"]) for row in lab.agent.status()["cells"]}
        left = frozenset().union(*told.values()) & gone
        check(not left, f"the status says that {sorted(left)} could be used")
    finally:
        _allow(everything)
    lab.rules = replace(lab.rules, partition=None)
    lab.start(lab.newcomer())
    lab.settle("all to be right with every pCPU again")
    return {"gone": sorted(gone), "left_after": f"{took:.1f}s"}


def _allow(cpus: host.Cpus) -> None:
    cpu_list = f"AllowedCPUs={host.show(cpus)}"
    systemd.ctl("set-property", "--runtime", "machine.slice", cpu_list)
