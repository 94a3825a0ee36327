"""Pools follow guests: arrivals and departures in every cell, several ratios, drift."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt

from lab.inside import agent, guests, host
from lab.inside.waiting import check, wait_for

if TYPE_CHECKING:
    from lab.inside.guests import Guest
    from lab.inside.lab import Figures, Lab

_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE


def ratios(lab: Lab) -> Figures:
    """Guests fill four cells, with ratios of 8, 4 and 5/2: each pool has its size, at once."""
    lab.clear()
    lab.use("8")
    number = 40 if lab.full else 16
    began = agent.uptime()
    lab.populate(number)
    filled = agent.uptime() - began
    threads = lab.pins()
    figures: Figures = {"guests": number, "threads": threads, "filled": f"{filled:.0f}s"}
    for ratio in ("8", "4", "2.5"):
        lab.use(ratio)
        lab.settle(f"the pools of ratio {ratio}")
        figures[ratio] = "/".join(str(len(lab.pool(cell))) for cell in lab.cells)
    return figures


def comings_and_goings(lab: Lab) -> Figures:
    """Guests arrive and leave in a random order; after each few steps every pin is right."""
    lab.use("2.5")
    lab.populate(8)
    lab.settle()
    dice = random.Random(f"{lab.machine} comings")
    steps, most = (80, 32) if lab.full else (24, 14)
    judged = slowest = 0.0
    number = 100
    for step in range(steps):
        leaves = len(lab.guests) >= most or (len(lab.guests) > 4 and dice.random() < 0.45)
        if leaves:
            lab.end(dice.choice(list(lab.present)))
        else:
            number += 1
            lab.start(lab.guest(number, dice.choice(sorted(lab.cells))))
        if step % 4 == 3:
            slowest = max(slowest, lab.settle(f"all pins to be right after step {step}"))
            judged += lab.pins()
    return {"steps": steps, "threads": int(judged), "slowest": f"{slowest:.1f}s"}


def isolated(lab: Lab) -> Figures:
    """Isolated pCPUs are used if they are named, and then each guest has one of its own."""
    lab.clear()
    lab.use("2")
    lab.populate(8)
    lab.settle("pools without isolated pCPUs")
    for cell in lab.cells:
        check(not lab.pool(cell) & host.isolated(), f"cell {cell}: {lab.pool(cell)} is isolated")
    lab.use("2", cpus=host.show(host.isolated()))
    lab.settle("guests to have one isolated pCPU each")
    return {"/".join(host.show(lab.pool(cell)) for cell in lab.cells): "isolated"}


def drift(lab: Lab) -> Figures:
    """What others change is put right, and counted by kind."""
    lab.use("1")
    present = lab.populate(2 * len(lab.cells))
    lab.settle()
    guest = next(one for one in present if one.managed)
    before = agent.metrics().get("drift_total", {})
    wrong = tuple(cpu == guest.claims[0] for cpu in range(os.sysconf("SC_NPROCESSORS_CONF")))
    lab.node.domain(guest).pinEmulator(wrong, _LIVE)
    lab.settle("someone's virsh emulatorpin to be undone")
    for thread in guests.threads(guest):
        if thread.role == "emulator" and thread.tid != guests.pid(guest):
            os.sched_setaffinity(thread.tid, {min(lab.pool(guest.cell))})
    wait_for(lambda: _counted("kernel", before) or _counted("stuck", before), "taskset to be seen")
    lab.settle("someone's taskset to be undone")
    cpuset = _cgroup(guest) / "cpuset.cpus"
    cpuset.write_text(str(guest.claims[0]))
    lab.settle("someone's cpuset to be undone")
    wait_for(lambda: _counted("cgroup", before), "the cpuset's drift to be counted")
    counted = {kind: _counted(kind, before) for kind in ("libvirt", "kernel", "cgroup", "stuck")}
    check(counted["libvirt"], f"not counted: {counted}")
    return {kind: int(count) for kind, count in counted.items()}


def _counted(kind: str, before: dict[agent.Labels, float]) -> float:
    key = frozenset({("kind", kind)})
    return agent.metric("drift_total", kind=kind) - before.get(key, 0.0)


def _cgroup(guest: Guest) -> Path:
    place = Path(f"/proc/{guests.pid(guest)}/cgroup").read_text().strip().partition("::")[2]
    return Path("/sys/fs/cgroup") / place.lstrip("/")
