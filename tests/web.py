"""The server as tests start it, and clients that they send to it."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from agent.config import HttpSettings
from agent.http import Answers, Limits, Server
from tests.certificates import CLIENT, SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
LOOPBACK: Final = HttpSettings(listen="127.0.0.1:0")
BIG: Final = "x" * (32 << 20)
"""A page that is more than the kernel takes off our hands."""


def _metrics(accept: str) -> tuple[str, bytes]:
    return "text/plain; version=0.0.4", f"emupool_up 1\n# {accept}\n".encode()


ANSWERS: Final = Answers(
    metrics=_metrics,
    ready=lambda: (True, "ready"),
    status=lambda: b'{"schema":1}',
    page=lambda _: "<!doctype html><title>emupool</title>",
)


@dataclass
class Clock:
    """Stands still until it is set, and counts who looks at it."""

    now: float = 0.0
    reads: int = 0

    def __call__(self) -> float:
        self.reads += 1
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
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[Server]:
    server = Server(settings, answers, limits, clock, pause)
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


def is_dropped(sock: socket.socket) -> bool:
    """Tell whether the server has ended this connection; waits for that up to the timeout."""
    with suppress(ConnectionResetError):
        return sock.recv(1) == b""
    return True


def is_open(sock: socket.socket) -> bool:
    sock.settimeout(0)
    try:
        return bool(sock.recv(1))
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except ConnectionResetError:
        return False
    finally:
        sock.settimeout(10)


def client_of(settings: HttpSettings) -> ssl.SSLContext:
    assert settings.tls_cert is not None
    return ssl.create_default_context(cafile=str(settings.tls_cert))


def secure(home: Path) -> HttpSettings:
    """Return settings with a certificate, written to `home` and `client.pem` beside it."""
    (home / "server.pem").write_text(SERVER)
    (home / "client.pem").write_text(CLIENT)
    return replace(LOOPBACK, tls_cert=home / "server.pem")
