"""Upgrade, release and removal: guests are as they were, and nothing is left."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from lab.inside import guests, host, install, systemd
from lab.inside.waiting import check
from lab.scenarios.faults import released

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lab.inside.guests import Guest, Node
    from lab.inside.lab import Figures, Lab


def upgrade(lab: Lab) -> Figures:
    """A newer version is installed over a running older one: no guest moves."""
    lab.use("2")
    lab.populate(8)
    now = lab.agent.metrics()["build_info"]
    install.put(lab.agent, install.OLDER)
    check(lab.agent.metrics()["build_info"] != now, "the older version does not run")
    lab.settle()
    pins = {guest: lab.node.recorded(guest) for guest in lab.present}
    install.put(lab.agent, install.NEWER)
    check(lab.agent.metrics()["build_info"] == now, "the newer version does not run")
    lab.settle()
    check(lab.agent.total("repins_total") == 0, "an upgrade moved guests")
    for guest, pin in pins.items():
        check(lab.node.recorded(guest) == pin, f"{guest.name} moved")
    return {"guests": len(pins)}


def release(lab: Lab) -> Figures:
    """`emupool release` is refused beside the daemon, and without it gives original pins back."""
    lab.use("2")
    lab.populate(8)
    lab.settle()
    code, said = host.status_of(*lab.agent.command("release"))
    check(code == 1, f"beside the daemon release ends with {code}: {said}")
    check(said.count("\n") == 0, f"more than one line: {said}")
    released(lab)
    return {"guests": len(lab.present)}


def removal(lab: Lab) -> Figures:
    """A removal leaves nothing behind, and guests as its guide says.

    By the guide's lines they are released. A package leaves them where they are, and its purge the
    rest.
    """
    lab.use("2")
    lab.populate(8)
    lab.settle()
    before = {guest: lab.node.pid(guest) for guest in lab.present}
    wanted = {guest: guest.original for guest in lab.present}
    if install.is_package():
        wanted = {guest: lab.node.recorded(guest) for guest in lab.present}
        host.run("dpkg", "--remove", "emupool")
        _undisturbed(lab.node, before, wanted)
        check(lab.agent.config.exists() and lab.agent.state.exists(), "a removal is no purge")
        host.run("dpkg", "--purge", "emupool")
    else:
        lab.agent.stop()
        install.remove()
    _undisturbed(lab.node, before, wanted)
    found = host.run("find", "/", "-xdev", "-name", "*emupool*", "-not", "-path", "/lab/*")
    left = [*found.split(), *map(str, Path("/run").glob("*emupool*"))]
    check(not left, f"left behind: {left}")
    check(host.status_of("systemctl", "cat", systemd.UNIT)[0] != 0, "systemd still knows the unit")
    check(host.status_of("id", "emupool")[0] != 0, "the user is still there")
    alive = subprocess.run(("pgrep", "-f", "emupool"), capture_output=True, check=False)
    check(not alive.stdout, f"processes: {alive.stdout!r}")
    return {"guests": len(before)}


def _undisturbed(
    node: Node, processes: Mapping[Guest, int], wanted: Mapping[Guest, host.Cpus]
) -> None:
    """Fail unless guests run on as the same processes, with their emulator threads as wanted."""
    for guest, pid in processes.items():
        now = node.threads(guest)
        check(node.pid(guest) == pid, f"{guest.name} was started anew")
        check(guests.masks(now, "emulator") == {wanted[guest]}, f"{guest.name}: {now}")
