"""`make bench`: event to pinned, and 50 guests re-pinned by a reload, against the floor.

The libvirtd is a private one, under a sub-reaper and with /run/libvirt on tmpfs, as real hosts
have it. Turns are interleaved; the contestant whose turn it is not is stopped (SIGSTOP), so that
it takes no time from the other. The outcome of each turn is verified by /proc.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.floor import start_events
from benchmarks.watch import Watch
from tests.guests import wait_until
from tests.libvirtd import Libvirtd
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guests import Guest

GOAL_ARRIVAL = 1.3
GOAL_RELOAD = 1.2


class Floor:
    """The bare client as a process of its own."""

    def __init__(self, uri: str, seeing: str, blind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.floor", uri, seeing, blind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def pin(self, cpus: str, guests: list[Guest]) -> None:
        """Have all guests pinned; returns at once."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join([cpus, *(guest.uuid for guest in guests)]) + "\n")
        self.process.stdin.flush()

    def done(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "done\n"


@contextmanager
def alone(*others: int) -> Iterator[None]:
    """Stop `others` meanwhile."""
    for other in others:
        os.kill(other, signal.SIGSTOP)
    try:
        yield
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


def p99(times: list[float]) -> float:
    """Return the 99th percentile."""
    return sorted(times)[max(0, round(0.99 * len(times)) - 1)]


def report(name: str, times: dict[str, list[float]], goal: float) -> bool:
    """Print medians, 99th percentiles and their ratios to the floor; True if the goal is met."""
    floor = times["floor"]
    print(f"{name}: {len(floor)} turns each")
    ratios = {}
    for who, own in times.items():
        middle, tail = statistics.median(own), p99(own)
        ratios[who] = middle / statistics.median(floor)
        print(
            f"  {who:6} median {middle * 1e3:7.2f} ms  p99 {tail * 1e3:7.2f} ms"
            f"  ratio {ratios[who]:5.2f}, {tail / p99(floor):5.2f}"
        )
    met = ratios["agent"] <= goal
    print(f"  goal {goal}: {'met' if met else 'MISSED'}")
    return met


def settled(service: Service) -> None:
    """Wait until the agent has dealt with all it was told."""
    wait_until(lambda: service.metric("inbox_depth") == 0, 10, "an empty inbox")


def arrivals(
    libvirtd: Libvirtd,
    service: Service,
    floor: Floor,
    watch: Watch,
    turns: int,
    *,
    paused: bool = False,
) -> bool:
    """Start guests one at a time, in turns; their vCPU has a pCPU of its own, as isolate has it."""
    contestants = {
        "floor": ("ignore", service.process.pid),
        "blind": ("ignore", service.process.pid),
        "agent": ("isolate", floor.process.pid),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(turns):
        for name, (policy, other) in contestants.items():
            guest = libvirtd.guest(
                f"{name}-{number}", metadata_policy=policy, vcpupins={0: "1"}
            ).define()
            settled(service)
            with alone(other):
                guest.start(paused=paused)
                times[name].append(watch.reaction(guest.uuid, "0"))
                verify([guest], "0")
            guest.destroy()
            guest.undefine()
    name = "event to pinned, started paused" if paused else "event to pinned"
    return report(name, times, GOAL_ARRIVAL)


def reloads(
    libvirtd: Libvirtd, service: Service, floor: Floor, watch: Watch, turns: int, count: int
) -> bool:
    """Re-pin `count` guests between one pCPU and two, in turns."""
    guests = [
        libvirtd.guest(f"many-{n}", metadata_policy="isolate").define().start(paused=True)
        for n in range(count)
    ]
    times: dict[str, list[float]] = {"floor": [], "agent": []}
    for number in range(turns):
        cpus, ratio = (("0-1", count / 2), ("0", count))[number % 2]
        wait_until(lambda: service.metric("guests", state="placed") == count, 30, "all placed")
        settled(service)
        watch.forget()
        service.configure(pool={"emulator_overcommit_ratio": ratio})
        with alone(floor.process.pid):
            began = time.monotonic()
            service.hup()
            times["agent"].append(watch.wait([guest.uuid for guest in guests], cpus) - began)
        verify(guests, cpus)
        back = "0" if cpus == "0-1" else "0,1"
        # The floor undoes it (its own turn), and the agent, when it wakes, puts it right again.
        with alone(service.process.pid):
            watch.forget()
            began = time.monotonic()
            floor.pin(back, guests)
            now = watch.wait([guest.uuid for guest in guests], back.replace(",", "-"))
            times["floor"].append(now - began)
            floor.done()
        verify(guests, cpus)
    return report(f"{count} guests re-pinned by a reload", times, GOAL_RELOAD)


def all_on(guests: list[Guest], cpus: str) -> bool:
    wanted = {frozenset({0, 1}) if cpus == "0-1" else frozenset({0})}
    return all(guest.masks("emulator") == wanted for guest in guests)


def verify(guests: list[Guest], cpus: str) -> None:
    """A wrong fast run fails."""
    wait_until(lambda: all_on(guests, cpus), 30, f"all threads on {cpus}")


def main() -> int:
    """Measure, print, and say whether the goals are met."""
    parser = argparse.ArgumentParser(prog="benchmarks")
    parser.add_argument("--arrivals", type=int, default=50, help="turns of each contestant")
    parser.add_argument("--reloads", type=int, default=20, help="turns of each contestant")
    parser.add_argument("--guests", type=int, default=50, help="guests re-pinned by a reload")
    options = parser.parse_args()
    start_events()
    with ExitStack() as stack:
        libvirtd = stack.enter_context(Libvirtd())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        floor = Floor(libvirtd.uri, libvirtd.guest_name("floor"), libvirtd.guest_name("blind"))
        stack.callback(floor.process.kill)
        service = Service(
            libvirtd.uri,
            folder,
            pool={"cpus": "0-1", "emulator_overcommit_ratio": 50},
            reconcile={"interval": 3600},
            log={"level": "info"},
        )
        stack.enter_context(service)
        watch = Watch(libvirtd.uri)
        stack.callback(watch.close)
        met = [
            arrivals(libvirtd, service, floor, watch, options.arrivals, paused=paused)
            for paused in (False, True)  # Nova starts guests paused until their network is there
        ]
        met.append(reloads(libvirtd, service, floor, watch, options.reloads, options.guests))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
