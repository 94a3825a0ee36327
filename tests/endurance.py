"""A daemon for long: `python -m tests.endurance FOLDER GUESTS...` prints what it costs.

The whole daemon with all its threads, over libvirt's in-process test driver; guests come and go
`BATCH` at a time. After so many GUESTS in all (ascending) it prints its file descriptors, threads
and resident memory as a line of JSON, and in the end it is stopped as systemd stops it. What
guests are made from is in this process too, but keeps nothing.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import threading
import uuid
from pathlib import Path
from typing import Final

import libvirt

from agent import config as configuration
from agent import footprint, hypervisor, logs, reach
from agent.daemon import Daemon
from agent.inotify import watch
from agent.parts import Parts
from agent.threads import Threads
from tests.guests import own_metadata, wait_until

URI: Final = "test:///default"
BATCH: Final = 20
POOL: Final = 0
_XML: Final = """
<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>1024</memory>
<vcpu>1</vcpu><cputune><vcpupin vcpu='0' cpuset='1'/></cputune>
<metadata>{metadata}</metadata><os><type>hvm</type></os></domain>
"""


class Traffic:
    """Makes guests come and go, and waits for the daemon to have followed."""

    def __init__(self, daemon: Daemon, marks: list[int]) -> None:
        self._daemon = daemon
        self._marks = marks
        self._number = 0
        self.failed: BaseException | None = None

    def run(self) -> None:
        """Run in a thread; stops the process at the end."""
        try:
            self._go()
        except BaseException as error:  # noqa: BLE001 - the main thread tells it
            self.failed = error
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def _go(self) -> None:
        connection = libvirt.open(URI)
        for domain in connection.listAllDomains():  # the driver begins with one of its own
            domain.destroy()
        wait_until(lambda: self._daemon.ready()[0], 60, "readiness")
        for mark in self._marks:
            while self._number < mark:
                self._batch(connection, min(BATCH, mark - self._number))
            gc.collect()
            sys.stdout.write(json.dumps({"guests": self._number, **costs()}) + "\n")

    def _batch(self, connection: libvirt.virConnect, count: int) -> None:
        domains = [self._start(connection) for _ in range(count)]
        for domain in domains:
            wait_until(lambda domain=domain: _pinned(domain), 60, "a pin")  # type: ignore[misc]
        for domain in domains:
            domain.destroy()
        wait_until(lambda: not self._running(), 60, "all to be gone")

    def _running(self) -> bool:
        """Tell whether the daemon knows of a guest that runs, by what it tells everybody."""
        guests = json.loads(self._daemon.status())["guests"]
        return any(guest["live"] is not None for guest in guests)

    def _start(self, connection: libvirt.virConnect) -> libvirt.virDomain:
        self._number += 1
        return connection.createXML(
            _XML.format(
                name=f"guest-{self._number}",
                uuid=uuid.UUID(int=self._number),
                metadata=own_metadata("isolate"),
            )
        )


def _pinned(domain: libvirt.virDomain) -> bool:
    pin = domain.emulatorPinInfo()
    return [cpu for cpu, there in enumerate(pin) if there] == [POOL]


def costs() -> dict[str, int]:
    """Return what this process holds: descriptors, threads, resident KiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "fds": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": sum(1 for _ in Path("/proc/self/task").iterdir()),
        "rss_kib": pages * os.sysconf("SC_PAGE_SIZE") // 1024,
    }


def main() -> int:
    """Run the daemon until the traffic has ended."""
    folder, marks = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]]
    file = folder / "config.toml"
    file.write_text(
        f'libvirt.uri = "{URI}"\npool.cpus = "{POOL}"\npool.emulator_overcommit_ratio = 1000\n'
        f'http.listen = "127.0.0.1:0"\nstate.path = "{folder}/state.json"\n'
        "reconcile.interval = 1\n"
    )
    config = configuration.load(file)
    footprint.confine()
    with (folder / "log").open("w") as log:
        logs.configure(config.log.level, config.log.format, log)
        logging.captureWarnings(capture=True)
        loop = hypervisor.EventLoop()
        parts = Parts(reach.libvirt(config.libvirt), reach.sysfs(), Threads(), loop, watch())
        daemon = Daemon(config, parts)
        traffic = Traffic(daemon, marks)
        threading.Thread(target=traffic.run, daemon=True).start()
        daemon.run()
    if traffic.failed is not None:
        raise traffic.failed
    return 0


if __name__ == "__main__":
    sys.exit(main())
