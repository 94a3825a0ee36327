"""Connecting, again and again: a thread that makes links and hands them over.

Opening a connection may block for as long as libvirtd hangs, so the deciding thread never does
it. A link that was made belongs to the receiver, who also closes it: nobody tears a connection
down under another thread's call.

A libvirt that takes connections and then lets none live has no attempt that fails. So links that
were lost soon after they were made call for patience as well, but for the first of them.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import tenacity

from agent.errors import EmupoolError, HypervisorAway, unforeseen
from agent.events import LinkFailed, LinkUp
from agent.patience import PatientLink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.events import Event
    from agent.port import Hypervisor, Link

_FIRST: Final = 0.1
_LONGEST: Final = 15.0
_SOON: Final = 15.0
"""Seconds that a link has to live for the next one to be made at once."""
PIDFILES: Final = (Path("/run/virtqemud.pid"), Path("/run/libvirtd.pid"))


class Connector:
    """Makes a link whenever asked, with exponential back-off and jitter, for ever."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        put: Callable[[Event], None],
        running: Callable[[], bool] = lambda: True,
    ) -> None:
        """Report to `put`; try only while `running` says that there is a daemon to talk to."""
        self._hypervisor = hypervisor
        self._put = put
        self._running = running
        self._wanted = threading.Event()
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to connect."""
        self._wanted.set()
        threading.Thread(target=self._run, name="connector", daemon=True).start()

    def again(self) -> None:
        """Ask for another link; the last one is gone."""
        self._wanted.set()

    def stop(self) -> None:
        """Make no more links; does not wait for an attempt that hangs."""
        self._ended.set()
        self._wanted.set()

    def _run(self) -> None:
        made, hasty = -_SOON, 0
        while self._wanted.wait() and not self._ended.is_set():
            self._wanted.clear()
            hasty = hasty + 1 if time.monotonic() - made < _SOON else 0
            self._ended.wait(_patience(hasty))
            retrying = tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(),
                wait=tenacity.wait_exponential(multiplier=_FIRST, max=_LONGEST)
                + tenacity.wait_random(0, _FIRST),
                stop=tenacity.stop_when_event_set(self._ended),
                sleep=tenacity.sleep_using_event(self._ended),
                before_sleep=self._failed,
                reraise=True,
            )
            try:
                link = retrying(self._connect)
            except Exception:  # noqa: BLE001 - whatever it is, it was told; only `stop` ends this
                return
            made = time.monotonic()
            self._put(LinkUp(link))

    def _connect(self) -> Link:
        if self._ended.is_set():  # a patience that was cut short is no reason to try once more
            raise HypervisorAway("stopped")
        if not self._running():
            raise HypervisorAway("no libvirt daemon runs, and none is to be started")
        return PatientLink(self._hypervisor.link(self._put), self._hypervisor.roster, self._put)

    def _failed(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, Exception):
            known = error if isinstance(error, EmupoolError) else unforeseen(error)
            self._put(LinkFailed(str(known)))


def _patience(hasty: int) -> float:
    """Return the seconds to wait after so many links in a row were lost too soon."""
    return 0.0 if hasty < 2 else min(_LONGEST, _FIRST * 2 ** min(hasty, 10))  # noqa: PLR2004 - above


def daemon_runs(pidfiles: Iterable[Path] = PIDFILES, proc: Path = Path("/proc")) -> bool:
    """Tell whether a libvirt daemon is alive, by its pid file: asking its socket would start it."""
    for pidfile in pidfiles:
        try:
            pid = int(pidfile.read_text().strip())
        except (OSError, ValueError):
            continue
        if (proc / str(pid)).exists():
            return True
    return False
