"""Guests are saved, restored, migrated, rebooted, started anew: pins are right after each.

They are persistent: of a transient one that was restored nobody knows whether its iothread follows.
"""

from __future__ import annotations

import subprocess
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt

from lab.inside import guests
from lab.inside.waiting import check, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.inside.lab import Figures, Lab

_PAUSED = libvirt.VIR_DOMAIN_SAVE_PAUSED
_IMAGE = "/var/tmp/lab-save"  # noqa: S108 - in the lab
_MIGRATE = (  # as Nova does
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
)
_ELSEWHERE = Path("/run/lab-elsewhere")
_LIBVIRTD = f"""\
for folder in /run/libvirt /run/dbus /etc/libvirt /var/lib/libvirt /var/log/libvirt; do
    mount -t tmpfs tmpfs $folder
done
cp {_ELSEWHERE}/qemu.conf /etc/libvirt/
exec libvirtd --config {_ELSEWHERE}/libvirtd.conf --pid-file {_ELSEWHERE}/pid
"""


def save_and_restore(lab: Lab) -> Figures:
    """A guest is saved and restored, while others fill the pool that its image speaks of."""
    lab.use("2")
    lab.populate(8)
    guest = lab.start(lab.newcomer(follows=True), persistent=True)
    lab.settle()
    domain = lab.node.domain(guest)
    domain.saveFlags(_IMAGE, None, _PAUSED)
    del lab.guests[guest.name]
    lab.settle("the pools without the guest that was saved")
    lab.use("1")
    lab.settle()
    lab.node.link.restoreFlags(_IMAGE, None, _PAUSED)
    lab.guests[guest.name] = guest
    took = lab.settle("the restored guest to be right")
    Path(_IMAGE).unlink()
    lab.end(guest)
    domain.undefine()
    return {"guest": guest.name, "right": f"{took:.1f}s"}


def managed_save(lab: Lab) -> Figures:
    """A persistent guest has a managed save, and is started from it."""
    lab.use("2")
    lab.populate(8)
    guest = lab.start(lab.newcomer(follows=True), persistent=True)
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


def migration(lab: Lab) -> Figures:
    """A guest migrates here from another libvirtd, with a pin that is no good here, and back."""
    lab.use("2")
    lab.populate(8)
    lab.settle()
    with _elsewhere() as there:
        guest = lab.newcomer(follows=True)
        there.defineXML(guest.xml()).createWithFlags(guests.PAUSED)
        where = {libvirt.VIR_MIGRATE_PARAM_URI: f"unix:{_ELSEWHERE}/migration"}
        there.lookupByName(guest.name).migrate3(lab.node.link, where, _MIGRATE)
        lab.guests[guest.name] = guest
        took = lab.settle("a guest to be right that migrated here")
        lab.node.domain(guest).migrate3(there, where, _MIGRATE)
        del lab.guests[guest.name]
        lab.settle("the pools without the guest that went away")
        gone = there.lookupByName(guest.name)
        gone.destroy()
        gone.undefine()
    return {"right": f"{took:.1f}s"}


@contextmanager
def _elsewhere() -> Iterator[libvirt.virConnect]:
    """Have another libvirtd on this host that takes it for another host.

    Without systemd's bus, so that it makes cgroups of its own: those of a guest that is here and
    there at the same time would have one name.
    """
    _ELSEWHERE.mkdir(exist_ok=True)
    _ELSEWHERE.chmod(0o777)  # QEMU's user makes a socket in it
    usual = Path("/etc/libvirt/qemu.conf").read_text()
    (_ELSEWHERE / "qemu.conf").write_text(f'{usual}stdio_handler = "file"\n')
    (_ELSEWHERE / "libvirtd.conf").write_text(
        f'unix_sock_dir = "{_ELSEWHERE}"\nhost_uuid = "{uuid.uuid4()}"\n'
        'auth_unix_ro = "none"\nauth_unix_rw = "none"\n'
    )
    uri = f"qemu+unix:///system?socket={_ELSEWHERE}/libvirt-sock"
    links: list[libvirt.virConnect] = []
    daemon = subprocess.Popen(("unshare", "--mount", "sh", "-ec", _LIBVIRTD))

    def answers() -> bool:
        check(daemon.poll() is None, f"another libvirtd ended with {daemon.returncode}")
        with suppress(libvirt.libvirtError):
            links.append(libvirt.open(uri))
        return bool(links)

    try:
        wait_for(answers, "another libvirtd to answer")
        yield links[0]
        links[0].close()
    finally:
        daemon.terminate()
        daemon.wait()


def reboots(lab: Lab) -> Figures:
    """A reset keeps pins; a hard reboot, which is a new start, has them again."""
    lab.use("2")
    lab.populate(8)
    guest = lab.start(lab.newcomer(follows=True), persistent=True)
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
    lab.use("2")
    lab.populate(8)
    lab.settle()
    domains = [lab.node.domain(guest) for guest in lab.present]
    before = lab.agent.metrics()
    count = 0
    while count < 300:
        for domain in domains:
            domain.resume()
            domain.suspend()
            count += 2
    took = lab.settle("all to be in order after the burst")
    after = lab.agent.metrics()
    cycles = sum(after["cycles_total"].values()) - sum(before["cycles_total"].values())
    events = sum(after["events_total"].values()) - sum(before["events_total"].values())
    repins = sum(after["repins_total"].values()) - sum(before.get("repins_total", {}).values())
    check(events >= count, f"{count} events happened, it knows of {events:.0f}")
    check(not repins, f"{repins:.0f} pins were sent for nothing")
    return {"events": int(events), "cycles": int(cycles), "settled": f"{took:.1f}s"}
