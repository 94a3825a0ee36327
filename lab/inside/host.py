"""The host as its kernel shows it: cells, pCPUs on and off line, load, and sets of pCPUs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

CPU: Final = Path("/sys/devices/system/cpu")
NODE: Final = Path("/sys/devices/system/node")

Cpus = frozenset[int]


def parse(text: str) -> Cpus:
    """Return the pCPUs of the kernel's notation, such as 0-3,8."""
    found: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def show(cpus: Cpus) -> str:
    """Return pCPUs in libvirt's notation."""
    return ",".join(map(str, sorted(cpus)))


def online() -> Cpus:
    """Return the pCPUs that are on line."""
    return parse((CPU / "online").read_text())


def isolated() -> Cpus:
    """Return the pCPUs of isolcpus=."""
    return parse((CPU / "isolated").read_text())


def cells() -> dict[int, Cpus]:
    """Return the pCPUs on line of each cell that has some."""
    found = {
        int(node.name.removeprefix("node")): parse((node / "cpulist").read_text())
        for node in NODE.glob("node[0-9]*")
    }
    return {cell: cpus for cell, cpus in sorted(found.items()) if cpus}


def core(cpu: int) -> Cpus:
    """Return the pCPUs on line of the same core."""
    return parse((CPU / f"cpu{cpu}/topology/thread_siblings_list").read_text())


def set_online(cpu: int, *, on: bool) -> None:
    """Put a pCPU on or off line."""
    (CPU / f"cpu{cpu}/online").write_text("1" if on else "0")


def all_online() -> None:
    """Put every pCPU on line."""
    for cpu in sorted(parse((CPU / "present").read_text()) - online()):
        set_online(cpu, on=True)


def run(*command: str, check: bool = True, timeout: float = 300) -> str:
    """Return what a command prints; if it fails, so does the scenario, with both outputs."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, env=_environment()
    )
    if check and done.returncode:
        said = (done.stderr + done.stdout).strip()[-3000:]
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{said}")
    return done.stdout


def status_of(*command: str) -> tuple[int, str]:
    """Return a command's exit status and all that it said."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=_environment()
    )
    return done.returncode, (done.stdout + done.stderr).strip()


def _environment() -> dict[str, str]:
    return {**os.environ, "SYSTEMD_PAGER": "", "LC_ALL": "C.UTF-8", "COLUMNS": "120"}
