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
from typing import TYPE_CHECKING, Final

import pytest

from agent import logs
from agent.http import Limits
from agent.http.message import HEAD_BYTES
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


SCRAPE: Final = HEALTH.replace(b"healthz", b"metrics")
PAGE: Final = HEALTH.replace(b"healthz", b"")
FILES: Final = 4096


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
    answers = replace(ANSWERS, page=lambda _: BIG)
    with (
        running(answers=answers, limits=Limits(response=10, held=1 << 30), clock=clock) as server,
        closing(connect(server)) as stalled,
    ):
        stalled.sendall(PAGE)
        assert stalled.recv(10).startswith(b"HTTP/1.1")
        clock.now = 9.9
        assert ask(server).status == 200
        assert [c for c in list(server._connections) if c.held]
        clock.now = 10.0
        assert ask(server).status == 200
        assert len(rest(stalled)) < len(BIG)


def test_who_takes_its_answer_gets_all_of_it() -> None:
    with running(answers=replace(ANSWERS, page=lambda _: BIG)) as server:
        assert len(get(server, "/").body) == len(BIG)


def test_answers_that_nobody_takes_are_limited_in_all() -> None:
    answers = replace(ANSWERS, page=lambda _: BIG)
    limits = Limits(held=len(BIG) * 3 // 2)
    with running(answers=answers, limits=limits, clock=Clock()) as server, ExitStack() as both:
        first, second = (both.enter_context(closing(connect(server))) for _ in range(2))
        for sock in (first, second):
            sock.sendall(PAGE)
            assert sock.recv(1) == b"H"
        assert len(rest(first)) < len(BIG)
        assert len(rest(second)) > len(BIG)


def test_an_answer_counts_whole_until_its_client_has_all_of_it() -> None:
    answers = replace(ANSWERS, page=lambda _: BIG)
    limits = Limits(held=len(BIG) * 27 // 16)
    with running(answers=answers, limits=limits, clock=Clock()) as server, ExitStack() as both:
        first, second = (both.enter_context(closing(connect(server))) for _ in range(2))
        first.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # or it grows with reading
        first.sendall(PAGE)
        taken = 0
        while taken < len(BIG) * 6 // 16:  # what is left would fit beside another answer
            taken += len(first.recv(65536))
        second.sendall(PAGE)
        assert second.recv(1) == b"H"
        assert taken + len(rest(first)) < len(BIG)
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


def test_empty_lines_without_end_are_no_request() -> None:
    with running(clock=Clock()) as server, closing(connect(server)) as sock:
        sock.sendall(b"\r\n" * HEAD_BYTES)
        assert read(rest(sock)).status == 400
        assert ask(server).status == 200


@pytest.mark.parametrize("sent", [b"", b"GET /healthz", HEALTH[:-2]])
def test_who_ends_its_side_before_its_request_is_dropped(sent: bytes) -> None:
    with running(clock=Clock()) as server, closing(connect(server)) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        assert rest(sock) == b""
        assert not server._connections


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


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process have both ends of a thousand connections open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"host: may open {hard} files, {FILES} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("connections", [Limits().connections, 1100])
@pytest.mark.parametrize("over", ["plain", "TLS", "TLS with client certificates"])
@pytest.mark.usefixtures("many_files")
def test_scrapes_go_on_among_a_thousand_idle_and_fifty_slow_clients(
    over: str, connections: int, tmp_path: Path
) -> None:
    settings, context = LOOPBACK, None
    if over != "plain":
        settings = secure(tmp_path)
        context = client_of(settings)
        if over != "TLS":
            settings = replace(settings, client_ca=tmp_path / "client.pem")
            context.load_cert_chain(tmp_path / "client.pem")
    answers = replace(ANSWERS, page=lambda _: BIG[: 8 << 20])
    limits = Limits(connections=connections, held=1 << 30)
    threads = threading.active_count()
    with running(settings, answers, limits, Clock()) as server, ExitStack() as crowd:
        idle = [crowd.enter_context(closing(connect(server))) for _ in range(1000)]
        senders, readers = (
            [crowd.enter_context(closing(connect(server, context))) for _ in range(count)]
            for count in (40, 10)
        )
        for sock in readers:
            sock.sendall(PAGE)
            assert sock.recv(1) == b"H"
        for n in range(100):
            senders[n % 40].sendall(b"GET / HTTP/1.1\r\n"[n // 40 :][:1])
            assert ask(server, SCRAPE, context).status == 200
        assert threading.active_count() == threads + 1
        assert len(server._connections) <= connections
        assert [c for c in list(server._connections) if c.held]
        assert all(map(is_open, senders))
        if connections > len(idle):
            assert all(map(is_open, idle))


@pytest.mark.usefixtures("many_files")
def test_a_burst_of_clients_is_let_in_while_an_answer_is_made() -> None:
    if int(Path("/proc/sys/net/core/somaxconn").read_text()) < 512:
        pytest.skip("host: its kernel queues fewer than 512 connections")
    asked, go_on = threading.Event(), threading.Event()

    def page(_: bool) -> str:  # noqa: FBT001 - as the server asks
        asked.set()
        assert go_on.wait(60)
        return ""

    answers = replace(ANSWERS, page=page)
    limits = Limits(connections=600)
    with running(answers=answers, limits=limits, clock=Clock()) as server, ExitStack() as burst:
        clients = [burst.enter_context(closing(connect(server)))]
        clients[0].sendall(PAGE)
        assert asked.wait(10)
        try:
            clients += [burst.enter_context(closing(connect(server))) for _ in range(500)]
        finally:
            go_on.set()
        for sock in clients[1:]:
            sock.sendall(SCRAPE)
        assert {read(rest(sock)).status for sock in clients} == {200}


def test_who_is_being_answered_is_dropped_last() -> None:
    answers = replace(ANSWERS, page=lambda _: BIG)
    limits = Limits(connections=4, held=1 << 30)
    with running(answers=answers, limits=limits, clock=Clock()) as server, ExitStack() as idle:
        reader = idle.enter_context(closing(connect(server)))
        reader.sendall(PAGE)
        assert reader.recv(1) == b"H"
        for _ in range(20):
            idle.enter_context(closing(connect(server)))
        assert ask(server).status == 200
        assert len(rest(reader)) > len(BIG)


@contextmanager
def no_more_files() -> Iterator[ExitStack]:
    """Leave this process no file descriptor that is not open already, until the stack is closed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        with ExitStack() as taken:
            with suppress(OSError):
                while True:
                    taken.enter_context(socket.socket())
            yield taken
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


def test_a_lack_of_files_is_waited_for_not_spun_upon() -> None:
    clock = Clock()
    looks: list[int] = []
    with ExitStack() as files:

        def pause(_seconds: float) -> None:
            looks.append(clock.reads)
            if len(looks) == 3:
                files.close()

        with running(clock=clock, pause=pause) as server, socket.socket() as late:
            assert server.address is not None
            late.settimeout(10)
            with no_more_files() as taken:
                files.push(taken.pop_all())
                before = clock.reads
                late.connect(server.address)
                late.sendall(HEALTH)
                assert read(rest(late)).status == 200
    assert looks == [before, before + 1, before + 2]  # one look at the listener, one pause
