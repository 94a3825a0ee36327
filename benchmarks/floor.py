"""The floor: a bare libvirt-python client that makes only the calls nobody can avoid; and a rival.

`python -m benchmarks.floor URI [WORD...]` acts in the event thread on each guest that starts, by
what its name holds:

    -floor-   asks first what must be known to decide anything: which guests run (one list), and
              what this one is (one definition); then pins it
    -blind-   pins it without a look, which nobody can do who does not know the answer; it tells
              what the look costs
    -every-   re-pins every running guest, as the CPU pool of oVirt's vdsm does on each event

For each line `pin CPUS UUID...` on standard input it pins these guests, from as many connections
as the agent has workers. For `back CPUS COUNT` it waits until libvirtd can be reached again, lists
the guests once, reads the definition of each, and pins each. Both answer `done`.
"""

from __future__ import annotations

import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import libvirt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WORKERS = 3
LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
AGAIN = 0.01


def mask(cpus: str) -> tuple[bool, ...]:
    """Return the tuple of booleans that the binding wants, for single ids parted by commas."""
    wanted = {int(cpu) for cpu in cpus.split(",")}
    return tuple(cpu in wanted for cpu in range(max(wanted) + 1))


def pin(cpus: str, domain: Any) -> None:
    domain.pinEmulator(mask(cpus), LIVE)


def pin_arrivals(connection: Any) -> None:
    """Pin in the callback, to pCPU 0."""

    def started(_conn: Any, domain: Any, event: int, _detail: int, _opaque: object) -> None:
        if event != libvirt.VIR_DOMAIN_EVENT_STARTED:
            return
        name = domain.name()
        if "-floor-" in name:
            connection.listDomainsID()
            domain.XMLDesc(0)
            domain.pinEmulator(mask("0"), LIVE)
        elif "-blind-" in name:
            domain.pinEmulator(mask("0"), LIVE)
        elif "-every-" in name:
            for other in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                other.pinEmulator(mask("0"), LIVE)

    connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, started, None)


def shared_out(
    connections: Sequence[Any], uuids: Sequence[str], act: Callable[[Any], object]
) -> None:
    """Act on the domains of `uuids` from all connections at once."""

    def work(connection: Any, own: Sequence[str]) -> None:
        for uuid in own:
            act(connection.lookupByUUIDString(uuid))

    workers = [
        threading.Thread(target=work, args=(connection, uuids[n :: len(connections)]))
        for n, connection in enumerate(connections)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def come_back(uri: str, cpus: str, count: int) -> list[Any]:
    """Connect as soon as libvirtd answers, look at all guests, and pin them."""
    connections = [reopened(uri) for _ in range(WORKERS)]
    listed = connections[0].listAllDomains(0)
    uuids = [domain.UUIDString() for domain in listed]
    assert len(uuids) == count

    def act(domain: Any) -> None:
        domain.XMLDesc(0)
        domain.pinEmulator(mask(cpus), LIVE)

    shared_out(connections, uuids, act)
    return connections


def reopened(uri: str) -> Any:
    while True:
        try:
            return libvirt.open(uri)
        except libvirt.libvirtError:
            time.sleep(AGAIN)


def main() -> None:
    """Serve until standard input ends."""
    uri = sys.argv[1]
    start_events()
    libvirt.registerErrorHandler(lambda *_: None, None)
    events = libvirt.open(uri)
    pin_arrivals(events)
    connections = [libvirt.open(uri) for _ in range(WORKERS)]
    print("ready", flush=True)
    for line in sys.stdin:
        order, cpus, *rest = line.split()
        if order == "back":
            connections = come_back(uri, cpus, int(rest[0]))
        else:
            shared_out(connections, rest, partial(pin, cpus))
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
