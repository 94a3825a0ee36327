"""Requests of any form: whole, unusual, broken."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.http.message import HEAD_BYTES, Refusal, Request, parse
from tests.web import HEALTH, ask, connect, read, rest, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.http import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


TOO_LONG: Final = b"x" * (HEAD_BYTES + 1)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /healthz\r\n\r\n", 400),
        (b"GET  /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        (b"GET healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET ?a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/one\r\nHost: a\r\n\r\n", 400),
        (b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\x00b\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"\x00" * 10, 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /healthz HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET /" + TOO_LONG, 414),
        (b"GET / HTTP/1.1\r\nHost: " + TOO_LONG, 431),
        (b"GET / HTTP/1.1\r\nHost: " + TOO_LONG + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_a_broken_request_is_told_what_is_wrong(server: Server, raw: bytes, status: int) -> None:
    answer = ask(server, raw)
    assert answer.status == status
    assert answer.body.endswith(b"\n")
    assert ask(server).status == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.0\n\n",
        b"\r\n\r\n" + HEALTH,
        b"GET /healthz HTTP/1.1\nHost: a\n\n",
        b"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: \xff\t\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 99 + b"\r\n",
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_an_unusual_request_is_served(server: Server, raw: bytes) -> None:
    usual, unusual = ask(server), ask(server, raw)
    assert (unusual.status, unusual.body) == (usual.status, usual.body)


def parsed(head: bytes) -> Request | Refusal:
    try:
        return parse(head)
    except Refusal as refusal:
        return refusal


@given(st.binary(max_size=200) | st.from_regex(rb"GET /[a-z]* HTTP/1\.[01]\r?\n.*", fullmatch=True))
def test_any_bytes_are_a_request_or_are_refused(head: bytes) -> None:
    answer = parsed(head)
    if isinstance(answer, Refusal):
        assert answer.status in {400, 431, 505}
    else:
        assert answer.path.startswith("/")
        assert answer.path.isprintable()


def test_a_request_may_come_byte_by_byte(server: Server) -> None:
    with closing(connect(server)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in HEALTH:
            sock.sendall(bytes([byte]))
            assert ask(server).status == 200  # so it is read before the next one comes
        assert read(rest(sock)).body == b"ok\n"


def test_of_pipelined_requests_the_first_is_answered(server: Server) -> None:
    answer = ask(server, HEALTH * 3)
    assert (answer.status, answer.body) == (200, b"ok\n")


def test_a_client_may_end_its_side_first(server: Server) -> None:
    with closing(connect(server)) as sock:
        sock.sendall(HEALTH)
        sock.shutdown(socket.SHUT_WR)
        assert read(rest(sock)).status == 200
