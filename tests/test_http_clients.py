"""Clients that cost; the clock stands still, so nothing here depends on speed."""

from __future__ import annotations

import io
import resource
import socket
import struct
import threading
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent import logs
from agent.http import Limits
from tests.web import (
    ANSWERS,
    BIG,
    HEALTH,
    LOOPBACK,
    Clock,
    ask,
    client_of,
    connect,
    get,
    is_dropped,
    is_open,
    read,
    rest,
    running,
    secure,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_silent_clients_delay_nobody() -> None:
    with running(clock=Clock()) as server, ExitStack() as silent:
        clients = [silent.enter_context(closing(connect(server))) for _ in range(40)]
        for sock in clients[::2]:
            sock.sendall(HEALTH[:-2])
        assert [ask(server).status for _ in range(20)] == [200] * 20
        assert all(map(is_open, clients))


def test_a_client_has_to_send_its_request_in_time_however_busy_it_looks() -> None:
    clock = Clock()
    with running(limits=Limits(request=5), clock=clock) as server, ExitStack() as late:
        silent, slow = (late.enter_context(closing(connect(server))) for _ in range(2))
        slow.sendall(b"GET / HTTP/1.1\r\n")
        assert ask(server).status == 200  # so both are accepted before the clock moves
        clock.now = 4.9
        slow.sendall(b"X: y\r\n")
        assert ask(server).status == 200
        assert is_open(silent)
        assert is_open(slow)
        clock.now = 5.0
        assert ask(server).status == 200
        assert is_dropped(silent)
        assert is_dropped(slow)


def test_a_client_has_to_take_its_answer_in_time() -> None:
    clock = Clock()
    answers = replace(ANSWERS, page=lambda: BIG)
    with (
        running(answers=answers, limits=Limits(response=10, unsent=1 << 30), clock=clock) as server,
        closing(connect(server)) as stalled,
    ):
        stalled.sendall(HEALTH.replace(b"healthz", b""))
        assert stalled.recv(10).startswith(b"HTTP/1.1")
        clock.now = 9.9
        assert ask(server).status == 200
        assert [c for c in server._connections if c.unsent]
        clock.now = 10.0
        assert ask(server).status == 200
        assert len(rest(stalled)) < len(BIG)


def test_who_takes_its_answer_gets_all_of_it() -> None:
    with running(answers=replace(ANSWERS, page=lambda: BIG)) as server:
        assert len(get(server, "/").body) == len(BIG)


def test_answers_that_nobody_takes_are_limited_in_all() -> None:
    answers = replace(ANSWERS, page=lambda: BIG)
    page = HEALTH.replace(b"healthz", b"")
    limits = Limits(unsent=len(BIG) * 3 // 2)
    with running(answers=answers, limits=limits, clock=Clock()) as server, ExitStack() as both:
        first, second = (both.enter_context(closing(connect(server))) for _ in range(2))
        for sock in (first, second):
            sock.sendall(page)
            assert sock.recv(1) == b"H"
        assert len(rest(first)) < len(BIG)
        assert len(rest(second)) > len(BIG)


def send_for_ever(sock: socket.socket) -> None:
    while True:
        sock.sendall(b"more")


def test_a_client_that_goes_on_sending_is_dropped() -> None:
    with running(clock=Clock()) as server, closing(connect(server)) as sock:
        sock.sendall(HEALTH)
        assert read(rest(sock)).status == 200
        with pytest.raises(OSError, match=r"reset|pipe"):
            send_for_ever(sock)


def test_a_client_that_stays_after_its_answer_is_dropped() -> None:
    clock = Clock()
    with running(limits=Limits(linger=1), clock=clock) as server, closing(connect(server)) as sock:
        sock.sendall(HEALTH)
        assert read(rest(sock)).status == 200
        (staying,) = server._connections
        clock.now = 0.9
        assert [ask(server).status for _ in range(2)] == [200] * 2
        assert staying in server._connections
        clock.now = 1.0
        assert [ask(server).status for _ in range(2)] == [200] * 2
        assert staying not in server._connections


# CPython leaves it to the collector to close what it wrapped when the client is gone by then.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_clients_that_break_off_are_no_news(tmp_path: Path) -> None:
    log = io.StringIO()
    logs.configure("debug", "json", log)
    over_tls = secure(tmp_path)
    for settings, context in ((LOOPBACK, None), (over_tls, client_of(over_tls))):
        with running(settings) as server:
            for sent in (b"", b"GET /", HEALTH):
                sock = connect(server)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.sendall(sent)
                sock.close()  # with a reset
            assert ask(server, context=context).status == 200
    assert log.getvalue() == ""


def test_a_thousand_idle_clients_keep_nobody_out_and_start_no_thread() -> None:
    before = threading.active_count()
    with running(limits=Limits(connections=16), clock=Clock()) as server, ExitStack() as idle:
        clients = []
        for _ in range(10):
            clients += [idle.enter_context(closing(connect(server))) for _ in range(100)]
            assert ask(server).status == 200
        assert threading.active_count() == before + 1
        assert len(server._connections) <= 16
        assert all(map(is_dropped, clients[:-16]))
        assert is_open(clients[-1])


def test_who_is_being_answered_is_dropped_last() -> None:
    answers = replace(ANSWERS, page=lambda: BIG)
    limits = Limits(connections=4, unsent=1 << 30)
    with running(answers=answers, limits=limits, clock=Clock()) as server, ExitStack() as idle:
        reader = idle.enter_context(closing(connect(server)))
        reader.sendall(HEALTH.replace(b"healthz", b""))
        assert reader.recv(1) == b"H"
        for _ in range(20):
            idle.enter_context(closing(connect(server)))
        assert ask(server).status == 200
        assert len(rest(reader)) > len(BIG)


@contextmanager
def no_more_files() -> Iterator[None]:
    """Leave this process no file descriptor that is not open already."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        with ExitStack() as taken:
            with suppress(OSError):
                while True:
                    taken.enter_context(socket.socket())
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_lack_of_files_costs_an_idle_client_and_no_other() -> None:
    with (
        running(clock=Clock()) as server,
        closing(connect(server)) as idle,
        socket.socket() as late,
    ):
        idle.sendall(HEALTH)
        assert read(rest(idle)).status == 200  # it stays, and has the one file to be had
        assert server.address is not None
        with no_more_files():
            late.settimeout(10)
            late.connect(server.address)
            late.sendall(HEALTH)
            assert read(rest(late)).status == 200


def test_a_lack_of_files_passes() -> None:
    with running() as server, socket.socket() as late:
        assert server.address is not None
        late.settimeout(10)
        with no_more_files():
            late.connect(server.address)
            late.sendall(HEALTH)
        assert read(rest(late)).status == 200
