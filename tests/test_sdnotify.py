"""What systemd hears, on real datagram sockets."""

from __future__ import annotations

import contextlib
import math
import socket
from typing import TYPE_CHECKING

import pytest

from agent import sdnotify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        yield listener


def heard(listener: socket.socket) -> str:
    return listener.recv(4096).decode()


def told(listener: socket.socket, **more: str) -> sdnotify.Silent:
    return sdnotify.connect(
        {"NOTIFY_SOCKET": listener.getsockname(), **more}, pid=42, clock=lambda: 1_234_567
    )


def test_each_state_is_one_datagram(systemd: socket.socket) -> None:
    notify = told(systemd, WATCHDOG_USEC="3000000")
    notify.ready()
    notify.ready("cell 0: 1 pCPU")
    notify.reloading()
    notify.status("cell 0: 2 pCPUs")
    notify.watchdog()
    notify.stopping()
    assert [heard(systemd) for _ in range(6)] == [
        "READY=1",
        "READY=1\nSTATUS=cell 0: 1 pCPU",
        "RELOADING=1\nMONOTONIC_USEC=1234",
        "STATUS=cell 0: 2 pCPUs",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


def test_an_abstract_address_begins_with_an_at_sign(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{tmp_path}")
        listener.settimeout(5)
        sdnotify.connect({"NOTIFY_SOCKET": f"@{tmp_path}"}).stopping()
        assert heard(listener) == "STOPPING=1"


def test_no_status_can_hold_a_second_assignment(systemd: socket.socket) -> None:
    notify = told(systemd)
    notify.status("web\nMAINPID=1\x1b[2J\ud800" + "x" * 1000)
    notify.ready("a\nSTOPPING=1")
    status = heard(systemd)
    assert status.startswith("STATUS=web MAINPID=1 [2J x")
    assert status.isprintable()
    assert len(status) < 300
    assert heard(systemd) == "READY=1\nSTATUS=a STOPPING=1"


@pytest.mark.parametrize("address", ["", "vsock:2:1", "relative/path", "/run/\0notify"], ids=repr)
def test_without_a_socket_of_ours_nothing_is_sent(address: str) -> None:
    assert type(sdnotify.connect({"NOTIFY_SOCKET": address})) is sdnotify.Silent


def test_the_watchdog_is_due_at_half_its_time(systemd: socket.socket) -> None:
    now = [5_000_000_000]
    environ = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "120000000"}
    notify = sdnotify.connect(environ, pid=42, clock=lambda: now[0])
    assert notify.until_due() == 60
    now[0] += 59_000_000_000
    assert notify.until_due() == 1
    now[0] += 2_000_000_000
    assert notify.until_due() == -1
    notify.watchdog()
    assert notify.until_due() == 60
    assert heard(systemd) == "WATCHDOG=1"


def test_without_a_watchdog_nothing_is_ever_due(systemd: socket.socket) -> None:
    assert told(systemd).until_due() == math.inf
    assert sdnotify.connect({}).until_due() == math.inf


def test_nobody_to_tell_is_no_error() -> None:
    notify = sdnotify.connect({})
    notify.ready("x")
    notify.reloading()
    notify.status("x")
    notify.watchdog()
    notify.stopping()
    assert notify.watchdog_seconds is None


def test_a_systemd_that_is_gone_is_no_error(systemd: socket.socket, tmp_path: Path) -> None:
    notify = told(systemd, WATCHDOG_USEC="1")
    systemd.close()
    notify.ready()  # refused
    (tmp_path / "notify").unlink()
    notify.watchdog()  # no such file
    sdnotify.connect({"NOTIFY_SOCKET": "/" + "x" * 200}).stopping()  # longer than an address


def test_a_systemd_that_does_not_read_holds_up_no_cycle(systemd: socket.socket) -> None:
    notify = told(systemd, WATCHDOG_USEC="1")
    sent = 2000  # more than any queue of datagrams (net.unix.max_dgram_qlen) holds
    for _ in range(sent):
        notify.watchdog()
    systemd.settimeout(0)
    received = 0
    with contextlib.suppress(BlockingIOError):
        while systemd.recv(64):
            received += 1
    assert 0 < received < sent


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 30.0),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_if_it_waits_for_us(
    systemd: socket.socket, environ: dict[str, str], seconds: float | None
) -> None:
    notify = told(systemd, **environ)
    assert notify.watchdog_seconds == seconds
    notify.watchdog()
    notify.stopping()
    assert heard(systemd) == ("STOPPING=1" if seconds is None else "WATCHDOG=1")
