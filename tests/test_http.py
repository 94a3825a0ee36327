"""What the server serves, and where, asked over real sockets by clients that behave."""

from __future__ import annotations

import io
import json
import socket
import threading
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent import logs
from agent.config import HttpSettings
from agent.http import PortInUse, Server, serving
from tests.web import ANSWERS, LOOPBACK, ask, connect, get, is_dropped, read, rest, running

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


# what is served


@pytest.mark.parametrize(
    ("target", "status", "kind", "body"),
    [
        ("/metrics", 200, "text/plain; version=0.0.4", b"emupool_up 1\n# \n"),
        ("/metrics?name[]=x", 200, "text/plain; version=0.0.4", b"emupool_up 1\n# \n"),
        ("/healthz", 200, "text/plain; charset=utf-8", b"ok\n"),
        ("/readyz", 200, "text/plain; charset=utf-8", b"ready\n"),
        ("/api/v1/status", 200, "application/json", b'{"schema":1}'),
        ("/", 200, "text/html; charset=utf-8", b"<!doctype html><title>emupool</title>"),
        ("http://node:9857/healthz", 200, "text/plain; charset=utf-8", b"ok\n"),
        ("HTTP://node", 200, "text/html; charset=utf-8", b"<!doctype html><title>emupool</title>"),
    ],
)
def test_each_path_has_its_answer(
    server: Server, target: str, status: int, kind: str, body: bytes
) -> None:
    answer = get(server, target)
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (status, kind, body)
    assert answer.headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize(
    "target",
    [
        *(
            "/metrics/",
            "/metric",
            "/Metrics",
            "/api",
            "/api/v1",
            "/metrics;a",
            "/metrics/../healthz",
        ),
        *("//", "//metrics", "/.", "/..", "/../../etc/passwd", "/./metrics", "/\\metrics"),
        *("/%6detrics", "/%2e%2e/%2e%2e/etc/passwd", "/%2fmetrics", "/metrics%00", "/%", "/%zz"),
        *("http://node/etc/passwd", "http://node//metrics", "http://node/../metrics"),
        *("https://user:word@[::1]:1/metrics/", "/http://node/metrics"),
    ],
)
def test_any_other_path_is_not_found(server: Server, target: str) -> None:
    answer = get(server, target)
    assert answer.status == 404
    assert b"/metrics" in answer.body


def test_head_is_get_without_the_body(server: Server) -> None:
    for target in ("/metrics", "/", "/nothing"):
        full, head = get(server, target), get(server, target, "HEAD")
        for headers in (full.headers, head.headers):
            headers.pop("Date")
        assert replace(full, body=b"") == head
    broken = ask(server, b"HEAD /healthz HTTP/1.1\r\n\r\n")  # has no Host
    assert (broken.status, broken.body) == (400, b"")
    assert int(broken.headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get", "X"]
)
def test_reading_is_all_that_is_allowed(server: Server, method: str) -> None:
    answer = get(server, "/metrics", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_an_upload_is_answered_and_thrown_away(server: Server) -> None:
    megabyte = 1 << 20
    with closing(connect(server)) as sock:
        sock.sendall(
            b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % megabyte
            + bytes(megabyte)
        )
        assert read(rest(sock)).status == 405  # whole, not lost in a reset


def test_every_answer_is_safe_to_show_in_a_browser(server: Server) -> None:
    for target in ("/", "/metrics", "/nothing"):
        headers = get(server, target).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "script" not in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Connection"] == "close"
        assert "Server" not in headers


def test_the_accept_headers_reach_the_metrics(server: Server) -> None:
    answer = get(server, "/metrics", headers="ACCEPT:  text/plain;q=0.5 \r\nAccept: b/c\r\n")
    assert answer.body.endswith(b"# text/plain;q=0.5 ,b/c\n")


def test_readiness_tells_in_a_line_what_is_missing() -> None:
    answers = replace(ANSWERS, ready=lambda: (False, "libvirt is away:\r\nrefused"))
    with running(answers=answers) as server:
        answer = get(server, "/readyz")
        assert (answer.status, answer.body) == (503, b"libvirt is away: refused\n")
        assert get(server, "/healthz").status == 200


def test_the_page_can_be_switched_off() -> None:
    with running(replace(LOOPBACK, status_page=False)) as server:
        assert get(server, "/").status == 404
        assert get(server, "/metrics").status == 200


def test_the_page_is_asked_to_stand_still_by_its_query() -> None:
    with running(answers=replace(ANSWERS, page=lambda still: f"still {still}")) as server:
        bodies = [get(server, target).body for target in ("/", "/?still", "/?other", "/?")]
    assert bodies == [b"still False", b"still True", b"still False", b"still False"]


def test_text_that_no_encoding_takes_is_escaped() -> None:
    with running(answers=replace(ANSWERS, page=lambda _: "<p>\ud800ü")) as server:
        assert get(server, "/").body == b"<p>\\ud800\xc3\xbc"


def test_an_answer_that_fails_is_an_error_logged_once_until_it_recovers() -> None:
    works: list[bool] = []

    def status() -> bytes:
        if not works:
            raise LookupError
        return b"{}"

    log = io.StringIO()
    logs.configure("info", "json", log)
    with running(answers=replace(ANSWERS, status=status)) as server:
        assert [get(server, "/api/v1/status").status for _ in range(3)] == [500, 500, 500]
        assert get(server, "/metrics").status == 200
        works.append(True)
        assert [get(server, "/api/v1/status").status for _ in range(2)] == [200, 200]
    events = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [e["event"] for e in events] == ["answer.failed", "answer.recovered"]
    assert "LookupError" in events[0]["exception"]


# where it listens


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        ("{taken}", "http.listen: {taken}: Address already in use: stop what listens there"),
        ("192.0.2.1:9857", "set an address that this host has"),
        ("no-such-host.invalid:9857", "http.listen: no-such-host.invalid:9857: "),
    ],
)
def test_where_it_cannot_listen_it_says_so_in_a_line(
    server: Server, listen: str, said: str
) -> None:
    assert server.address is not None
    taken = "{}:{}".format(*server.address)
    settings = HttpSettings(listen=listen.format(taken=taken))
    with pytest.raises(PortInUse) as caught, running(settings):
        pass
    assert said.format(taken=taken) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_may_be_switched_off() -> None:
    with serving(HttpSettings(listen=""), ANSWERS) as server:
        assert server.address is None


def test_it_listens_on_ipv6_too() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("host: has no IPv6")
    with running(HttpSettings(listen="[::1]:0")) as server:
        assert server.address is not None
        assert server.address[0] == "::1"
        assert ask(server).status == 200


def test_a_stop_drops_all_clients_and_frees_the_port() -> None:
    before = threading.active_count()
    with serving(LOOPBACK, ANSWERS) as server, closing(connect(server)) as idle:
        assert ask(server).status == 200
        address = server.address
        assert address is not None
        server.stop()
        assert is_dropped(idle)
        assert server.address is None
        assert threading.active_count() == before
        with running(HttpSettings(listen="{}:{}".format(*address))) as again:
            assert ask(again).status == 200
