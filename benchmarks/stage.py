"""What benchmarks with real guests stand on: a private libvirtd, the agent, rivals, a crowd.

The libvirtd is under a sub-reaper and has /run/libvirt on tmpfs, as real hosts have it. Who has no
turn is stopped (SIGSTOP) or does not run. All processes end with this one, however it ends.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from benchmarks.floor import start_events
from benchmarks.watch import Watch
from tests.guests import wait_until
from tests.libvirtd import Libvirtd
from tests.runner import die_with_parent
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.guests import Guest

PATIENCE: Final = 60.0
DIES_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL")
STARTERS: Final = 2  # as many guests as start at the same time; more gain nothing on two pCPUs
LOOK: Final = 0.001
ISOLATE: Final = {"metadata_policy": "isolate"}
CLAIM: Final = {"vcpupins": {0: "1"}}
"""Leaves pCPU 0 to the pool; without it the pool may have both."""
ZERO: Final = frozenset({0})
BOTH: Final = frozenset({0, 1})

_events = threading.Lock()
_started: list[bool] = []


def listen() -> None:
    """Run libvirt's event loop, once per process."""
    with _events:
        if not _started:
            start_events()
            _started.append(True)


class Stage(ExitStack):
    """A libvirtd, and a folder for what the others keep."""

    def __init__(self) -> None:
        super().__init__()
        listen()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # libvirtd needs four a guest
        self.libvirtd = Libvirtd()

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
            self.enter_context(self.libvirtd)
        except BaseException:
            self.close()
            raise
        return self

    def service(
        self,
        uri: str | None = None,
        name: str = "agent",
        tree: Path | None = None,
        **tables: Mapping[str, Any],
    ) -> Service:
        """Return the agent, not started: pools of free pCPUs 0 and 1, a reconcile each hour.

        It is the one whose source lies in `tree`; by default that which is here.
        """
        folder = self.folder / name
        folder.mkdir()
        own: dict[str, Mapping[str, Any]] = {
            "reconcile": {"interval": 3600},
            "log": {"level": "info"},
            **tables,
            "pool": {"cpus": "0-1", "emulator_overcommit_ratio": 1000, **tables.get("pool", {})},
        }
        within = DIES_WITH_US if tree is None else (*DIES_WITH_US, "env", f"--chdir={tree}")
        return Service(uri or self.libvirtd.uri, folder, within=within, **own)

    def watch(self) -> closing[Watch]:
        return closing(Watch(self.libvirtd.uri))

    def crowd(self, prefix: str, count: int, **properties: object) -> list[Guest]:
        """Start guests, paused: nothing runs but what their emulator threads are made to do."""
        return self.begin(self.defined(prefix, count, **properties))

    def defined(self, prefix: str, count: int, **properties: object) -> list[Guest]:
        """Return guests that are defined, and not started."""
        made = (self.libvirtd.guest(f"{prefix}-{n}", **properties) for n in range(count))
        return [guest.define() for guest in made]

    def begin(self, guests: Sequence[Guest]) -> list[Guest]:
        """Start guests, paused, as fast as libvirtd can, and return them."""
        with ThreadPoolExecutor(STARTERS) as pool:
            return list(pool.map(lambda guest: guest.start(paused=True), guests))

    def leave(self, guests: Sequence[Guest]) -> None:
        self.libvirtd.remove_all(guests)


class Client:
    """A module of ours that runs as a process, and obeys lines on its standard input."""

    def __init__(self, module: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - it makes one system call
        )
        self.expect("ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def tell(self, *words: str) -> None:
        """Send a line; returns at once."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def expect(self, answer: str) -> None:
        said = self.answer()
        assert said == answer, f"{answer!r} was expected, not {said!r}"


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


def settled(service: Service) -> None:
    """Wait until the agent has dealt with all it was told."""
    wait_until(lambda: service.metric("inbox_depth") == 0, PATIENCE, "an empty inbox")


def placed(service: Service, count: int) -> None:
    """Wait until the agent has so many guests in its pools."""
    wait_until(
        lambda: service.metric("guests", state="placed") == count, PATIENCE, f"{count} placed"
    )


def verify(guests: Sequence[Guest], cpus: frozenset[int]) -> None:
    """A wrong fast run fails: all emulator threads are on `cpus`, by /proc."""
    wait_until(
        lambda: all(guest.masks("emulator") == {cpus} for guest in guests),
        PATIENCE,
        f"all threads on {sorted(cpus)}",
    )


@dataclass(frozen=True, slots=True)
class Lanes:
    """The emulator threads of guests, whose masks are asked of the kernel: 2 us each."""

    tids: tuple[int, ...]

    @classmethod
    def of(cls, guests: Sequence[Guest]) -> Lanes:
        found = (thread for guest in guests for thread in guest.threads())
        return cls(tuple(thread.tid for thread in found if thread.role == "emulator"))

    def elsewhere(self, cpus: frozenset[int]) -> int:
        """Return how many threads are not on exactly `cpus`."""
        return sum(os.sched_getaffinity(tid) != cpus for tid in self.tids)

    def wait(self, cpus: frozenset[int]) -> float:
        """Return when the last thread was on `cpus`, in monotonic seconds, a millisecond late."""
        deadline = time.monotonic() + PATIENCE
        while any(os.sched_getaffinity(tid) != cpus for tid in self.tids):  # the first one, mostly
            assert time.monotonic() < deadline, f"{self.elsewhere(cpus)} threads not on {cpus}"
            time.sleep(LOOK)
        return time.monotonic()
