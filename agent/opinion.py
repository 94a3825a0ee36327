"""What libvirt takes the host for, asked after each connect, apart from all that is urgent.

libvirt's answer may take seconds: a daemon that was just started tries out each QEMU first. It
decides nothing here, sysfs does; but Nova places guests by it, so where the two see different
cells or cores the operator should know.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from agent.errors import EmupoolError
from agent.events import HostTold

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.events import Event
    from agent.topology import ForeignCell


class Opinion:
    """Asks in a thread of its own, which ends with the answer; the answer comes to `put`."""

    def __init__(
        self, ask: Callable[[], tuple[ForeignCell, ...]], put: Callable[[Event], None]
    ) -> None:
        """Ask by `ask`, which may wait as long as it likes."""
        self._ask = ask
        self._put = put
        self._thread: threading.Thread | None = None

    def seek(self) -> None:
        """Ask, unless an answer is awaited already."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="opinion", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        # Who may not ask, or is cut off, has no opinion; the deciding thread tells of such things.
        with contextlib.suppress(EmupoolError):
            self._put(HostTold(self._ask()))
