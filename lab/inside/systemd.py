"""The agent and libvirtd as systemd's units."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lab.inside import host
from lab.inside.agent import Agent
from lab.inside.waiting import check, wait_for

UNIT: Final = "emupool.service"
_LIBVIRTD: Final = "libvirtd.service"


def ctl(*arguments: str) -> str:
    """Run systemctl."""
    return host.run("systemctl", *arguments)


def show(*properties: str, unit: str = UNIT) -> dict[str, str]:
    """Return properties of a unit, the agent's if none is said."""
    told = ctl("show", unit, *(f"--property={name}" for name in properties))
    return dict(line.split("=", 1) for line in told.splitlines())


def journal(*arguments: str) -> str:
    """Return a part of the journal, or what journalctl says of it."""
    return host.run("journalctl", "--quiet", *arguments)


class Unit(Agent):
    """The agent by its unit."""

    config = Path("/etc/emupool/config.toml")
    state = Path("/run/emupool/state.json")

    @property
    def url(self) -> str:
        """Return the usual one."""
        return "http://127.0.0.1:9857"

    def begin(self) -> None:
        """Start the unit; systemctl returns when the agent said READY."""
        ctl("reset-failed", UNIT)
        ctl("start", UNIT)

    def restart(self) -> None:
        """Restart the unit."""
        ctl("reset-failed", UNIT)
        ctl("restart", UNIT)
        wait_for(self.ready, "the agent to be ready after a restart")

    def stop(self) -> None:
        """Stop the unit; it has to end well."""
        ctl("stop", UNIT)
        result = show("Result")["Result"]
        check(result == "success", f"the stop: {result}")

    def hup(self) -> None:
        """Reload the unit."""
        ctl("reload", UNIT)

    def kill(self) -> None:
        """Kill it; systemd, which would start it again, must not give up on it."""
        ctl("kill", "--signal=KILL", UNIT)
        ctl("reset-failed", UNIT)
        ctl("start", "--no-block", UNIT)

    def pid(self) -> int:
        """Return the unit's main process, 0 if there is none."""
        return int(show("MainPID")["MainPID"])

    def now(self) -> str:
        """Return a cursor of the journal."""
        return journal("--lines=0", "--show-cursor").rpartition("-- cursor: ")[2].strip()

    def journal(self, cursor: str) -> str:
        """Return what the agent, and systemd about it, wrote since `cursor`."""
        return journal("--output=cat", f"--unit={UNIT}", f"--after-cursor={cursor}")


class Libvirtd:
    """libvirtd by its unit."""

    @property
    def pid(self) -> int:
        """Return its process."""
        return int(show("MainPID", unit=_LIBVIRTD)["MainPID"])

    def restart(self) -> None:
        """Restart it; its guests live on."""
        ctl("restart", _LIBVIRTD)

    def kill(self) -> None:
        """Kill it."""
        ctl("kill", "--signal=KILL", "--kill-whom=main", _LIBVIRTD)

    def start(self) -> None:
        """Start it again."""
        ctl("reset-failed", _LIBVIRTD)
        ctl("start", _LIBVIRTD)
