"""Guests that are busy, and a libvirtd that hangs: nobody else waits for them.

Real QEMU guests and a real libvirtd, from outside; the truth is the kernel's. A job holds a guest
whose QEMU is stopped while libvirt asks it something: pins of it wait for 30 s then.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import libvirt
import pytest

from agent.pinner import LIMIT
from tests.guests import wait_until
from tests.service import SOON, Service, on, wait, wait_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.guests import Guest
    from tests.libvirtd import Libvirtd

pytestmark = pytest.mark.real

ZERO, ONE, BOTH = frozenset({0}), frozenset({1}), frozenset({0, 1})
BUSY = 7


@contextmanager
def busy(libvirtd: Libvirtd, guests: list[Guest]) -> Iterator[list[threading.Thread]]:
    """Have a job hold each of `guests`; the threads end when theirs does.

    Each asks over a connection of its own: libvirtd takes five calls of one at a time.
    """
    asking = []
    for guest in guests:
        os.kill(guest.pid, signal.SIGSTOP)
        domain = libvirt.open(libvirtd.uri).lookupByUUIDString(guest.uuid)
        asking.append(threading.Thread(target=domain.suspend))
        asking[-1].start()
    try:
        for guest in guests:
            wait(partial(_is_held, guest), f"a job to hold {guest.name}")
        yield asking
    finally:
        for guest in guests:
            os.kill(guest.pid, signal.SIGCONT)
        for thread in asking:
            thread.join()


def _is_held(guest: Guest) -> bool:
    return bool(guest.domain.controlInfo()[0] == libvirt.VIR_DOMAIN_CONTROL_OCCUPIED)


def test_seven_busy_guests_delay_neither_an_arrival_nor_an_evacuation(
    libvirtd: Libvirtd, service: Service, start: Callable[..., Guest]
) -> None:
    held, healthy = [start(f"held-{n}") for n in range(BUSY)], start("healthy")
    wait_on(BOTH, *held, healthy)
    service.settle()
    with busy(libvirtd, held) as asking:
        arrived = start("arrived")
        wait_on(BOTH, arrived)
        start("claimer", vcpupins={0: "0"}, metadata_policy="ignore")  # off 0, all of them
        wait_on(ONE, arrived, healthy)
        assert all(thread.is_alive() for thread in asking)
        assert 0 < service.metric("guests", state="busy") <= LIMIT
        assert all(on(BOTH, guest) for guest in held)
    wait_on(ONE, *held, arrived, healthy)
    wait(lambda: service.metric("guests", state="busy") == 0, "nobody to be busy")


def test_a_save_that_takes_long_delays_no_other_guest(
    libvirtd: Libvirtd, service: Service, start: Callable[..., Guest], tmp_path: Path
) -> None:
    saved, other = start("saved"), start("other")
    wait_on(ZERO, saved, other)
    service.settle()
    pid = saved.pid
    os.kill(pid, signal.SIGSTOP)
    saving = threading.Thread(target=saved.domain.save, args=(str(tmp_path / "image"),))
    saving.start()
    try:
        libvirtd.virsh("emulatorpin", other.name, "1", "--live")
        wait_on(ZERO, other)
        assert saving.is_alive()
    finally:
        os.kill(pid, signal.SIGCONT)
        saving.join()
    wait(lambda: service.metric("guests", state="placed") == 1, "the saved one to be gone")
    libvirtd.conn.restore(str(tmp_path / "image"))
    wait_on(ZERO, saved, other)


def test_a_guest_that_was_restored_and_stays_paused_is_pinned(
    libvirtd: Libvirtd, service: Service, start: Callable[..., Guest], tmp_path: Path
) -> None:
    """Its state is that of a guest that still migrates here, for as long as it is paused."""
    guest, image, paused = start("guest"), str(tmp_path / "image"), libvirt.VIR_DOMAIN_SAVE_PAUSED
    wait_on(ZERO, guest)
    guest.domain.saveFlags(image, None, paused)
    start("claimer", vcpupins={0: "0"}, metadata_policy="ignore")
    wait(lambda: service.metric("guests", state="placed") == 0, "the saved one to be gone")
    libvirtd.conn.restoreFlags(image, None, paused)
    assert tuple(guest.domain.state()) == (
        libvirt.VIR_DOMAIN_PAUSED,
        libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
    )
    wait_on(ONE, guest)
    wait(lambda: service.metric("guests", state="placed") == 1, "the restored one to be placed")


def test_a_guest_that_libvirt_is_slow_to_destroy_delays_nobody(
    libvirtd: Libvirtd, service: Service, start: Callable[..., Guest]
) -> None:
    """Whoever asks for it meanwhile, and whoever lists all, waits for up to 10 s."""

    def drifted(times: int) -> bool:
        return service.metric("drift_total", kind="libvirt") == times

    slow, other = start("slow"), start("other")
    wait_on(ZERO, slow, other)
    service.settle()
    pid = slow.pid
    os.kill(pid, signal.SIGSTOP)  # it cannot die, and libvirt waits for that with its lock
    destroyer = threading.Thread(target=slow.destroy)
    destroyer.start()
    try:
        wait(lambda: service.saw("cycle.postponed"), "a list that libvirt does not answer")
        for count in range(1, 4):
            libvirtd.virsh("emulatorpin", other.name, "1", "--live")
            wait(partial(drifted, count), "the drift to be counted")
            wait_on(ZERO, other)
        assert destroyer.is_alive()
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        destroyer.join()


def test_a_libvirtd_that_hangs_is_noticed_and_followed_again(
    libvirtd: Libvirtd, tmp_path: Path, start: Callable[..., Guest]
) -> None:
    keepalive = {"uri": libvirtd.uri, "keepalive_interval": 2, "keepalive_count": 2}
    with Service(libvirtd.uri, tmp_path, pool={"cpus": "0-1"}, libvirt=keepalive) as service:
        guest = start("guest")
        wait_on(ZERO, guest)
        os.kill(libvirtd.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: service.metric("libvirt_up") == 0, SOON, "the hang to be noticed")
            assert service.get("/readyz")[0] == 503
            assert service.get("/healthz")[0] == 200
            assert on(ZERO, guest)
        finally:
            os.kill(libvirtd.pid, signal.SIGCONT)
        wait(service.ready, "the daemon to be ready again")
        assert service.metric("libvirt_reconnects_total") >= 1
        libvirtd.virsh("emulatorpin", guest.name, "1", "--live")
        wait_on(ZERO, guest)
