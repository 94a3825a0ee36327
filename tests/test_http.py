"""The server on real sockets, with clients that behave and clients that do not."""

from __future__ import annotations

import io
import json
import resource
import socket
import ssl
import struct
import threading
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import logs
from agent.config import HttpSettings
from agent.http import Answers, CertificateRefused, Limits, PortInUse, Server, serving
from agent.http.listener import tls
from agent.http.message import HEAD_BYTES, Refusal, Request, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

# Two self-signed certificates, 2020 to 2120, made for these tests: CN=server for 127.0.0.1, and
# CN=client.
SERVER: Final = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgqTfnvaCU/ZZAXQ0V
M9Kip3QbMZW2TXtkC0egRP33MDmhRANCAATsFzoZ8IKM27uByTTcVW/Yniiiuxh2
GVAVjqOyrQhzGhUvaTN/gPPRkA8Yw1GjrGLLbdxXOpNXcs/NBlzE8rRG
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBUjCB+aADAgECAgEBMAoGCCqGSM49BAMCMBExDzANBgNVBAMMBnNlcnZlcjAg
Fw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowETEPMA0GA1UEAwwGc2Vy
dmVyMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE7Bc6GfCCjNu7gck03FVv2J4o
orsYdhlQFY6jsq0IcxoVL2kzf4Dz0ZAPGMNRo6xiy23cVzqTV3LPzQZcxPK0RqNA
MD4wDwYDVR0RBAgwBocEfwAAATAMBgNVHRMEBTADAQH/MB0GA1UdDgQWBBRYpDpQ
lyKNPr78X5gF9kt3IC/n/DAKBggqhkjOPQQDAgNIADBFAiB8ObZ0Fs0nqJ2U2esf
n1+VKCovwAE+/HsxA1QXUjTJmgIhAM5lqzmMMyhaa+AYjKRqPmgGjqNuRWR7i6Vu
O9jaE8Kk
-----END CERTIFICATE-----
"""
CLIENT: Final = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg7/OfEmpKrW1t1EKA
JSIk9pQMcklyc+UA+GOSh2dy4LChRANCAARrVl+p18e5nE/iSSlwq93nEWiaZoy1
IFQX4sEZYhdLbmXmAcgCaBsBkkRYjWipKnRgFoCPFVa3jSHMUV6Em/gS
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBQDCB6KADAgECAgECMAoGCCqGSM49BAMCMBExDzANBgNVBAMMBmNsaWVudDAg
Fw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowETEPMA0GA1UEAwwGY2xp
ZW50MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEa1ZfqdfHuZxP4kkpcKvd5xFo
mmaMtSBUF+LBGWIXS25l5gHIAmgbAZJEWI1oqSp0YBaAjxVWt40hzFFehJv4EqMv
MC0wDAYDVR0TBAUwAwEB/zAdBgNVHQ4EFgQUo8T6rbMwJBOrfRbaslh8Xlp6htYw
CgYIKoZIzj0EAwIDRwAwRAIgcZj41pRu4+1vLsYnHLuxoVn1sLZUnlqf8keeNRAH
COoCID1RikV61nj0uuX9B6m7c+EnpNbg0CjS6Xk7JvaspgS4
-----END CERTIFICATE-----
"""

# The key of CN=server, encrypted.
LOCKED: Final = """\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAiakmOGnIlrpgICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEHo4rjtFp6gez8/5dHBihyIEgZCO
sux6INgDaV5SnFrUJIhBEpnsF3MqzpNeNsgDrPfjE9ehY4jzAC87RMUB4pjUCbrY
2SLlROkuL1CORNO6EINuoeXOuv1s60tckiKtZUYngPqXLL64lZpwFJB5WiKXLTem
a+RGSh7L0o0shTAy5dUFTB//CZJCCBrJXvMlgiLIoN2xCdg8UGnE2uLRPuviais=
-----END ENCRYPTED PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBUjCB+aADAgECAgEBMAoGCCqGSM49BAMCMBExDzANBgNVBAMMBnNlcnZlcjAg
Fw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowETEPMA0GA1UEAwwGc2Vy
dmVyMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE7Bc6GfCCjNu7gck03FVv2J4o
orsYdhlQFY6jsq0IcxoVL2kzf4Dz0ZAPGMNRo6xiy23cVzqTV3LPzQZcxPK0RqNA
MD4wDwYDVR0RBAgwBocEfwAAATAMBgNVHRMEBTADAQH/MB0GA1UdDgQWBBRYpDpQ
lyKNPr78X5gF9kt3IC/n/DAKBggqhkjOPQQDAgNIADBFAiB8ObZ0Fs0nqJ2U2esf
n1+VKCovwAE+/HsxA1QXUjTJmgIhAM5lqzmMMyhaa+AYjKRqPmgGjqNuRWR7i6Vu
O9jaE8Kk
-----END CERTIFICATE-----
"""

HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
LOOPBACK: Final = HttpSettings(listen="127.0.0.1:0")


def _metrics(accept: str) -> tuple[str, bytes]:
    return "text/plain; version=0.0.4", f"emupool_up 1\n# {accept}\n".encode()


ANSWERS: Final = Answers(
    metrics=_metrics,
    ready=lambda: (True, "ready"),
    status=lambda: b'{"schema":1}',
    page=lambda: "<!doctype html><title>emupool</title>",
)


@dataclass
class Clock:
    """Stands still until it is set."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@contextmanager
def running(
    settings: HttpSettings = LOOPBACK,
    answers: Answers = ANSWERS,
    limits: Limits | None = None,
    clock: Clock | None = None,
) -> Iterator[Server]:
    server = (
        Server(settings, answers, limits, clock) if clock else Server(settings, answers, limits)
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


def connect(server: Server, context: ssl.SSLContext | None = None) -> socket.socket:
    assert server.address is not None
    sock = socket.create_connection(server.address, timeout=10)
    if context is None:
        return sock
    try:
        return context.wrap_socket(sock, server_hostname="127.0.0.1")
    except OSError:
        sock.close()
        raise


def rest(sock: socket.socket) -> bytes:
    """Return all that comes until the server ends its side; a reset ends it too."""
    got = bytearray()
    with suppress(ConnectionResetError):
        while chunk := sock.recv(65536):
            got += chunk
    return bytes(got)


def read(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert len(headers) == len(lines)
    return Answer(int(first.split()[1]), headers, body)


def ask(server: Server, raw: bytes = HEALTH, context: ssl.SSLContext | None = None) -> Answer:
    with closing(connect(server, context)) as sock:
        sock.sendall(raw)
        return read(rest(sock))


def get(server: Server, target: str, method: str = "GET", headers: str = "") -> Answer:
    return ask(server, f"{method} {target} HTTP/1.1\r\nHost: a\r\n{headers}\r\n".encode())


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


@pytest.mark.parametrize("target", ["/metrics/", "/metric", "/%6detrics", "//", "/api", "/.."])
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


def test_text_that_no_encoding_takes_is_escaped() -> None:
    with running(answers=replace(ANSWERS, page=lambda: "<p>\ud800ü")) as server:
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


# broken requests

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


# clients that cost: the clock stands still, so nothing here depends on speed


def is_dropped(sock: socket.socket) -> bool:
    """Tell whether the server has ended this connection; waits for that up to the timeout."""
    with suppress(ConnectionResetError):
        return sock.recv(1) == b""
    return True


def is_open(sock: socket.socket) -> bool:
    sock.settimeout(0)
    try:
        return bool(sock.recv(1))
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    finally:
        sock.settimeout(10)


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


BIG: Final = "x" * (32 << 20)  # more than the kernel takes off our hands


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
def test_clients_that_break_off_are_no_news(secure: HttpSettings) -> None:
    log = io.StringIO()
    logs.configure("debug", "json", log)
    for settings, context in ((LOOPBACK, None), (secure, client_of(secure))):
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


# TLS


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> HttpSettings:
    home = tmp_path_factory.mktemp("tls")
    (home / "server.pem").write_text(SERVER)
    (home / "client.pem").write_text(CLIENT)
    return replace(LOOPBACK, tls_cert=home / "server.pem")


def client_of(settings: HttpSettings) -> ssl.SSLContext:
    assert settings.tls_cert is not None
    return ssl.create_default_context(cafile=str(settings.tls_cert))


def test_a_scrape_works_over_tls(secure: HttpSettings) -> None:
    with running(secure) as server:
        context = client_of(secure)
        assert ask(server, context=context).body == b"ok\n"
        assert ask(server, HEALTH * 2, context).body == b"ok\n"
        with closing(connect(server, context)) as sock:
            assert isinstance(sock, ssl.SSLSocket)
            assert sock.version() in {"TLSv1.2", "TLSv1.3"}


def test_a_large_answer_arrives_whole_over_tls(secure: HttpSettings) -> None:
    with running(secure, replace(ANSWERS, page=lambda: BIG[: 4 << 20])) as server:
        answer = ask(server, HEALTH.replace(b"healthz", b""), client_of(secure))
        assert len(answer.body) == 4 << 20


def test_nothing_older_than_tls_1_2_is_spoken(secure: HttpSettings) -> None:
    context = tls(secure)
    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert tls(LOOPBACK) is None


def test_silent_and_broken_handshakes_delay_nobody(secure: HttpSettings) -> None:
    clock = Clock()
    with running(secure, clock=clock) as server, ExitStack() as bad:
        silent, half, plain = (bad.enter_context(closing(connect(server))) for _ in range(3))
        half.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        plain.sendall(HEALTH)
        assert ask(server, context=client_of(secure)).status == 200
        assert b"ok" not in rest(plain)
        assert is_open(silent)
        assert is_open(half)
        clock.now = 5.0
        assert ask(server, context=client_of(secure)).status == 200
        assert is_dropped(silent)
        assert is_dropped(half)


def test_a_client_needs_a_certificate_where_one_is_demanded(secure: HttpSettings) -> None:
    assert secure.tls_cert is not None
    ca = secure.tls_cert.with_name("client.pem")
    with running(replace(secure, client_ca=ca)) as server:
        known, stranger, nobody = (client_of(secure) for _ in range(3))
        known.load_cert_chain(ca)
        stranger.load_cert_chain(secure.tls_cert)
        for context in (stranger, nobody):
            with pytest.raises(ssl.SSLError):
                ask(server, context=context)
        assert ask(server, context=known).status == 200


@pytest.mark.parametrize(
    ("cert", "key", "ca", "said"),
    [
        ("none.pem", None, None, "No such file"),
        ("server.pem", "none.pem", None, "No such file"),
        ("server.pem", "client.pem", None, "KEY_VALUES_MISMATCH"),
        ("empty.pem", None, None, "http.tls_cert"),
        ("locked.pem", None, None, "no passphrase"),
        ("server.pem", None, "none.pem", "http.client_ca"),
        ("server.pem", None, "empty.pem", "http.client_ca"),
        (None, "server.pem", None, "http.tls_cert: not set"),
        (None, None, "client.pem", "http.tls_cert: not set"),
    ],
)
def test_an_unusable_certificate_is_refused_in_a_line(
    secure: HttpSettings, cert: str | None, key: str | None, ca: str | None, said: str
) -> None:
    assert secure.tls_cert is not None
    secure.tls_cert.with_name("empty.pem").write_text("")
    secure.tls_cert.with_name("locked.pem").write_text(LOCKED)
    home = secure.tls_cert.parent

    def path(name: str | None) -> Path | None:
        return home / name if name else None

    refused = replace(secure, tls_cert=path(cert), tls_key=path(key), client_ca=path(ca))
    with pytest.raises(CertificateRefused) as caught, running(refused):
        pass
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


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
