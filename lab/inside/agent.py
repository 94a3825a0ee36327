"""The agent as an operator has it: its configuration file, what it answers over HTTP, its log.

Who starts and ends it is another matter: systemd in the lab, a test where there is none.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from lab.inside import host
from lab.inside.waiting import check, wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')

Labels = frozenset[tuple[str, str]]
Metrics = dict[str, dict[Labels, float]]
Table = dict[str, object]


def toml(tables: Mapping[str, Mapping[str, object]]) -> str:
    """Return tables of plain values as TOML; JSON's notation of those is TOML's too."""
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )


class Agent(ABC):
    """The agent, whoever starts and ends it."""

    config: Path
    state: Path
    tables: Mapping[str, Table] = MappingProxyType({})
    """What its configuration has whatever a scenario asks for."""
    soon = 5
    """Seconds between two reconciles; what an event has to bring about is judged with more."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Return where it answers."""

    @abstractmethod
    def begin(self) -> None:
        """Start it."""

    @abstractmethod
    def stop(self) -> None:
        """End it as systemd does, and wait until it ended."""

    @abstractmethod
    def hup(self) -> None:
        """Have its configuration read again."""

    @abstractmethod
    def kill(self) -> None:
        """Kill it and have it started again; neither is waited for."""

    @abstractmethod
    def pid(self) -> int:
        """Return its process, 0 if there is none."""

    @abstractmethod
    def now(self) -> str:
        """Return a cursor of its log."""

    @abstractmethod
    def journal(self, cursor: str) -> str:
        """Return what it logged since `cursor`."""

    def configure(
        self, ratio: str, tables: Mapping[str, Table], interval: int | None, **pool: object
    ) -> None:
        """Write the configuration; `pool` are keys of [pool], `tables` is more of the file."""
        keys = {
            "emulator_overcommit_ratio": ratio,
            "source": "free",
            "shrink_delay": 2,
            **pool,
        }
        usual: dict[str, Table] = {"pool": keys, "reconcile": {"interval": interval or self.soon}}
        for name, table in (*self.tables.items(), *tables.items()):
            usual[name] = {**usual.get(name, {}), **table}
        self.config.write_text(toml(usual))

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.begin()
        wait_for(self.ready, "the agent to be ready")

    def restart(self) -> None:
        """End and start it, and wait until it is ready."""
        self.stop()
        self.start()

    def reload(self) -> None:
        """Have the configuration read again, and wait until it is in force."""
        before = self.metric("config_last_reload_success_timestamp_seconds")
        self.hup()
        wait_for(
            lambda: self.metric("config_last_reload_success_timestamp_seconds") != before,
            "the new configuration to be in force",
        )

    def use(
        self, ratio: str, tables: Mapping[str, Table], interval: int | None, **pool: object
    ) -> None:
        """Have it run with this configuration, whether it runs already or not."""
        self.configure(ratio, tables, interval, **pool)
        if self.pid():
            self.reload()
        else:
            self.start()

    def command(self, name: str) -> tuple[str, ...]:
        """Return another command of it."""
        return "emupool", name

    def run(self, name: str, *arguments: str) -> str:
        """Return what another command of it prints."""
        return host.run(*self.command(name), *arguments)

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body; status 0 if nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return int(error.code), error.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> bool:
        """Tell whether a full cycle is done and libvirt is there."""
        return self.get("/readyz")[0] == 200

    def status(self) -> dict[str, Any]:
        """Return the status."""
        code, body = self.get("/api/v1/status")
        check(code == 200, f"the status is not to be had: {code} {body[:200]}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def metrics(self) -> Metrics:
        """Return all samples of emupool by name, without the prefix; none while it is away."""
        found: Metrics = {}
        for name, labels, value in _SAMPLE.findall(self.get("/metrics")[1]):
            key = frozenset(_LABEL.findall(labels))
            found.setdefault(name.removeprefix("emupool_"), {})[key] = float(value)
        return found

    def metric(self, name: str, **labels: str) -> float:
        """Return one sample; 0 if there is none."""
        return self.metrics().get(name, {}).get(frozenset(labels.items()), 0.0)

    def total(self, name: str) -> float:
        """Return the sum over all labels."""
        return sum(self.metrics().get(name, {}).values())

    def reconciled(self) -> None:
        """Wait for two more reconcile cycles: what was to be done is done."""
        before = self.metric("cycles_total", event="reconcile")
        wait_for(
            lambda: self.metric("cycles_total", event="reconcile") >= before + 2,
            "two reconcile cycles",
        )

    def events(self, name: str, cursor: str) -> list[dict[str, Any]]:
        """Return its log events of a name since `cursor`."""
        found = []
        for line in self.journal(cursor).splitlines():
            if line.startswith("{"):
                event = json.loads(line)
                if event.get("event") == name:
                    found.append(event)
        return found


def uptime() -> float:
    """Return the seconds since boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
