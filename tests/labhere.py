"""The lab's scenarios on this machine: its own kernel, one cell, and no systemd.

The agent is a process of ours, libvirt a private libvirtd. With two pCPUs the guests have the first
one for their vCPUs, and the pool is the second one.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from lab.inside.agent import Agent
from lab.inside.guests import Guest, Node
from lab.inside.lab import Lab
from tests.guests import has_ended
from tests.service import RUN, START_SECONDS, free_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.libvirtd import Libvirtd

_POOL = frozenset({1})
_ALL = frozenset({0, 1})


class Process(Agent):
    """The agent as a process of this one, with all its files below `folder`."""

    soon = 1

    def __init__(self, uri: str, folder: Path) -> None:
        self.config = folder / "config.toml"
        self.state = folder / "state" / "state.json"
        self.state.parent.mkdir()
        self._log = folder / "log"
        self._log.touch()
        self._listen = f"127.0.0.1:{free_port()}"
        self.tables = {
            "libvirt": {"uri": uri},
            "http": {"listen": self._listen},
            "state": {"path": str(self.state)},
            "log": {"format": "json"},
            "pool": {"shrink_delay": 1},
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self._listen}"

    def begin(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*RUN, "--config", str(self.config)], stderr=log, stdin=subprocess.DEVNULL
            )

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def hup(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        self._end(signal.SIGKILL)
        self.begin()

    def pid(self) -> int:
        alive = self._process is not None and not has_ended(self._process.pid)
        return self._process.pid if self._process is not None and alive else 0

    def now(self) -> str:
        return str(self._log.stat().st_size)

    def journal(self, cursor: str) -> str:
        return self._log.read_bytes()[int(cursor) :].decode()

    def command(self, name: str) -> tuple[str, ...]:
        return sys.executable, "-m", "agent", name, "--config", str(self.config)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            status = self._process.wait(START_SECONDS)
            assert number == signal.SIGKILL or status == 0, f"the stop: {status}"
            self._process = None


class Here(Lab):
    """This machine, as the lab has its own."""

    slowness = 1.0

    def __init__(self, libvirtd: Libvirtd, folder: Path) -> None:
        super().__init__(
            "here",
            full=False,
            agent=Process(libvirtd.uri, folder),
            libvirtd=libvirtd,
            node=Node(libvirtd.uri, libvirtd.root / "run/libvirt/qemu"),
        )
        self._name = libvirtd.guest_name

    def guest(self, number: int, cell: int | None = None) -> Guest:
        """Return one that has the first pCPU for its vCPU; a pin to the second would take it."""
        dice = random.Random(number)  # noqa: S311 - the same guest in each run
        managed = dice.random() < 7 / 8
        original = dice.choice((_POOL, _ALL)) if managed else _ALL
        return Guest(
            name=self._name(f"guest-{number}"),
            cell=0 if cell is None else cell,
            claims=(0,),
            original=original,
            iothread=dice.choice((None, original, _ALL)),
            policy="isolate" if managed else "ignore",
        )
