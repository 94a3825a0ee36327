"""Counts the calls that a client makes of libvirtd, from outside: a relay between two sockets.

Each message of libvirt's protocol begins with its length and six numbers: program, version,
procedure, type, serial, status. What goes from client to libvirtd in the remote program, as a call,
is counted by its procedure; keepalive is a program of its own, and not counted. A relay costs
time, so nothing is timed through it.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from pathlib import Path

_HEADER: Final = struct.Struct(">7I")
_REMOTE: Final = 0x20008086
_CALL: Final = 0
_CHUNK: Final = 1 << 16
HIDDEN: Final = "NodeGetCPUMap"
# remote_protocol.x: the numbers never change. What is not named here is counted by number.
PROCEDURES: Final = {
    1: "ConnectOpen",
    2: "ConnectClose",
    7: "ConnectGetCapabilities",
    14: "DomainGetXMLDesc",
    22: "DomainLookupByID",
    23: "DomainLookupByName",
    24: "DomainLookupByUUID",
    37: "ConnectListDomains",
    51: "ConnectNumOfDomains",
    60: "ConnectSupportsFeature",
    66: "AuthList",
    150: "DomainIsActive",
    151: "DomainIsPersistent",
    212: "DomainGetState",
    273: "ConnectListAllDomains",
    279: "DomainPinEmulator",
    293: "NodeGetCPUMap",
    316: "ConnectDomainEventCallbackRegisterAny",
    360: "ConnectRegisterCloseCallback",
}


class Tap:
    """Clients that connect to `path` are relayed to `upstream`; used as a context."""

    def __init__(self, path: Path, upstream: Path) -> None:
        """Listen at `path`; libvirtd need not be there yet."""
        self._upstream = str(upstream)
        self._counted: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._stopped, self._stopper = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.uri = f"qemu+unix:///system?socket={path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopper.close()
        self._thread.join()
        for key in tuple(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def taken(self) -> Counter[str]:
        """Return the calls since the last time, by procedure."""
        with self._lock:
            counted, self._counted = self._counted, Counter()
        return counted

    def _serve(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._stopped, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._stopped:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.data, _Way):
                    self._relay(key.data)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._upstream)
        except OSError:  # libvirtd is away
            client.close()
            server.close()
            return
        self._selector.register(client, selectors.EVENT_READ, _Way(client, server, counts=True))
        self._selector.register(server, selectors.EVENT_READ, _Way(server, client, counts=False))

    def _relay(self, way: _Way) -> None:
        try:
            chunk = way.source.recv(_CHUNK)
            way.target.sendall(chunk)
        except OSError:
            chunk = b""
        if not chunk:
            for end in (way.source, way.target):
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(end)
                end.close()
            return
        with self._lock:
            self._counted.update(way.calls(chunk))


class _Way:
    """One direction of a relayed connection."""

    def __init__(self, source: socket.socket, target: socket.socket, *, counts: bool) -> None:
        self.source = source
        self.target = target
        self._counts = counts
        self._pending = b""

    def calls(self, chunk: bytes) -> list[str]:
        """Return the procedures of the calls that are now complete."""
        found: list[str] = []
        if not self._counts:
            return found
        self._pending += chunk
        while len(self._pending) >= _HEADER.size:
            length, program, _, procedure, kind, _, _ = _HEADER.unpack_from(self._pending)
            if len(self._pending) < length:
                break
            self._pending = self._pending[length:]
            if (program, kind) == (_REMOTE, _CALL):
                found.append(PROCEDURES.get(procedure, f"procedure {procedure}"))
        return found
