"""A rival: looks each PERIOD seconds and pins what is new, as the kubelet's CPU manager does.

`python -m benchmarks.poller URI PERIOD` lists the running guests and pins, to pCPU 0, those with
`-poller-` in their name that it has not pinned yet. It says when it last looked, so that arrivals
can be spread over its period: for each line on standard input, the monotonic time.
"""

from __future__ import annotations

import sys
import threading
import time

import libvirt

from benchmarks.floor import LIVE, mask


def poll(uri: str, period: float, looked: list[float]) -> None:
    connection = libvirt.open(uri)
    pinned: set[str] = set()
    while True:
        began = time.monotonic()
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            if "-poller-" in domain.name() and domain.UUIDString() not in pinned:
                domain.pinEmulator(mask("0"), LIVE)
                pinned.add(domain.UUIDString())
        looked[:] = [began]
        time.sleep(max(0.0, began + period - time.monotonic()))


def main() -> None:
    """Serve until standard input ends."""
    looked: list[float] = []
    arguments = (sys.argv[1], float(sys.argv[2]), looked)
    threading.Thread(target=poll, args=arguments, daemon=True).start()
    print("ready", flush=True)
    for _ in sys.stdin:
        while not looked:
            time.sleep(0.01)
        print(looked[0], flush=True)


if __name__ == "__main__":
    main()
