"""libvirt's event loop: who runs it, and that no wake is lost when it changes hands.

A process has one loop for its life, so each test has a process.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.service import Service

if TYPE_CHECKING:
    from pathlib import Path

    from tests.libvirtd import Libvirtd

BEGIN = """
import threading, time
from agent.hypervisor import EventLoop

def stand_by():
    while not loop._running.locked():
        time.sleep(0.001)

def put():
    inbox.append(1)
    loop.wake()

loop, inbox = EventLoop(0.005), []
"""
PROGRAMS = {
    "who comes back has the loop at once": """
for _ in range(50):
    stand_by()
    loop.wait(lambda: True, None)
""",
    "a wake while another thread runs the loop is not lost": """
for _ in range(200):
    stand_by()
    threading.Thread(target=put).start()
    loop.wait(lambda: inbox, None)
    inbox.clear()
""",
    "a wake before the loop is run is not lost": """
for _ in range(200):
    put()
    loop.wait(lambda: inbox, None)
    inbox.clear()
""",
    "a wait ends when its time is over": """
stand_by()
loop.wait(lambda: False, 0.01)
""",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_wait_ends_when_it_should(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program + "print('done')"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_stop_does_not_wait_for_a_libvirtd_that_hangs(libvirtd: Libvirtd, tmp_path: Path) -> None:
    keepalive = {"keepalive_interval": 1, "keepalive_count": 1}
    idle = {"interval": 3600}
    with Service(libvirtd.uri, tmp_path, libvirt=keepalive, reconcile=idle) as service:
        libvirtd.pause()
        try:
            assert service.stop() == 0
        finally:
            libvirtd.resume()
