"""The agent as an operator has it: systemctl, journal, /metrics, its configuration file."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

from lab.inside import host
from lab.inside.waiting import check, wait_for

UNIT: Final = "emupool.service"
CONFIG: Final = Path("/etc/emupool/config.toml")
URL: Final = "http://127.0.0.1:9857"
STATE: Final = Path("/run/emupool/state.json")
SOON: Final = 5
"""Seconds between two reconciles; what an event has to bring about is judged with more."""
_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')

Labels = frozenset[tuple[str, str]]


def configure(ratio: str, text: str = "", *, interval: int = SOON, **pool: object) -> None:
    """Write the configuration; `pool` are keys of [pool], `text` is more of the file."""
    keys = {
        "emulator_overcommit_ratio": ratio,
        "source": "free",
        "shrink_delay": 2,
        **pool,
    }
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    CONFIG.write_text(f"[pool]\n{lines}\n[reconcile]\ninterval = {interval}\n\n{text}\n")


def systemctl(*arguments: str) -> str:
    """Run systemctl."""
    return host.run("systemctl", *arguments)


def start() -> None:
    """Start the unit; systemctl returns when the agent said READY."""
    systemctl("reset-failed", UNIT)
    systemctl("start", UNIT)
    wait_for(ready, "the agent to be ready")


def restart() -> None:
    """Restart the unit."""
    systemctl("reset-failed", UNIT)
    systemctl("restart", UNIT)
    wait_for(ready, "the agent to be ready after a restart")


def stop() -> None:
    """Stop the unit."""
    systemctl("stop", UNIT)


def reload() -> None:
    """Have the configuration read again, and wait until it is in force."""
    before = metric("config_last_reload_success_timestamp_seconds")
    systemctl("reload", UNIT)
    wait_for(
        lambda: metric("config_last_reload_success_timestamp_seconds") != before,
        "the new configuration to be in force",
    )


def use(ratio: str, text: str = "", *, interval: int = SOON, **pool: object) -> None:
    """Have the agent run with this configuration, whether it runs already or not."""
    configure(ratio, text, interval=interval, **pool)
    if active():
        reload()
    else:
        start()


def show(*properties: str) -> dict[str, str]:
    """Return properties of the unit."""
    told = systemctl("show", UNIT, *(f"--property={name}" for name in properties))
    return dict(line.split("=", 1) for line in told.splitlines())


def active() -> bool:
    """Tell whether systemd holds the agent for started."""
    return show("ActiveState")["ActiveState"] == "active"


def pid() -> int:
    """Return the agent's process, 0 if there is none."""
    return int(show("MainPID")["MainPID"])


def get(path: str) -> tuple[int, str]:
    """Return status and body; status 0 if nobody answers."""
    try:
        with urllib.request.urlopen(URL + path, timeout=30) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        return int(error.code), error.read().decode()
    except OSError:
        return 0, ""


def ready() -> bool:
    """Tell whether a full cycle is done and libvirt is there."""
    return get("/readyz")[0] == 200


def status() -> dict[str, Any]:
    """Return the status."""
    code, body = get("/api/v1/status")
    check(code == 200, f"the status is not to be had: {code} {body[:200]}")
    answer: dict[str, Any] = json.loads(body)
    return answer


def metrics() -> dict[str, dict[Labels, float]]:
    """Return all samples of emupool by name, without the prefix; none while it is away."""
    found: dict[str, dict[Labels, float]] = {}
    for name, labels, value in _SAMPLE.findall(get("/metrics")[1]):
        key = frozenset(_LABEL.findall(labels))
        found.setdefault(name.removeprefix("emupool_"), {})[key] = float(value)
    return found


def metric(name: str, **labels: str) -> float:
    """Return one sample; 0 if there is none."""
    return metrics().get(name, {}).get(frozenset(labels.items()), 0.0)


def total(name: str) -> float:
    """Return the sum over all labels."""
    return sum(metrics().get(name, {}).values())


def reconciled() -> None:
    """Wait for two more reconcile cycles: what was to be done is done."""
    before = metric("cycles_total", event="reconcile")
    wait_for(
        lambda: metric("cycles_total", event="reconcile") >= before + 2, "two reconcile cycles"
    )


def now() -> str:
    """Return a cursor of the journal."""
    told = host.run("journalctl", "--quiet", "--lines=0", "--show-cursor")
    return told.rpartition("-- cursor: ")[2].strip()


def journal(cursor: str | None = None) -> str:
    """Return what the agent, and systemd about it, wrote since `cursor`."""
    since = [f"--after-cursor={cursor}"] if cursor else []
    return host.run("journalctl", "--quiet", "--output=cat", f"--unit={UNIT}", *since)


def events(name: str, cursor: str | None = None) -> list[dict[str, Any]]:
    """Return the agent's log events of a name since `cursor`."""
    found = []
    for line in journal(cursor).splitlines():
        if line.startswith("{"):
            event = json.loads(line)
            if event.get("event") == name:
                found.append(event)
    return found


def uptime() -> float:
    """Return the seconds since boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
