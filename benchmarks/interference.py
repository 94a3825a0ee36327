"""What a shared emulator pCPU gains and costs a guest: real threads, three arrangements.

One guest has a vCPU that is always busy, alone on pCPU 1. It and others have emulator threads that
are made to work through a monitor of their own. Measured are what the vCPU thread waits for its
pCPU (run-queue delay, from schedstat) and how soon the busy guest's emulator threads answer (a
round trip over QMP).

    floating        all emulator threads on the pCPU of the vCPU, where Nova leaves them unasked
    shared pool     all of them on pCPU 0, as the agent has it: the ratio is how many work there
    one pCPU each   the pool at ratio 1

The guests go from one to the other by their metadata: the agent moves them, and /proc must agree.

What two pCPUs and TCG bound: pCPU 0 is the pool, and the only place for all else too (libvirtd, the
agent, whoever sends the work), so answers from the pool are slower than on a host that keeps
these apart; more than one guest with a pCPU each cannot be had; the others' vCPUs are stopped. The
shape is what counts: who pays, and how it grows.
"""

from __future__ import annotations

import json
import os
import statistics
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import libvirt

from benchmarks.findings import Chart, Findings, Table, ms, p99, quartiles
from benchmarks.stage import ZERO, Client, Stage, verify
from tests.guests import OWN_NAMESPACE, Guest, guest_xml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.suite import Effort

ONE: Final = frozenset({1})
RATIOS: Final = (1, 2, 4, 8, 16)
FLOATING: Final = "floating"
POOL: Final = "shared pool"
POLICIES: Final = {FLOATING: ("float", ONE), POOL: ("isolate", ZERO)}
QEMU: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
# A firmware of one instruction, which jumps to itself: the vCPU is busy from the first moment.
FIRMWARE: Final = (b"\x90" * 0xFFF0 + b"\xeb\xfe").ljust(0x10000, b"\x90")

MONITOR: Final = "monitor commands"
JOBS: Final = "block jobs"
LOADS: Final[dict[str, tuple[float, dict[str, Any]]]] = {  # times a second, and what is asked
    MONITOR: (40, {"execute": "query-machines"}),  # 0.8 ms of CPU time each
    "screenshots": (30, {"execute": "screendump", "arguments": {"filename": "/dev/null"}}),
    JOBS: (1, {"execute": "query-block-jobs"}),
}
# Mirrors from a disk that is not there to another: they take neither memory nor disk.
DISKS: Final = tuple(
    {
        "execute": "blockdev-add",
        "arguments": {"driver": "null-co", "node-name": name, "size": 1 << 42},
    }
    for name in ("from", "to")
)
MIRROR: Final = {
    "job-id": "job",
    "device": "from",
    "target": "to",
    "sync": "full",
    "speed": 1 << 36,
}
CANCEL: Final = {"device": "job", "force": True}
AROUND: Final[dict[str, tuple[tuple[object, ...], tuple[object, ...]]]] = {
    JOBS: (
        ({"execute": "blockdev-mirror", "arguments": MIRROR},),
        ({"execute": "block-job-cancel", "arguments": CANCEL},),
    )
}


@dataclass(frozen=True, slots=True)
class Sample:
    """What one stretch of time showed."""

    waited: float  # ms a second that the vCPU thread was ready, and waited
    probes: list[float]
    done: int
    late: int


def run(effort: Effort) -> Findings:
    """Measure all arrangements at all ratios, in turns."""
    ratios = effort.pick(RATIOS, (1, 3))
    seconds, turns = effort.pick(2.0, 0.4), effort.of(4, 1)
    samples: dict[tuple[str, str, int], list[Sample]] = {}
    with Stage() as stage, apart(stage):
        guests = busy(stage, max(ratios))
        service = stage.service(pool={"cpus": "0", "emulator_overcommit_ratio": max(ratios)})
        with service, Client("load") as load:
            pin_process(service.process.pid)
            load.tell(
                "open",
                *(str(socket_of(stage, guest, "work")) for guest in guests),
                str(socket_of(stage, guests[0], "probe")),
            )
            load.expect("open")
            say(load, len(guests), DISKS)
            for _ in range(turns):
                for where in POLICIES:
                    arrange(guests, where)
                    for kind, ratio in cases(ratios):
                        own = measured(load, guests, kind, ratio, seconds)
                        verify(guests, POLICIES[where][1])
                        samples.setdefault((where, kind, ratio), []).append(own)
    return findings(samples, ratios)


def cases(ratios: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Yield what is measured of an arrangement: one load at all ratios, the others at two."""
    yield from ((MONITOR, ratio) for ratio in ratios)
    yield from ((kind, r) for kind in LOADS if kind != MONITOR for r in {min(ratios), max(ratios)})


@contextmanager
def apart(stage: Stage) -> Iterator[None]:
    """Keep us and libvirtd off pCPU 1 meanwhile, and what we start."""
    before = os.sched_getaffinity(0)
    pin_process(os.getpid())
    pin_process(stage.libvirtd.pid)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin_process(pid: int) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), ZERO)


def socket_of(stage: Stage, guest: Guest, use: str) -> Path:
    return stage.libvirtd.home / f"{guest.name}.{use}"


def busy(stage: Stage, count: int) -> list[Guest]:
    """Start guests; the first one's vCPU is busy, those of the others do not run."""
    firmware = stage.libvirtd.home / "firmware"
    firmware.write_bytes(FIRMWARE)
    guests = []
    for number in range(count):
        name = stage.libvirtd.guest_name(f"busy-{number}")
        guest = Guest(stage.libvirtd, definition(stage, name, firmware))
        guests.append(guest.define().start(paused=number > 0))
        verify([guest], ONE)
    return guests


def definition(stage: Stage, name: str, firmware: Path) -> str:
    """Return a guest with two monitors of its own, which libvirt knows nothing of."""
    plain = guest_xml(name, metadata_policy="float", emulatorpin="1", vcpupins={0: "1"}, vnc=True)
    arguments = []
    for use in ("work", "probe"):
        path = stage.libvirtd.home / f"{name}.{use}"
        arguments += [
            "-chardev", f"socket,id={use},path={path},server=on,wait=off",
            "-mon", f"chardev={use},mode=control",
        ]  # fmt: skip
    given = "".join(f"<qemu:arg value='{one}'/>" for one in arguments)
    loader = f"<loader readonly='yes' type='rom'>{firmware}</loader>"
    return (
        plain.replace("<domain ", f"<domain xmlns:qemu='{QEMU}' ")
        .replace("hvm</type>", f"hvm</type>{loader}")
        .replace("</domain>", f"<qemu:commandline>{given}</qemu:commandline></domain>")
    )


def arrange(guests: Sequence[Guest], where: str) -> None:
    """Have the agent move all guests, by what their metadata says."""
    policy, cpus = POLICIES[where]
    for guest in guests:
        guest.domain.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            f'<guest policy="{policy}"/>',
            "emupool",
            OWN_NAMESPACE,
            libvirt.VIR_DOMAIN_AFFECT_LIVE,
        )
    verify(guests, cpus)


def measured(
    load: Client, guests: Sequence[Guest], kind: str, ratio: int, seconds: float
) -> Sample:
    """Have the emulator threads of `ratio` guests work, and look at the first."""
    rate, work = LOADS[kind]
    (vcpu,) = (thread.tid for thread in guests[0].threads() if thread.role == "vcpu0")
    begins, ends = AROUND.get(kind, ((), ()))
    say(load, ratio, begins)
    before = schedstat(guests[0].pid, vcpu)
    load.tell("go", str(seconds), str(rate), str(ratio), json.dumps(work))
    found = json.loads(load.answer())
    after = schedstat(guests[0].pid, vcpu)
    say(load, ratio, ends)
    ran, waited = (b - a for a, b in zip(before, after, strict=True))
    assert ran > 0, "the vCPU is not busy"
    share = waited / (ran + waited)
    return Sample(share * 1e3, found["probes"], found["done"], found["late"])


def say(load: Client, count: int, commands: Sequence[object]) -> None:
    load.tell("say", str(count), json.dumps(commands))
    load.expect("said")


def schedstat(pid: int, tid: int) -> tuple[int, int]:
    """Return nanoseconds that a thread ran, and waited for a pCPU."""
    ran, waited, _ = Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()
    return int(ran), int(waited)


def findings(samples: dict[tuple[str, str, int], list[Sample]], ratios: Sequence[int]) -> Findings:
    """Return a table and a chart."""
    figures: dict[str, dict[str, float]] = {}
    rows = []
    for (where, kind, ratio), own in sorted(samples.items(), key=_order):
        waits = [one.waited for one in own]
        probes = [probe for one in own for probe in one.probes]
        first, third = quartiles(waits)
        figures[f"{where}, {kind}, {ratio}"] = {
            "waited": statistics.median(waits),
            "answer": statistics.median(probes),
            "answer_p99": p99(probes),
        }
        rows.append(
            (
                kind,
                f"{ratio}",
                where if (where, ratio) != (POOL, 1) else f"{where} (one pCPU each)",
                f"{statistics.median(waits):.1f}",
                f"{first:.1f} to {third:.1f}",
                ms(statistics.median(probes)),
                ms(p99(probes)),
                f"{sum(one.late for one in own)}",
            )
        )
    columns = (
        "work",
        "guests that work",
        "emulator threads",
        "vCPU waits, ms a second",
        "half within",
        "answer, ms",
        "p99",
        "late",
    )
    table = Table("A busy vCPU, and emulator threads that work", columns, rows)
    return Findings(tables=[table], charts=[picture(figures, ratios)], figures=figures)


def _order(item: tuple[tuple[str, str, int], object]) -> tuple[int, int, str]:
    (where, kind, ratio), _ = item
    return list(LOADS).index(kind), ratio, where


def picture(figures: dict[str, dict[str, float]], ratios: Sequence[int]) -> Chart:
    def lines(key: str, scale: float) -> list[tuple[str, list[tuple[float, float]]]]:
        return [
            (
                where,
                [(float(r), figures[f"{where}, {MONITOR}, {r}"][key] * scale) for r in ratios],
            )
            for where in POLICIES
        ]

    return Chart(
        "guests",
        "Who pays for emulator threads that work",
        "monitor commands at a fixed rate for each guest; medians",
        "guests that share (ratio)",
        [
            ("a busy vCPU waits for its pCPU: ms a second", lines("waited", 1.0)),
            ("its emulator threads answer: ms", lines("answer", 1e3)),
        ],
    )
