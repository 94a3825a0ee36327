"""The real daemon as a process of its own, as an operator runs it, seen from outside.

with Service(libvirtd.uri, folder, pool={"emulator_overcommit_ratio": 2}) as service:
    service.wait(lambda: service.pool() == {0}, "the pool has one pCPU")
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Self

from prometheus_client.parser import text_string_to_metric_families

from lab.inside.agent import toml
from tests import logbook
from tests.guests import cpu_list, wait_until
from tests.schemas import answer_of, validated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tests.guests import Guest

RUN = (sys.executable, "-m", "agent", "run")
START_SECONDS = 30.0
SOON = 20.0
"""Seconds for which a state is waited for; these machines are noisy."""

Tables = dict[str, dict[str, Any]]


class Service:
    """`emupool run` with its own configuration, state file and log below `folder`."""

    def __init__(
        self,
        uri: str,
        folder: Path,
        *,
        within: Sequence[str] = (),
        **tables: Mapping[str, Any],
    ) -> None:
        """Run it by the command `within`, if that is given: it is handed ours as arguments."""
        self.within = within
        self.config = folder / "config.toml"
        self.state = folder / "state.json"
        self.log = folder / "log"
        self._tables: Tables = {
            "libvirt": {"uri": uri},
            "http": {"listen": "127.0.0.1:0"},
            "state": {"path": str(self.state)},
            "log": {"level": "debug", "format": "json"},
            "reconcile": {"interval": 0.5},
            "pool": {"emulator_overcommit_ratio": 2, "shrink_delay": 1},
        }
        self.configure(**tables)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()

    def configure(self, **tables: Mapping[str, Any]) -> None:
        """Change keys of the configuration file; the daemon does not know yet."""
        for name, table in tables.items():
            self._tables[name] = {**self._tables.get(name, {}), **table}
        self.config.write_text(toml(self._tables))

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the daemon and wait for nothing."""
        self._log_from = len(self.events())
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.within, *RUN, "--config", str(self.config), *arguments],
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        return self._process

    def start(self, *arguments: str) -> None:
        """Start the daemon and wait until it is ready."""
        self.spawn(*arguments)
        wait_until(lambda: self.saw("http.listening"), START_SECONDS, "the daemon to listen")
        wait_until(self.ready, START_SECONDS, "the daemon to be ready")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command of the program; what it prints as JSON is as its schema says."""
        done = subprocess.run(
            [sys.executable, "-m", "agent", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if "--json" in arguments and not done.returncode:
            document = json.loads(done.stdout)
            validated(answer_of(arguments[0], document), document)
        return done

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the daemon was not started"
        return self._process

    def hup(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.wait()
        self._process = None

    def stop(self) -> int:
        """End it with SIGTERM, and return its exit status."""
        self.process.terminate()
        status = self.process.wait(START_SECONDS)
        self._process = None
        return status

    # what it says

    def events(self) -> list[dict[str, Any]]:
        """Return all events logged so far; one that is not as documented fails the test."""
        if not self.log.exists():
            return []
        return [logbook.read(line) for line in self.log.read_text().splitlines()]

    def saw(self, event: str) -> dict[str, Any] | None:
        """Return the last such event since the last start."""
        found = [e for e in self.events()[self._log_from :] if e["event"] == event]
        return found[-1] if found else None

    @property
    def url(self) -> str:
        listening = self.saw("http.listening")
        assert listening is not None
        return str(listening["url"])

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:  # noqa: S310 - http
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return int(error.code), error.read().decode()

    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = validated("status", json.loads(self.get("/api/v1/status")[1]))
        return document

    def guest(self, uuid: str) -> dict[str, Any]:
        """Return a guest's row of the status."""
        rows: list[dict[str, Any]] = self.status()["guests"]
        return next(row for row in rows if row["uuid"] == uuid)

    def pool(self, cell: int = 0) -> frozenset[int]:
        rows: list[dict[str, Any]] = self.status()["cells"]
        return cpu_list(next(row["pool_now"] for row in rows if row["id"] == cell))

    def metric(self, name: str, **labels: str) -> float:
        """Return one sample; 0 if there is none."""
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                if sample.name == f"emupool_{name}" and sample.labels == labels:
                    return float(sample.value)
        return 0.0

    def repins(self) -> float:
        """Return how many pins were sent and succeeded."""
        families = text_string_to_metric_families(self.get("/metrics")[1])
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "emupool_repins_total"
        )

    def cycles(self) -> float:
        return self.metric("cycle_seconds_count")

    def settle(self) -> None:
        """Wait for two more reconcile cycles: what was to be done is done."""
        before = self.metric("cycles_total", event="reconcile")
        wait_until(
            lambda: self.metric("cycles_total", event="reconcile") >= before + 2,
            SOON,
            "two reconcile cycles",
        )


def free_port() -> int:
    """Return a port that nobody listens at now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait(met: Callable[[], object], what: str) -> None:
    """Wait until `met` holds."""
    wait_until(met, SOON, what)


def on(cpus: frozenset[int], *guests: Guest) -> bool:
    """Tell whether every emulator thread of `guests` may run on exactly `cpus`."""
    return all(guest.masks("emulator") == {cpus} for guest in guests)


def wait_on(cpus: frozenset[int], *guests: Guest) -> None:
    """Wait until `on` holds."""
    wait(lambda: on(cpus, *guests), f"{guests} on {sorted(cpus)}")
