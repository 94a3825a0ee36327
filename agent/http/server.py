"""One thread that serves all clients; the package says how it stays cheap."""

from __future__ import annotations

import errno
import re
import selectors
import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final, TypeVar

from agent import logs
from agent.http.listener import CertificateRefused, listen, tls
from agent.http.message import (
    HEAD_BYTES,
    HTML,
    JSON,
    TEXT,
    Refusal,
    Request,
    Response,
    encode,
    encoded,
    parse,
    readiness,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from agent.config import HttpSettings

_T = TypeVar("_T")

_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE

_CHUNK: Final = 65536
_DRAINED: Final = 64
"""Chunks read from a client that goes on sending."""

_PRINTABLE: Final = re.compile(rb"[!-~]|\Z")
"""How a request may begin; TLS begins with 0x16."""
_END: Final = re.compile(rb"\r?\n\r?\n")

_SESSIONS: Final = 256
"""TLS sessions that are kept for clients who may come again."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class Answers:
    """What is served. Called in the server's thread: quick, no lock that a cycle holds."""

    metrics: Callable[[str], tuple[str, bytes]]  # Accept header -> content type, body
    ready: Callable[[], tuple[bool, str]]  # whether, and what is missing
    status: Callable[[], bytes]  # JSON
    page: Callable[[bool], str]  # whether it is to stand still -> HTML


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may cost; times in seconds."""

    connections: int = 64
    request: float = 5.0  # from the connection to the end of its request, TLS included
    response: float = 10.0  # until the client has taken the answer
    linger: float = 1.0  # for what the client still sends
    held: int = 8 << 20  # bytes of answers that their clients have not taken whole


class _Connection:
    """One client, and what it is waited for."""

    __slots__ = ("deadline", "held", "mask", "number", "sock", "steps")

    def __init__(self, sock: socket.socket, number: int, deadline: float) -> None:
        self.sock = sock
        self.number = number  # in the order of arrival
        self.deadline = deadline
        self.mask = 0  # what the selector watches for; 0: not registered
        self.held = 0  # bytes of the answer, until the client has taken the last of them
        self.steps: Generator[int, None, None] | None = None

    @property
    def precedence(self) -> tuple[bool, int]:
        """Sort key of who has to go: those with no answer under way first, then the oldest."""
        return self.held > 0, self.number


class Server:
    """Serves `Answers` as `[http]` says; none if `listen` is empty."""

    def __init__(
        self,
        settings: HttpSettings,
        answers: Answers,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Open nothing yet; `clock` is in seconds, `pause` waits so many."""
        self._settings = settings
        self._answers = answers
        self._limits = limits or Limits()
        self._clock = clock
        self._pause = pause
        self._log = logs.get("http")
        self._failing: set[str] = set()
        self._tls: ssl.SSLContext | None = None
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._connections: set[_Connection] = set()
        self._arrivals = count()
        self._routes = self._table()

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port that are listened on, None if none."""
        if self._listener is None:
            return None
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Listen and serve. PortInUse or CertificateRefused if that cannot be."""
        where = self._settings.address
        if where is None:
            return
        self._tls = tls(self._settings)
        self._listener = listen(*where, shown=self._settings.listen)
        self._selector = selectors.DefaultSelector()
        self._waker, wakee = socket.socketpair()
        self._selector.register(self._listener, _READ)
        self._selector.register(wakee, _READ)
        self._thread = threading.Thread(
            target=self._serve, args=(self._listener, wakee), name="http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Drop all clients and listen no more."""
        if self._thread is None:
            return
        self._waker.close()
        self._thread.join()
        self._thread = self._listener = None

    # the loop

    def _serve(self, listener: socket.socket, wakee: socket.socket) -> None:
        with self._selector, listener, wakee:
            while True:
                for key, _ in self._selector.select(self._patience()):
                    if key.fileobj is wakee:
                        return self._close_all()
                    if key.fileobj is listener:
                        self._accept(listener)
                    elif key.data in self._connections:
                        self._step(key.data)
                self._expire()

    def _patience(self) -> float | None:
        """Return the seconds until the first deadline, None if there is none."""
        deadlines = [connection.deadline for connection in self._connections]
        return max(0.0, min(deadlines) - self._clock()) if deadlines else None

    def _expire(self) -> None:
        now = self._clock()
        for connection in [c for c in self._connections if c.deadline <= now]:
            self._close(connection)

    def _accept(self, listener: socket.socket) -> None:
        """Take one client; just one, since accept() wants a free file before it looks for it."""
        try:
            sock, _peer = listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED and not self._drop_one():
                self._pause(0.05)  # others have all files, and the listener stays ready
            return
        if len(self._connections) >= self._limits.connections:
            self._drop_one()
        deadline = self._clock() + self._limits.request
        connection = _Connection(sock, next(self._arrivals), deadline)
        connection.steps = self._talk(connection)
        self._connections.add(connection)
        self._step(connection)  # most requests are there already

    def _drop_one(self) -> bool:
        """Close the connection that matters least; False if there is none."""
        if not self._connections:
            return False
        self._close(min(self._connections, key=lambda connection: connection.precedence))
        return True

    def _step(self, connection: _Connection) -> None:
        """Resume a connection, and watch for what it waits for next."""
        try:
            mask = next(connection.steps) if connection.steps else 0
            self._watch(connection, mask)
        except (StopIteration, OSError):
            self._close(connection)  # OSError: whatever the client did; TLS errors are some too
        except Exception:  # noqa: BLE001 - one connection must not end the others
            self._log.exception("connection.failed")
            self._close(connection)

    def _watch(self, connection: _Connection, mask: int) -> None:
        if connection not in self._connections or mask == connection.mask:
            return
        if connection.mask:
            self._selector.modify(connection.sock, mask, connection)
        else:
            self._selector.register(connection.sock, mask, connection)
        connection.mask = mask

    def _close(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        if connection.mask:
            self._selector.unregister(connection.sock)
            connection.mask = 0
        connection.steps = None
        connection.held = 0
        connection.sock.close()

    def _close_all(self) -> None:
        for connection in list(self._connections):
            self._close(connection)

    # one connection

    def _talk(self, connection: _Connection) -> Generator[int, None, None]:
        connection.sock.settimeout(0)
        context = self._context()
        if context is not None:
            # Wrapping moves the descriptor to the new socket; where that fails because the client
            # is gone, CPython closes it on collecting the half-made socket, which is at once.
            wrapped = context.wrap_socket(
                connection.sock, server_side=True, do_handshake_on_connect=False
            )
            connection.sock = wrapped
            yield from _until(wrapped.do_handshake, _READ)
        yield from self._send(connection, (yield from self._reply(connection)))
        connection.deadline = self._clock() + self._limits.linger
        yield from _drain(connection.sock)

    def _context(self) -> ssl.SSLContext | None:
        """Return what the next client is wrapped with.

        OpenSSL keeps the session of each client of TLS 1.2 that takes no ticket, up to 20,480 at
        6 KiB, and Python has no switch for that: so a context that keeps many is made anew. Where
        the files are no longer fit for that, the old one stays.
        """
        if self._tls is not None and self._tls.session_stats()["number"] >= _SESSIONS:
            with suppress(CertificateRefused):
                self._tls = tls(self._settings)
        return self._tls

    def _reply(self, connection: _Connection) -> Generator[int, None, bytes]:
        head = b""
        try:
            head = yield from _head(connection)
            response = self._answer(parse(head))
        except Refusal as refusal:
            response = refused(refusal)
        return encode(response, time.time(), with_body=not head.startswith(b"HEAD "))

    def _send(self, connection: _Connection, data: bytes) -> Generator[int, None, None]:
        connection.deadline = self._clock() + self._limits.response
        connection.held = len(data)
        self._limit_held(connection)
        rest = memoryview(data)
        while rest:
            rest = rest[(yield from _until(partial(connection.sock.send, rest), _WRITE)) :]
        connection.held = 0

    def _limit_held(self, newest: _Connection) -> None:
        answering = sorted((c for c in self._connections if c.held), key=lambda c: c.number)
        excess = sum(c.held for c in answering) - self._limits.held
        for connection in answering:
            if excess <= 0:
                return
            if connection is not newest:
                excess -= connection.held
                self._close(connection)

    # answers

    def _table(self) -> dict[str, Callable[[Request], Response]]:
        answers = self._answers
        routes: dict[str, Callable[[Request], Response]] = {
            "/metrics": lambda request: Response(200, *answers.metrics(request.accept)),
            "/healthz": lambda _: Response(200, TEXT, b"ok\n"),
            "/readyz": lambda _: readiness(*answers.ready()),
            "/api/v1/status": lambda _: Response(200, JSON, answers.status()),
        }
        if self._settings.status_page:
            routes["/"] = lambda request: Response(
                200, HTML, encoded(answers.page(request.query == "still"))
            )
        return routes

    def _answer(self, request: Request) -> Response:
        route = self._routes.get(request.path)
        if route is None:
            return refused(Refusal(404, "there is " + ", ".join(sorted(self._routes))))
        if request.method not in {"GET", "HEAD"}:
            return Response(405, TEXT, b"this is for reading only\n", allow="GET, HEAD")
        try:
            response = route(request)
        except Exception:  # noqa: BLE001 - the next scrape may work
            if request.path not in self._failing:
                self._failing.add(request.path)
                self._log.exception("answer.failed", path=request.path)
            return refused(Refusal(500, "this answer could not be made; the log says why"))
        if request.path in self._failing:
            self._failing.discard(request.path)
            self._log.info("answer.recovered", path=request.path)
        return response


@contextmanager
def serving(settings: HttpSettings, answers: Answers) -> Iterator[Server]:
    """Serve as long as the block runs."""
    server = Server(settings, answers)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _until(call: Callable[[], _T], wanted: int) -> Generator[int, None, _T]:
    """Repeat `call` until it does not have to wait, yielding what it waits for."""
    while True:
        try:
            return call()
        except BlockingIOError:
            yield wanted
        except ssl.SSLWantReadError:
            yield _READ
        except ssl.SSLWantWriteError:
            yield _WRITE


def _head(connection: _Connection) -> Generator[int, None, bytes]:
    """Return request line and headers; Refusal if they are too long or no text."""
    got = bytearray()
    read = 0
    while True:
        chunk = yield from _until(lambda: connection.sock.recv(4096), _READ)
        if not chunk:
            raise ConnectionResetError(errno.ECONNRESET, "closed before the request was complete")
        searched = max(0, len(got) - 3)  # where the end may have begun
        read += len(chunk)
        if not got and read <= HEAD_BYTES:
            chunk = chunk.lstrip(b"\r\n")  # RFC 9112 2.2: empty lines may precede; not for ever
        got += chunk
        if not _PRINTABLE.match(got):
            raise Refusal(400, "this is not HTTP")
        end = _END.search(got, searched)
        if end is not None and end.start() <= HEAD_BYTES:
            return bytes(got[: end.start()])
        if len(got) > HEAD_BYTES:
            long = b"\n" in got
            raise Refusal(431 if long else 414, f"a request has at most {HEAD_BYTES} bytes")


def _drain(sock: socket.socket) -> Generator[int, None, None]:
    """End our side, and throw away what still comes until the client ends its own."""
    if isinstance(sock, ssl.SSLSocket):
        with suppress(OSError):  # says goodbye; the client's is not waited for
            sock.unwrap()
    sock.shutdown(socket.SHUT_WR)
    for _ in range(_DRAINED):
        if not (yield from _until(lambda: sock.recv(_CHUNK), _READ)):
            return
        yield _READ  # others first, however fast this one sends
