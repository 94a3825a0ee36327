r"""What systemd is told: datagrams to the socket that it names in NOTIFY_SOCKET.

Nothing here raises or waits for long because of systemd: a message that cannot be sent is lost,
and the daemon goes on. States are sent with a short wait, since a lost READY fails the start;
status and watchdog come again with the next cycle and do not wait at all. The socket is opened for
each message (20 us), so that a systemd that started anew is found.

The watchdog is to see that the thread that decides still turns. So that thread alone feeds it,
after each turn, and `until_due` says when it has to turn for nothing else.
"""

from __future__ import annotations

import math
import os
import socket
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_WAIT: Final = 1.0
"""Seconds for which a state may wait for a systemd whose queue is full."""

_STATUS_LENGTH: Final = 200


class Silent:
    """What there is to tell when nobody listens: nothing."""

    watchdog_seconds: float | None = None
    """Seconds within which the watchdog has to be fed, None: there is none."""

    def until_due(self) -> float:
        """Return the seconds until the watchdog should be fed; infinite if there is none."""
        return math.inf

    def ready(self, status: str = "") -> None:
        """Start or reload is complete."""

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""

    def stopping(self) -> None:
        """The daemon ends."""

    def status(self, text: str) -> None:
        """Show `text` in `systemctl status`."""

    def watchdog(self) -> None:
        """Feed the watchdog, if there is one."""


class Systemd(Silent):
    """A systemd that listens at `address`, a path or `@` and an abstract name."""

    def __init__(
        self,
        address: str,
        watchdog_seconds: float | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Send nothing yet; `clock` is CLOCK_MONOTONIC in ns, as systemd wants it."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._clock = clock
        self._fed = clock()
        self.watchdog_seconds = watchdog_seconds

    def until_due(self) -> float:
        """Return the seconds until half of the watchdog's time is over, as sd_watchdog(3) wants."""
        if self.watchdog_seconds is None:
            return math.inf
        return self.watchdog_seconds / 2 - (self._clock() - self._fed) / 1e9

    def ready(self, status: str = "") -> None:
        """Send READY, and the status with it if there is one."""
        self._send("READY=1" + (f"\nSTATUS={_line(status)}" if status else ""), _WAIT)

    def reloading(self) -> None:
        """Send RELOADING with the time that notify-reload (systemd 253) requires."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={self._clock() // 1000}", _WAIT)

    def stopping(self) -> None:
        """Send STOPPING."""
        self._send("STOPPING=1", _WAIT)

    def status(self, text: str) -> None:
        """Send STATUS, as one line."""
        self._send(f"STATUS={_line(text)}", 0)

    def watchdog(self) -> None:
        """Send WATCHDOG if one waits for it."""
        if self.watchdog_seconds is not None:
            self._fed = self._clock()  # also if it is lost: there is time for another one
            self._send("WATCHDOG=1", 0)

    def _send(self, message: str, wait: float) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(wait)
                sock.connect(self._address)
                sock.send(message.encode("utf-8", "replace"))
        except OSError:
            return  # systemd's trouble, not ours


def connect(
    environ: Mapping[str, str], pid: int | None = None, clock: Callable[[], int] = time.monotonic_ns
) -> Silent:
    """Return who is to be told, by the environment; `pid` is our own by default."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or "\0" in address:
        return Silent()  # vsock: is for virtual machines
    return Systemd(address, _watchdog(environ, os.getpid() if pid is None else pid), clock)


def _watchdog(environ: Mapping[str, str], pid: int) -> float | None:
    """Return the seconds in WATCHDOG_USEC if they are meant for process `pid`."""
    usec = environ.get("WATCHDOG_USEC", "")
    meant_for = environ.get("WATCHDOG_PID", str(pid))
    if not usec.isascii() or not usec.isdigit() or len(usec) > _DIGITS or meant_for != str(pid):
        return None
    return int(usec) / 1e6 or None


_DIGITS: Final = 20
"""Of the largest 64-bit number, which systemd uses for `infinity`."""


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:_STATUS_LENGTH])
