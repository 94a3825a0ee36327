"""Guests are saved, restored, rebooted, and started anew: pins are right after each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import libvirt

from lab.inside import guests, host
from lab.inside.waiting import check

if TYPE_CHECKING:
    from lab.inside.guests import Guest
    from lab.inside.lab import Figures, Lab

_PAUSED = libvirt.VIR_DOMAIN_SAVE_PAUSED
_IMAGE = "/var/tmp/lab-save"  # noqa: S108 - in the lab


def _managed(lab: Lab) -> Guest:
    return next(guest for guest in lab.present if guest.follows)


def save_and_restore(lab: Lab) -> Figures:
    """A guest is saved and restored, while others fill the pool that its image speaks of."""
    lab.use("2")
    lab.populate(8)
    lab.settle()
    guest = _managed(lab)
    lab.node.domain(guest).saveFlags(_IMAGE, None, _PAUSED)
    del lab.guests[guest.name]
    lab.settle("the pools without the guest that was saved")
    lab.use("1")
    lab.settle()
    lab.node.link.restoreFlags(_IMAGE, None, _PAUSED)
    lab.guests[guest.name] = guest
    took = lab.settle("the restored guest to be right")
    Path(_IMAGE).unlink()
    return {"guest": guest.name, "right": f"{took:.1f}s"}


def managed_save(lab: Lab) -> Figures:
    """A persistent guest has a managed save, and is started from it."""
    lab.use("2")
    lab.populate(8)
    guest = lab.start(lab.guest(200), persistent=True)
    lab.settle()
    domain = lab.node.domain(guest)
    before = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    domain.managedSave(_PAUSED)
    domain.createWithFlags(guests.PAUSED)
    took = lab.settle("the guest to be right that was started from a managed save")
    check(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == before, "its definition was changed")
    lab.end(guest)
    domain.undefine()
    return {"right": f"{took:.1f}s"}


def reboots(lab: Lab) -> Figures:
    """A reset keeps pins; a hard reboot, which is a new start, has them again."""
    lab.use("2")
    lab.populate(8)
    guest = lab.start(lab.guest(201), persistent=True)
    lab.settle()
    domain = lab.node.domain(guest)
    domain.reset()
    lab.settle("a reset guest to be right")
    domain.destroy()
    domain.createWithFlags(guests.PAUSED)
    took = lab.settle("a guest to be right that was started anew")
    lab.end(guest)
    domain.undefine()
    return {"right": f"{took:.1f}s"}


def burst(lab: Lab) -> Figures:
    """Three hundred lifecycle events in a burst: they coalesce, and nothing lags."""
    from lab.inside import agent  # noqa: PLC0415

    lab.use("2")
    lab.populate(8)
    lab.settle()
    domains = [lab.node.domain(guest) for guest in lab.present]
    before = agent.metrics()
    count = 0
    while count < 300:
        for domain in domains:
            domain.resume()
            domain.suspend()
            count += 2
    took = lab.settle("all to be in order after the burst")
    after = agent.metrics()
    cycles = sum(after["cycles_total"].values()) - sum(before["cycles_total"].values())
    events = sum(after["events_total"].values()) - sum(before["events_total"].values())
    repins = sum(after["repins_total"].values()) - sum(before.get("repins_total", {}).values())
    check(events >= count, f"{count} events happened, it knows of {events:.0f}")
    check(not repins, f"{repins:.0f} pins were sent for nothing")
    host.run("true")
    return {"events": int(events), "cycles": int(cycles), "settled": f"{took:.1f}s"}
