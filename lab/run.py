"""One machine from boot to power-off: what is asked for goes in, what it tells is printed.

The truth is told line by line. A machine that says nothing for too long, or that ends without the
last line, is a failure; its console is kept, and so is what failed scenarios collected.
"""

from __future__ import annotations

import io
import json
import selectors
import shutil
import subprocess
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lab import machine as machines
from lab.image import ROOT, LabError, image, product, wheels
from lab.image import package as own_package

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lab.machine import Machine

BOOT_SECONDS: Final = 600
SCENARIO_SECONDS: Final = 1200
"""Each takes a fifth of that on two cores that do nothing else; fifty kills take nearly half."""
_MARGIN: Final = 120
_RESULTS: Final = 256 << 20
_OLDER: Final = "0.0.1"


@dataclass(slots=True)
class Outcome:
    """What a machine told."""

    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    booted: bool = False
    silent: str = ""
    """Why it was given up, or ended early."""


def carry_out(
    machine: Machine,
    scenarios: Sequence[str],
    out: Path,
    *,
    full: bool,
    package: Path | None = None,
) -> Outcome:
    """Boot a machine, run scenarios on it, and print a line for each."""
    outcome = _attempt(machine, scenarios, out, full=full, package=package)
    if not outcome.booted:  # that is QEMU's or its kernel's fault, so once more
        outcome = _attempt(machine, scenarios, out, full=full, package=package)
    return outcome


def shell(machine: Machine, out: Path, package: Path | None = None) -> None:
    """Boot a machine with its console on this terminal."""
    shutil.rmtree(out, ignore_errors=True)
    print("lab: `lab` installs emupool, `lab NAME` runs scenarios besides, `poweroff` ends.")
    with tempfile.TemporaryDirectory() as place:
        command = _prepared(machine, Path(place), out, (), package=package, to_terminal=True)
        subprocess.run(command, check=False)


# parts


def _attempt(
    machine: Machine, scenarios: Sequence[str], out: Path, *, full: bool, package: Path | None
) -> Outcome:
    shutil.rmtree(out, ignore_errors=True)
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as place:
        command = _prepared(machine, Path(place), out, scenarios, full=full, package=package)
        print(f"lab: {machine.name}: {machine.about}, kernel {machine.kernel}", flush=True)
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            try:
                _follow(machine, process, outcome)
            finally:
                process.kill()
    if outcome.silent:
        print(f"lab: {machine.name}: {outcome.silent}\n{_tail(out / 'console')}", flush=True)
    _unpack(out)
    return outcome


def _prepared(
    machine: Machine,
    place: Path,
    out: Path,
    scenarios: Sequence[str],
    *,
    full: bool = True,
    package: Path | None = None,
    to_terminal: bool = False,
) -> list[str]:
    if package is None and machine.package:
        package = own_package()
    out.mkdir(parents=True)
    with (out / "results").open("wb") as results:
        results.truncate(_RESULTS)
    asked = place / "asked"
    order = {
        "machine": machine.name,
        "full": full,
        "scenarios": list(scenarios),
        "seconds": SCENARIO_SECONDS,
    }
    _pack(asked, json.dumps(order), package)
    return machines.command(machine, image(), asked, out, shell=to_terminal)


def _pack(archive: Path, order: str, package: Path | None) -> None:
    """Gather what goes in: the lab itself, wheels, and what the guide tells to install."""
    with tarfile.open(archive, "w") as tar:
        entry = tarfile.TarInfo("asked.json")
        entry.size = len(order)
        tar.addfile(entry, io.BytesIO(order.encode()))
        for name in ("lab/__init__.py", "lab/inside", "lab/scenarios"):
            tar.add(ROOT / name, name, filter=_source)
        for name in ("docs/install.md", "config.example.toml", "systemd"):
            tar.add(ROOT / name, name)
        for wheel in (*wheels().glob("*.whl"), product()):
            tar.add(wheel, f"wheels/{wheel.name}")
        older = product(_OLDER)
        tar.add(older, f"older/{older.name}")
        if package is not None:
            tar.add(package, f"packages/{package.name}")
            older = own_package(_OLDER)
            tar.add(older, f"packages/older/{older.name}")


def _source(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name else entry


def _follow(machine: Machine, process: subprocess.Popen[bytes], outcome: Outcome) -> None:
    began = time.monotonic()
    for told in _lines(process):
        if told is None:
            outcome.silent = "it said nothing for too long; its console ends with"
            return
        match told:
            case {"event": "booted"}:
                after = round(time.monotonic() - began)
                outcome.booted = True
                print(f"lab: {machine.name}: booted {told['kernel']} in {after} s", flush=True)
            case {"event": "ended"}:
                _print(told)
                (outcome.failed if told["wrong"] else outcome.passed).append(told["name"])
            case {"event": "done"}:
                took = round(time.monotonic() - began)
                print(f"lab: {machine.name}: done after {took} s", flush=True)
                return
            case {"event": "text"}:
                print(told["text"], flush=True)
            case _:
                pass
    outcome.silent = "it ended before it was done; its console ends with"


def _lines(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any] | None]:
    """Yield what is told, None if nothing is for too long."""
    assert process.stdout is not None
    pending, patience = b"", BOOT_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(patience):
                yield None
            read = process.stdout.read1(65536)  # type: ignore[attr-defined]  # it is buffered
            if not read:
                return
            *lines, pending = (pending + read).split(b"\n")
            for line in lines:
                yield _parsed(line)
                patience = SCENARIO_SECONDS + _MARGIN


def _parsed(line: bytes) -> dict[str, Any]:
    text = line.decode(errors="replace").strip()
    if text.startswith("{"):
        told: dict[str, Any] = json.loads(text)
        return told
    return {"event": "text", "text": text}  # QEMU's own word


def _print(told: dict[str, Any]) -> None:
    figures = " ".join(f"{name}={value}" for name, value in told["figures"].items())
    verdict = "FAIL" if told["wrong"] else "ok  "
    print(f"{verdict} {told['name']:28} {told['seconds']:6.1f} s  {figures}", flush=True)
    if told["wrong"]:
        print("       " + told["wrong"].rstrip().replace("\n", "\n       "), flush=True)


def _tail(console: Path) -> str:
    return "\n".join(console.read_text(errors="replace").splitlines()[-30:])


def _unpack(out: Path) -> None:
    """Replace the disk of results by the files in it."""
    results = out / "results"
    with results.open("rb") as disk:
        empty = not any(disk.read(512))
    if not empty:
        with tarfile.open(results) as archive:
            archive.extractall(out, filter="data")
    results.unlink()


def names_of(machine: str, *, smoke: bool) -> list[str]:
    """Return the scenarios of a machine, or of its smoke."""
    from lab.scenarios import SCENARIOS  # noqa: PLC0415 - only the names are wanted out here

    found = [s.name for s in SCENARIOS if machine in s.machines and (s.smoke or not smoke)]
    if not found:
        raise LabError(f"no scenario is for the machine {machine}")
    return found
