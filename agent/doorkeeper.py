"""The door for the libvirt hook: a Unix socket on which root may ask, and nobody else.

A thread of its own, with one selector loop: sockets do not block, a caller has as long as the hook
waits and some more, a question is as long as a definition may be, and when there are too many
callers the oldest goes. Who calls is told by the kernel (SO_PEERCRED) before a byte is read.

The thread that decides hands over what it knows and goes on: a reference in a queue, and a byte to
wake this thread. Nothing is shared but that queue.
"""

from __future__ import annotations

import errno
import selectors
import socket
import stat
import struct
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol

from agent import logs
from agent.admit import ASKED, UNKNOWN, VERSION
from agent.checkpoint import read_boot_id
from agent.domainxml import MAX_TEXT
from agent.guestbook import Guestbook
from agent.reception import Reception

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent.config import Config
    from agent.cycle import CycleResult

_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE
_CHUNK: Final = 1 << 16
_HEAD: Final = 64
"""Bytes of the longest line that begins a question."""
_BACKLOG: Final = 64
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Limits:
    """What callers may cost."""

    callers: int = 32
    seconds: float = 1.0  # from the call to the end of the answer


class Door(Protocol):
    """Whom the daemon tells what it knows; each call returns at once."""

    def saw(self, result: CycleResult) -> None:
        """Tell what a cycle found."""

    def stand(self, *, connected: bool) -> None:
        """Tell whether libvirt is there."""

    def reconfigure(self, config: Config) -> None:
        """Tell that the configuration is another one."""

    def counters(self) -> dict[str, float]:
        """Return how often what was answered."""


class _Unguarded:
    """A door at which nobody stands."""

    def saw(self, result: CycleResult) -> None:
        pass

    def stand(self, *, connected: bool) -> None:
        pass

    def reconfigure(self, config: Config) -> None:
        pass

    def counters(self) -> dict[str, float]:
        return {}


UNGUARDED: Final = _Unguarded()


class Unfit(ValueError):
    """What was sent is no question; `str` says why."""


class _Caller:
    """One question as far as it has come, and what is left of its answer."""

    __slots__ = ("answer", "deadline", "got", "length", "operation", "sock")

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline
        self.got = bytearray()
        self.operation = ""  # until the first line is there
        self.length = 0
        self.answer = memoryview(b"")


class Doorkeeper:
    """Answers the hook by a `Reception`, while `[admission]` has it enabled."""

    def __init__(
        self,
        config: Config,
        reception: Reception,
        uid: int = 0,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Open nothing yet; `uid` is whose questions are answered, `pause` waits for seconds."""
        self._config = config
        self._reception = reception
        self._uid = uid
        self._limits = limits or Limits()
        self._clock = clock
        self._pause = pause
        self._log = logs.get("admission")
        self._news: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._listener: socket.socket | None = None
        self._path: Path | None = None
        self._failed = ""
        self._callers: list[_Caller] = []  # from the oldest

    def start(self) -> None:
        """Start the thread, and listen if that is enabled."""
        self._selector = selectors.DefaultSelector()
        self._waker, wakee = socket.socketpair()
        self._waker.settimeout(0)
        self._selector.register(wakee, _READ)
        self._thread = threading.Thread(
            target=self._serve, args=(wakee,), name="doorkeeper", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Hang up on all callers, and remove the socket."""
        if self._thread is not None:
            self._waker.close()
            self._thread.join()
            self._thread = None

    # what the daemon tells, from the thread that decides

    def saw(self, result: CycleResult) -> None:
        """Hand over what a cycle found."""
        self._tell(partial(self._reception.saw, result))

    def stand(self, *, connected: bool) -> None:
        """Hand over whether libvirt is there."""
        self._tell(partial(self._reception.stand, connected=connected))

    def reconfigure(self, config: Config) -> None:
        """Hand over another configuration; what is said of the socket is followed, too."""
        self._tell(partial(self._reconfigure, config))

    def counters(self) -> dict[str, float]:
        """Return how often what was answered."""
        return self._reception.counters()

    def _tell(self, news: Callable[[], None]) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._news.put(news)
            with suppress(OSError):  # full: it is awake already
                self._waker.send(b"\0")

    def _reconfigure(self, config: Config) -> None:
        self._config = config
        self._reception.reconfigure(config)

    # the loop

    def _serve(self, wakee: socket.socket) -> None:
        with self._selector, wakee:
            self._be_where_told()
            while True:
                for key, mask in self._selector.select(self._patience()):
                    if key.fileobj is wakee:
                        if not wakee.recv(_CHUNK):
                            return self._close()
                        self._hear()
                    elif key.fileobj is self._listener:
                        self._accept(self._listener)
                    elif key.data in self._callers:  # its file may be another's by now
                        self._step(key.data, mask)
                self._expire()

    def _patience(self) -> float | None:
        return max(0.0, self._callers[0].deadline - self._clock()) if self._callers else None

    def _expire(self) -> None:
        now = self._clock()
        for caller in [c for c in self._callers if c.deadline <= now]:
            self._hang_up(caller)

    def _hear(self) -> None:
        with suppress(Empty):
            while True:
                self._news.get_nowait()()
        self._be_where_told()

    # the door

    def _be_where_told(self) -> None:
        """Listen where the configuration says, or nowhere; where that fails, try with all news."""
        settings = self._config.admission
        wanted = settings.socket if settings.enabled else None
        if wanted != self._path:
            self._close()
        if wanted is None or self._listener is not None:
            return
        self._path = wanted
        try:
            self._listener = _listen(wanted)
        except OSError as error:
            why = error.strerror or str(error)
            if why != self._failed:
                self._log.warning("door.failed", path=str(wanted), error=why)
            self._failed = why
            return
        self._selector.register(self._listener, _READ)
        self._log.info("door.opened", path=str(wanted))

    def _close(self) -> None:
        for caller in list(self._callers):
            self._hang_up(caller)
        if self._listener is not None and self._path is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            with suppress(OSError):
                self._path.unlink()
            self._log.info("door.closed", path=str(self._path))
        self._listener = self._path = None
        self._failed = ""

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            if not self._drop_one():
                self._pause(0.05)  # others have all files, and the listener stays ready
            return
        _, uid, _ = _CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if uid != self._uid:
            sock.close()
            self._log.warning("caller.refused", uid=uid)
            return
        if len(self._callers) >= self._limits.callers:
            self._drop_one()
        sock.settimeout(0)
        caller = _Caller(sock, self._clock() + self._limits.seconds)
        self._callers.append(caller)
        self._selector.register(sock, _READ, caller)

    def _drop_one(self) -> bool:
        """Hang up on the oldest caller; False if there is none."""
        if not self._callers:
            return False
        self._hang_up(self._callers[0])
        return True

    def _hang_up(self, caller: _Caller) -> None:
        self._callers.remove(caller)
        self._selector.unregister(caller.sock)
        caller.sock.close()

    # one caller

    def _step(self, caller: _Caller, mask: int) -> None:
        try:
            if mask & _READ and not self._read(caller):
                return
            with suppress(BlockingIOError):
                caller.answer = caller.answer[caller.sock.send(caller.answer) :]
        except OSError:  # whatever the caller did
            caller.answer = memoryview(b"")
        if caller.answer:
            self._selector.modify(caller.sock, _WRITE, caller)
        else:
            self._hang_up(caller)

    def _read(self, caller: _Caller) -> bool:
        """Take in what is there; True once that is a whole question, and has its answer."""
        chunk = caller.sock.recv(_CHUNK)
        if not chunk:
            raise ConnectionResetError("it hung up in the middle of a question")
        caller.got += chunk
        try:
            text = _question(caller)
        except Unfit as error:
            word, told = UNKNOWN, str(error)
        else:
            if text is None:
                return False
            word, told = self._reception.answer(caller.operation, text)
        data = told.encode("utf-8", "backslashreplace")
        caller.answer = memoryview(f"{word} {len(data)}\n".encode() + data)
        return True


@contextmanager
def guarding(config: Config) -> Iterator[Doorkeeper]:
    """Answer the hook as long as the block runs."""
    seen = config.state.path.with_name(f"{config.state.path.name}.seen")
    keeper = Doorkeeper(config, Reception(config, Guestbook(seen, read_boot_id())))
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.stop()


def _question(caller: _Caller) -> str | None:
    """Return the definition that was sent, None if more of it is to come; Unfit if it is none."""
    if not caller.operation:
        end = caller.got.find(b"\n", 0, _HEAD)
        if end < 0 and len(caller.got) < _HEAD:
            return None
        caller.operation, caller.length = _head(bytes(caller.got[: max(0, end)]))
        del caller.got[: end + 1]
    if len(caller.got) < caller.length:
        return None
    try:
        return caller.got[: caller.length].decode()
    except UnicodeDecodeError as error:
        raise Unfit(f"the definition is not UTF-8: {error.reason}") from None


def _head(line: bytes) -> tuple[str, int]:
    """Return the operation and the length of the definition; Unfit if it is no such line."""
    match line.split(b" "):
        case [b"emupool", version, operation, length] if version == VERSION.encode():
            name = operation.decode("ascii", "replace")
            if name in ASKED and length.isdigit() and int(length) <= MAX_TEXT:
                return name, int(length)
            raise Unfit(f"of {', '.join(sorted(ASKED))} is spoken here, in up to {MAX_TEXT} bytes")
        case [b"emupool", version, *_]:
            raise Unfit(f"it speaks version {VERSION}, and the hook {version[:9]!r}: install ours")
    raise Unfit("this is no question")


def _listen(path: Path) -> socket.socket:
    """Return a socket that listens at `path`, in place of one that an earlier daemon left."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "something else is there: remove it")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(bytes(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.settimeout(0)
    except OSError:
        listener.close()
        raise
    return listener
