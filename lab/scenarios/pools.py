"""Pools follow guests: arrivals and departures in every cell, several ratios, drift, vhost."""

from __future__ import annotations

import fcntl
import os
import random
import struct
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt

from lab.inside import host
from lab.inside.agent import uptime
from lab.inside.waiting import check, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.inside.agent import Labels
    from lab.inside.guests import Guest
    from lab.inside.lab import Figures, Lab

_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
_TAP = "lab0"
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TAP_VNET_HDR = 0x0002 | 0x1000 | 0x4000  # IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
_VHOST = (
    *("-netdev", f"tap,id=lab,ifname={_TAP},script=no,downscript=no,vhost=on"),
    *("-device", "virtio-net-pci,netdev=lab"),
)


def ratios(lab: Lab) -> Figures:
    """Guests fill four cells, with ratios of 8, 4 and 5/2: each pool has its size, at once."""
    lab.clear()
    lab.use("8")
    number = 40 if lab.full else 16
    began = uptime()
    lab.populate(number)
    filled = uptime() - began
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
    steps, most = (48, 32) if lab.full else (24, 14)
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
    before = lab.agent.metrics().get("drift_total", {})
    wrong = tuple(cpu == guest.claims[0] for cpu in range(os.sysconf("SC_NPROCESSORS_CONF")))
    lab.node.domain(guest).pinEmulator(wrong, _LIVE)
    lab.settle("someone's virsh emulatorpin to be undone")
    if len(lab.cells[guest.cell]) > 2:  # else a pool has one pCPU, and nothing is narrower
        _narrow(lab, guest)
        wait_for(lambda: _counted(lab, "kernel", before) or _counted(lab, "stuck", before), "drift")
        lab.settle("someone's taskset to be undone")
    cpuset = lab.node.cgroup(guest) / "cpuset.cpus"
    cpuset.write_text(str(guest.claims[0]))
    lab.settle("someone's cpuset to be undone")
    wait_for(lambda: _counted(lab, "cgroup", before), "the cpuset's drift to be counted")
    counted = {
        kind: _counted(lab, kind, before) for kind in ("libvirt", "kernel", "cgroup", "stuck")
    }
    check(counted["libvirt"], f"not counted: {counted}")
    return {kind: int(count) for kind, count in counted.items()}


def _narrow(lab: Lab, guest: Guest) -> None:
    """Do as someone's taskset, to all threads that libvirt does not pin itself."""
    for thread in lab.node.threads(guest):
        if thread.role == "emulator" and thread.tid != lab.node.pid(guest):
            os.sched_setaffinity(thread.tid, {min(lab.pool(guest.cell))})


def _counted(lab: Lab, kind: str, before: dict[Labels, float]) -> float:
    key = frozenset({("kind", kind)})
    return lab.agent.metric("drift_total", kind=kind) - before.get(key, 0.0)


def vhost(lab: Lab) -> Figures:
    """The worker of a vhost-net device goes where emulator threads go, also if that is wider.

    Since kernel 6.4 it is a thread of QEMU's, before it is one of the kernel's, in QEMU's cgroup.
    """
    lab.use("2")
    lab.populate(4)
    with _vhost_allowed(lab):
        guest = lab.start(replace(lab.newcomer(), arguments=_VHOST))
        lab.settle("a guest with a vhost worker to be right")
        workers = [one for one in lab.node.threads(guest) if one.name.startswith("vhost-")]
        check(len(workers) == 1, f"it has not one worker: {lab.node.threads(guest)}")
        check(workers[0].role == "emulator", f"it is not with the emulator threads: {workers}")
        of_qemu = Path(f"/proc/{lab.node.pid(guest)}/task/{workers[0].tid}").exists()
        lab.use("0.5")
        lab.settle("the wider pool to be followed by the worker")
        lab.end(guest)
    return {"worker": "QEMU's" if of_qemu else "the kernel's"}


@contextmanager
def _vhost_allowed(lab: Lab) -> Iterator[None]:
    """Let emulated guests have vhost-net, which libvirt gives to those of KVM only."""
    host.run("modprobe", "--all", "tun", "vhost_net")
    Path("/dev/vhost-net").chmod(0o666)
    _tap(keep=True)
    conf = Path("/etc/libvirt/qemu.conf")
    usual = conf.read_text()
    devices = ("null", "full", "zero", "random", "urandom", "ptmx", "net/tun", "vhost-net")
    allowed = ", ".join(f'"/dev/{device}"' for device in devices)
    try:
        conf.write_text(f"{usual}cgroup_device_acl = [{allowed}]\n")
        lab.libvirtd.restart()
        yield
    finally:
        conf.write_text(usual)
        lab.libvirtd.restart()
        _tap(keep=False)


def _tap(*, keep: bool) -> None:
    """Make a tap device that anybody may use, or let it go."""
    with Path("/dev/net/tun").open("r+b", buffering=0) as tun:
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", _TAP.encode(), _IFF_TAP_VNET_HDR))
        fcntl.ioctl(tun, _TUNSETPERSIST, int(keep))
