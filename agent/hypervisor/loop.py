"""libvirt's event loop.

The implementation must be registered before the first connection is opened, and is the whole
process's. `EventLoop` is run by the thread that decides, while it has nothing to do: with a thread
of its own for the loop each call of any other thread costs two wake-ups of that thread, since the
caller takes the socket out of the loop and gives it back (measured: half of an arrival's time).

A call does not watch over keepalive itself (measured on libvirt 9.0: one to a libvirtd that hangs
never returns): the loop's timers do. The deciding thread still makes a few, to close what it has;
so another thread stands by, and runs the loop once that one has been away from it for `ABSENCE`.

`start_event_loop` is that thread, for programs whose own loop is another one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Final

import libvirt

if TYPE_CHECKING:
    from collections.abc import Callable

ABSENCE: Final = 2.5
"""Seconds; few calls take so long. Keepalive takes several times that to notice anything."""


def _register() -> None:
    libvirt.virEventRegisterDefaultImpl()
    libvirt.registerErrorHandler(lambda *_: None, None)  # errors are raised: no echo on stderr


def start_event_loop() -> None:
    """Register libvirt's event loop and run it in a thread; once per process, before any link."""
    _register()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="libvirt-events", daemon=True).start()


class EventLoop:
    """Waits for libvirt's events, for `wake` and for signals; once per process, before any link."""

    def __init__(self, absence: float = ABSENCE) -> None:
        """Register the loop; it runs in `wait`, or in a thread after `absence` from there.

        To be made by the main thread.
        """
        self._absence = absence
        _register()
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # libvirt goes on polling after a signal, and Python runs handlers only when it returns.
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        libvirt.virEventAddHandle(
            self._reader, libvirt.VIR_EVENT_HANDLE_READABLE, self._drain, None
        )
        self._timer = libvirt.virEventAddTimeout(-1, lambda *_: None, None)
        self._running = threading.Lock()  # held by whoever runs the loop
        self._present = False
        self._waits = 0
        threading.Thread(target=self._stand_by, name="libvirt-standby", daemon=True).start()

    def wake(self) -> None:
        """End the current or the next `wait`; from any thread or signal handler."""
        with contextlib.suppress(BlockingIOError):  # full: it is awake then
            os.write(self._writer, b"w")

    def wait(self, until: Callable[[], bool], timeout: float | None) -> None:
        """Run callbacks until one makes `until` true, or for `timeout` seconds."""
        self._present = True
        if not self._running.acquire(blocking=False):
            self.wake()  # who stands by leaves the loop
            self._running.acquire()
        try:
            self._run(until, timeout)
        finally:
            self._running.release()
            self._waits += 1
            self._present = False

    def _run(self, until: Callable[[], bool], timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while not until():
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return
            # Rounded up: a wait that ends a little early would only come again.
            libvirt.virEventUpdateTimeout(self._timer, -1 if left is None else int(left * 1000) + 1)
            libvirt.virEventRunDefaultImpl()

    def _stand_by(self) -> None:
        while True:
            before = self._waits
            time.sleep(self._absence)
            if not self._present and self._waits == before:
                with self._running:
                    while not self._present:
                        libvirt.virEventRunDefaultImpl()

    def _drain(self, *_: object) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass
