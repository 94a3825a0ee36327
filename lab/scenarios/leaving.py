"""Upgrade, release and removal: guests are as they were, and nothing is left."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from lab.inside import agent, guests, host, install
from lab.inside.waiting import check
from lab.scenarios.faults import released

if TYPE_CHECKING:
    from lab.inside.lab import Figures, Lab

_OLDER = "0.0.1"


def upgrade(lab: Lab) -> Figures:
    """A newer version is installed over a running older one: no guest moves."""
    if not Path("/opt/emupool").exists():
        return {"skipped": "installed as a package"}
    lab.use("2")
    lab.populate(8)
    now = agent.metrics()["build_info"]
    install.pip("older")
    agent.restart()
    check(agent.metric("build_info", version=_OLDER) == 1, "the older version does not run")
    lab.settle()
    pins = {guest: lab.node.recorded(guest) for guest in lab.present}
    install.pip("wheels")
    check(agent.metric("build_info", version=_OLDER) == 1, "the older one was stopped")
    agent.restart()
    check(agent.metrics()["build_info"] == now, "the newer version does not run")
    lab.settle()
    check(agent.total("repins_total") == 0, "an upgrade moved guests")
    for guest, pin in pins.items():
        check(lab.node.recorded(guest) == pin, f"{guest.name} moved")
    return {"guests": len(pins)}


def release(lab: Lab) -> Figures:
    """`emupool release` is refused beside the daemon, and without it gives original pins back."""
    lab.use("2")
    lab.populate(8)
    lab.settle()
    code, said = host.status_of("emupool", "release")
    check(code == 1, f"beside the daemon release ends with {code}: {said}")
    check(said.count("\n") == 0, f"more than one line: {said}")
    released(lab)
    return {"guests": len(lab.present)}


def removal(lab: Lab) -> Figures:
    """The guide's removal leaves nothing behind, and guests as they were started."""
    lab.use("2")
    lab.populate(8)
    lab.settle()
    before = {guest: guests.pid(guest) for guest in lab.present}
    agent.stop()
    install.remove()
    for guest, pid in before.items():
        now = guests.threads(guest)
        check(guests.pid(guest) == pid, f"{guest.name} was started anew")
        check(guests.masks(now, "emulator") == {guest.original}, f"{guest.name}: {now}")
    found = host.run("find", "/", "-xdev", "-name", "*emupool*", "-not", "-path", "/lab/*")
    left = [*found.split(), *map(str, Path("/run").glob("*emupool*"))]
    check(not left, f"left behind: {left}")
    check(host.status_of("systemctl", "cat", agent.UNIT)[0] != 0, "systemd still knows the unit")
    check(host.status_of("id", "emupool")[0] != 0, "the user is still there")
    alive = subprocess.run(("pgrep", "-f", "emupool"), capture_output=True, check=False)
    check(not alive.stdout, f"processes: {alive.stdout!r}")
    return {"guests": len(before)}
