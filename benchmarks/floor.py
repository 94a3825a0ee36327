"""The floor: a bare libvirt-python client that makes only the calls nobody can avoid.

`python -m benchmarks.floor URI SEEING BLIND` pins, in the event thread, each guest that starts. Of
one whose name begins with SEEING it asks first what must be known to decide anything: which guests
run (one list), and what this one is (one definition). One whose name begins with BLIND it pins
without a look, which nobody can do who does not know the answer; it tells what the look costs.

For each line `CPUS UUID...` on standard input it pins these guests, from as many connections as
the agent has workers, and answers `done`.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import libvirt

WORKERS = 3
LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE


def mask(cpus: str) -> tuple[bool, ...]:
    """Return the tuple of booleans that the binding wants, for single ids parted by commas."""
    wanted = {int(cpu) for cpu in cpus.split(",")}
    return tuple(cpu in wanted for cpu in range(max(wanted) + 1))


def pin_arrivals(uri: str, seeing: str, blind: str) -> None:
    """Pin in the callback, to pCPU 0."""
    connection = libvirt.open(uri)

    def started(_conn: Any, domain: Any, event: int, _detail: int, _opaque: object) -> None:
        if event != libvirt.VIR_DOMAIN_EVENT_STARTED:
            return
        if domain.name().startswith(seeing):
            connection.listDomainsID()
            domain.XMLDesc(0)
        elif not domain.name().startswith(blind):
            return
        domain.pinEmulator(mask("0"), LIVE)

    connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, started, None)


def pin_all(connections: list[Any], uuids: list[str], cpus: str) -> None:
    """Pin `uuids` from all connections at once."""

    def work(connection: Any, own: list[str]) -> None:
        for uuid in own:
            connection.lookupByUUIDString(uuid).pinEmulator(mask(cpus), LIVE)

    workers = [
        threading.Thread(target=work, args=(connection, uuids[n::WORKERS]))
        for n, connection in enumerate(connections)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def main() -> None:
    """Serve until standard input ends."""
    uri, seeing, blind = sys.argv[1:]
    start_events()
    pin_arrivals(uri, seeing, blind)
    connections = [libvirt.open(uri) for _ in range(WORKERS)]
    print("ready", flush=True)
    for line in sys.stdin:
        cpus, *uuids = line.split()
        pin_all(connections, uuids, cpus)
        print("done", flush=True)


def start_events() -> None:
    """Register libvirt's event loop, before any connection, and run it."""
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, daemon=True).start()


if __name__ == "__main__":
    main()
