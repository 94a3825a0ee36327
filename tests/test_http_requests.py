"""Requests of any form: whole, unusual, broken."""

from __future__ import annotations

import socket
from contextlib import closing
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Final, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.http.message import HEAD_BYTES, Refusal, Request, parse
from agent.http.server import _Connection, _head
from tests.web import HEALTH, ask, connect, read, rest, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.http import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


second = itemgetter(1)

TOO_LONG: Final = b"x" * (HEAD_BYTES + 1)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /healthz\r\n\r\n", 400),
        (b"GET  /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        (b"GET healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /health z HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /health\x00z HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /health\tz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /healthz#a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET ftp://a/healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http:///healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
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


NAMES: Final = st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", fullmatch=True)
PATHS: Final = st.from_regex(r"/[!\"$->@-~]*", fullmatch=True)  # no # and no ?
VALUES: Final = st.text(st.characters(min_codepoint=32, max_codepoint=126))
ENDS: Final = st.sampled_from(["\r\n", "\n"])


@st.composite
def requests(draw: st.DrawFn) -> tuple[Request, bytes]:
    """Return a request, and one of the ways to write it."""
    method, path, end = draw(NAMES), draw(PATHS), draw(ENDS)
    origin = draw(st.sampled_from(["", "http://node", "HTTPS://[::1]:9857"]))
    query = draw(st.sampled_from(["", "?", "?a=/../b"]))
    accepts = draw(st.lists(VALUES, max_size=2))
    others = [(name, draw(VALUES)) for name in draw(st.lists(NAMES, max_size=5))]
    own = {"host", "accept"}
    headers = [(n, v) for n, v in others if n.lower() not in own] + [("hOST", "a")]
    headers = draw(st.permutations(headers)) + [("Accept", value) for value in accepts]
    lines = [f"{method} {origin}{path}{query} HTTP/1.1", *(f"{n}: {v}" for n, v in headers)]
    accept = ",".join(value.lstrip(" ") for value in accepts)
    return Request(method, path, accept, query[1:]), end.join(lines).encode()


@settings(max_examples=300)
@given(requests())
def test_a_request_says_what_it_was_written_from(written: tuple[Request, bytes]) -> None:
    request, head = written
    assert parse(head) == request


WHAT_PARTS: Final = st.sampled_from([b" ", b"\0", b"\r", b"\n", b"\t", b"?", b"#", b":", b"\xff"])
EDITS: Final = st.tuples(
    st.floats(0, 0.3) | st.floats(0, 1, exclude_max=True),
    st.integers(0, 2),
    WHAT_PARTS | st.binary(max_size=3),
)


def edited(raw: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """Replace some bytes at places that are told as shares of the whole."""
    for share, count, new in edits:
        at = int(len(raw) * share)
        raw = raw[:at] + new + raw[at + count :]
    return raw


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.builds(edited, requests().map(second), st.lists(EDITS)))
def test_any_bytes_are_a_request_or_are_refused(head: bytes) -> None:
    answer = parsed(head)
    if isinstance(answer, Refusal):
        assert answer.status in {400, 431, 505}
        assert str(answer).isprintable()
    else:
        assert answer.method.isascii()
        assert answer.method.isprintable()
        assert answer.path.startswith("/")
        assert answer.path.isascii()
        assert answer.path.isprintable()
        assert not set(answer.path) & set(" ?#\0")


class Pieces:
    """A socket that a request comes from in these pieces, and then the end."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._left = [piece for piece in pieces if piece]

    def recv(self, most: int) -> bytes:
        piece = self._left.pop(0) if self._left else b""
        if len(piece) > most:
            self._left.insert(0, piece[most:])
        return piece[:most]


def received(pieces: list[bytes]) -> bytes | int:
    """Return the head that is received, the status it is refused with, or 0 if it never ends."""
    steps = _head(_Connection(cast("socket.socket", Pieces(pieces)), 0, 0.0))
    try:
        next(steps)
    except StopIteration as done:
        head: bytes = done.value
        return head.removesuffix(b"\r")  # which belongs to the empty line
    except Refusal as refusal:
        return refusal.status
    except ConnectionResetError:
        return 0
    raise AssertionError("it waits, although there is more")


@settings(max_examples=300)
@given(
    st.tuples(
        st.sampled_from([b"", b"\r\n", b"\n\r\n\r"]),
        requests().map(second),
        st.sampled_from([b"", b"\r\n", b"\r\n\r\n", b"\n\n", b"\n\r\nGET / HTTP/1.1\r\n\r\n"]),
    ),
    st.lists(EDITS, max_size=2),
    st.lists(st.floats(0, 1)),
)
def test_how_the_bytes_are_cut_makes_no_difference(
    parts: tuple[bytes, bytes, bytes], edits: list[tuple[float, int, bytes]], cuts: list[float]
) -> None:
    raw = edited(b"".join(parts), edits)
    places = [0, *sorted(int(len(raw) * cut) for cut in cuts), len(raw)]
    whole = received([raw])
    assert received([raw[a:b] for a, b in pairwise(places)]) == whole
    assert received([bytes([byte]) for byte in raw]) == whole


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
