"""pCPUs go off line and come back, under guests: pools leave them, and may have them again.

No reconcile comes meanwhile: what happens is what the kernel's event brings about.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lab.inside import guests, host
from lab.inside.waiting import SECONDS, Failure, check

if TYPE_CHECKING:
    from lab.inside.lab import Figures, Lab

_NEVER = 3600


def _evacuated(lab: Lab, *cpus: int) -> float:
    """Put pCPUs off line, and return the ms until libvirt pins nobody of ours to them."""
    for cpu in cpus:
        host.set_online(cpu, on=False)
    began = time.monotonic()
    while any(lab.node.recorded(guest) & {*cpus} for guest in lab.present if guest.managed):
        if time.monotonic() - began > SECONDS:
            raise Failure(f"guests are still pinned to {cpus}, which are off line")
        time.sleep(0.005)
    return (time.monotonic() - began) * 1000


def of_a_pool(lab: Lab) -> Figures:
    """A pool's pCPU goes off line and comes back, in each cell."""
    lab.use("4", interval=_NEVER)
    lab.populate(16 if lab.full else 8)
    lab.settle()
    took = []
    for cell in lab.cells:
        cpu = max(lab.pool(cell))
        if not cpu:
            continue  # the kernel cannot do without pCPU 0
        took.append(_evacuated(lab, cpu))
        lab.settle(f"cell {cell} to do without pCPU {cpu}")
        host.set_online(cpu, on=True)
        lab.settle(f"pCPU {cpu} to be back")
    return {"evacuated": "/".join(f"{ms:.0f}" for ms in took) + "ms"}


def claimed(lab: Lab) -> Figures:
    """A claimed pCPU goes off line and comes back: it stays claimed, and no vCPU is touched."""
    lab.use("2", interval=_NEVER)
    present = lab.populate(8)
    lab.settle()
    for guest in present[:2]:
        cpu = max(guest.claims)
        if not cpu:
            continue
        host.set_online(cpu, on=False)
        lab.settle(f"all to be right without pCPU {cpu}")
        check(cpu not in lab.pool(guest.cell), f"{cpu} is claimed")
        host.set_online(cpu, on=True)
        lab.settle(f"all to be right with pCPU {cpu} again")
    return {}


def core(lab: Lab) -> Figures:
    """Both threads of a core go off line at once."""
    lab.use("2.5", interval=_NEVER)
    lab.populate(16 if lab.full else 8)
    lab.settle()
    cell = max(lab.cells)
    cpus = host.core(max(lab.pool(cell)))
    took = _evacuated(lab, *sorted(cpus))
    lab.settle(f"the pools to do without the core {sorted(cpus)}")
    host.all_online()
    lab.settle("the core to be back")
    return {"core": host.show(cpus), "evacuated": f"{took:.0f}ms"}


def all_candidates(lab: Lab) -> Figures:
    """All that a cell's pool may use goes off line: nobody is left there, nor put on a claim."""
    last = {cell: sorted(cpus)[-2:] for cell, cpus in lab.cells.items()}
    lab.use("4", interval=_NEVER, cpus=host.show(frozenset().union(*last.values())))
    lab.populate(8)
    lab.settle()
    cell = max(lab.cells)
    took = _evacuated(lab, *last[cell])
    lab.settle("the other cells to be right")
    bad = {cpu for guest in lab.present for cpu in guest.claims} | {*last[cell]}
    mine = [guest for guest in lab.present if guest.managed and guest.cell == cell]
    for guest in mine:
        now = guests.masks(lab.node.threads(guest), "emulator")
        wrong = frozenset().union(*now) & bad
        check(len(now) == 1 and not wrong, f"{guest.name} is on {now}; {wrong} is not good")
    check(lab.agent.metric("pool_shortage_cpus", cell=str(cell)) > 0, "no shortage is told")
    host.all_online()
    lab.settle("the cell's pool to be back")
    return {"guests": len(mine), "gone": last[cell], "evacuated": f"{took:.0f}ms"}
