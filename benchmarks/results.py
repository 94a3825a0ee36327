"""One run on file: benchmarks/results/latest.json.

    {"schema": 1, "taken": "2026-11-26T12:00:00+00:00", "quick": false, "seconds": 1500.0,
     "commit": "...", "changed": false, "machine": {...}, "versions": {...},
     "benchmarks": {NAME: {"title", "seconds", "error", "goals", "tables", "charts", "notes",
                           "figures"}}}

A benchmark that failed has an `error` and nothing else. `changed` says that the tree had changes
that are not in the commit. The file is written after each benchmark, so that a run that was broken
off can be taken up.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import libvirt

from agent import __version__
from benchmarks.findings import Chart, Goal, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.findings import Findings

ROOT: Final = Path(__file__).resolve().parent.parent
LATEST: Final = ROOT / "benchmarks/results/latest.json"
LARGE: Final = ROOT / "benchmarks/results/large.json"
SCHEMA: Final = 1
CODE: Final = ("agent", "benchmarks", "tests", ":!benchmarks/results")

Document = dict[str, Any]


def begin(*, quick: bool) -> Document:
    """Return the document of a run that begins now."""
    return {
        "schema": SCHEMA,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "seconds": 0.0,
        "commit": _output("git", "rev-parse", "HEAD"),
        "changed": bool(_output("git", "status", "--porcelain", "--", *CODE)),
        "machine": machine(),
        "versions": versions(),
        "benchmarks": {},
    }


def add(
    document: Document, name: str, title: str, seconds: float, found: Findings | str
) -> Document:
    """Return the document with one more benchmark: what it found, or why it failed."""
    if isinstance(found, str):
        entry: dict[str, Any] = {"title": title, "seconds": seconds, "error": found}
    else:
        entry = {"title": title, "seconds": seconds, "error": None, **asdict(found)}
    entry["seconds"] = round(seconds, 1)
    done = {**document["benchmarks"], name: json.loads(json.dumps(entry))}
    total = sum(one["seconds"] for one in done.values())
    return {**document, "benchmarks": done, "seconds": round(total, 1)}


def write(document: Mapping[str, Any], path: Path) -> None:
    """Replace the file, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".new")
    whole.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    whole.replace(path)


def read(path: Path) -> Document | None:
    """Return a run on file; None if there is none of our schema."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    ours = isinstance(document, dict) and document.get("schema") == SCHEMA
    return document if ours else None


def continues(before: Document, now: Document, names: Sequence[str]) -> bool:
    """Tell whether a run was broken off, and is of the same code, machine and effort."""
    same = all(before[key] == now[key] for key in ("commit", "changed", "quick", "versions"))
    return same and not all(name in before["benchmarks"] for name in names)


def goals(entry: Mapping[str, Any]) -> list[Goal]:
    return [Goal(**goal) for goal in entry.get("goals", ())]


def tables(entry: Mapping[str, Any]) -> list[Table]:
    return [Table(**table) for table in entry.get("tables", ())]


def charts(entry: Mapping[str, Any]) -> list[Chart]:
    return [Chart(**chart) for chart in entry.get("charts", ())]


def machine() -> dict[str, Any]:
    """Describe where it was measured."""
    info = Path("/proc/cpuinfo").read_text()
    lines = (line.partition(":") for line in info.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in lines}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    legacy = any(line.split()[2] == "cgroup" and "cpuset" in line.split()[3] for line in mounts)
    return {
        "pcpus": os.cpu_count(),
        "model": facts.get("model name", platform.machine()),
        "mhz": facts.get("cpu MHz", ""),
        "virtual": "hypervisor" in facts.get("flags", "").split(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "cpuset": "cgroup v1" if legacy else "cgroup v2",
        "load": [round(one, 2) for one in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Return the versions of what was measured, and of what it was measured with."""
    number = libvirt.getVersion()
    return {
        "emupool": __version__,
        "python": platform.python_version(),
        "libvirt": f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}",
        "libvirt-python": metadata.version("libvirt-python"),
        "qemu": _output("qemu-system-x86_64", "--version").partition("version ")[2].split(" ")[0],
        "platform": sys.platform,
    }


def _output(*command: str) -> str:
    """Return the first line of what a command says; empty if it cannot."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.partition("\n")[0].strip()
