"""Waiting for libvirt's locks, so that the thread that decides need not.

libvirt keeps a guest's lock while it starts or destroys it (0.2 s) or runs a hook (seconds). Two
things are worth such a wait, and one thread with a connection of its own does both:

*The list.* Events name the guests to look at; a list tells whether one went untold. libvirt takes
the lock of each guest in turn for it, so it is asked for here and arrives as an event. A list and
the events run past each other: an id is on the list some time before its guest's start is
announced. `Doubt` says when a disagreement has lasted too long.

*Guests that are being started.* Their cgroup appears some 0.2 s before libvirt announces them.
Their definition can be read meanwhile, as soon as libvirt talks to QEMU, and nothing of it that
matters here changes until the start is announced: whoever would change it waits for the start to
end, and is told of by an event. So a pin can be decided before it can be set. The answer comes a
moment before the process runs QEMU's program (2 ms, seen), by which it is recognised: it is passed
on after a `PAUSE`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from agent.errors import GuestError
from agent.events import Counted, Starting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.events import Event
    from agent.port import Roster

PATIENCE: Final = 0.050
"""Seconds after which an answer is late; most take less than a millisecond."""
PAUSE: Final = 0.020
"""Seconds for which a definition that was read early is held back."""
GRACE: Final = 1.0
"""Seconds for which events and list may disagree; most starts take less."""
PACE: Final = 1.0
"""Seconds between two lists, however much happens."""
_GUEST: Final = re.compile(r"(?:machine-qemu\\x2d|qemu-)([0-9]{1,9})(?:-|\\x2d)")


class Nursery(Protocol):
    """Tells of directories that appear; `agent.inotify.Watch` does."""

    def fileno(self) -> int:
        """Return what to poll."""

    def watch(self, directories: Iterable[str]) -> None:
        """Tell also of those that appear in these from now on."""

    def names(self) -> Iterable[str]:
        """Return the names of directories that appeared since; never waits."""


class Doubt:
    """The ids on which what is known and the lists disagree, and since when; and so, when to list.

    After what happened a list is wanted at once, or `PACE` after the last one: storms need few.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._since: dict[int, float] = {}
        self._told: frozenset[int] = frozenset()
        self._asked = -math.inf
        self._wanted = math.inf

    @property
    def due(self) -> float | None:
        """When another list is wanted."""
        late = min(self._since.values(), default=math.inf) + GRACE
        due = min(self._wanted, max(late, self._asked + GRACE))
        return due if due < math.inf else None

    def happened(self, now: float) -> None:
        """Take in that something has, of which a list may tell more."""
        self._wanted = max(now, self._asked + PACE)

    def weigh(self, known: frozenset[int], counted: frozenset[int], now: float) -> bool:
        """Compare a list with what is known; True, once, if they have disagreed for too long.

        A guest that cannot be read stays a disagreement, and is no reason to look for ever.
        """
        odd = known ^ counted
        since = {one: self._since.get(one, now) for one in odd - self._told}
        late = frozenset(one for one, first in since.items() if now - first >= GRACE)
        self._told = self._told & odd | late
        self._since = {one: first for one, first in since.items() if one not in late}
        return bool(late)

    def wants_list(self, now: float) -> bool:
        """Tell, once, that it is time for another list."""
        if self.due is None or now < self.due:
            return False
        self._asked, self._wanted = now, math.inf
        return True

    def settle(self) -> None:
        """Begin anew: all was looked at."""
        self._since, self._wanted = {}, math.inf


class Lookout:
    """Lists when asked to, and reads guests whose cgroups appear; answers come to `put`."""

    def __init__(
        self,
        connect: Callable[[], Roster],
        put: Callable[[Event], None],
        nursery: Nursery | None = None,
        pause: float = PAUSE,
    ) -> None:
        """Ask over what `connect` returns; without a `nursery` no guest is read early."""
        self._connect = connect
        self._put = put
        self._nursery = nursery
        self._pause = pause
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._ended = False
        self._stale = False
        self._roster: Roster | None = None
        self._last = -1  # the id that was read last: a guest has a cgroup in each tree
        self._asking_since: float | None = None
        self._early: deque[tuple[float, int, Starting]] = deque()  # due when, of which id
        self.known: frozenset[int] = frozenset()
        """Ids of guests that need not be read; whoever decides sets it."""

    def start(self) -> None:
        """Begin to serve."""
        threading.Thread(target=self._run, name="lookout", daemon=True).start()

    def ask(self) -> None:
        """Ask for a list; several requests before it is taken are one."""
        with contextlib.suppress(BlockingIOError):  # full: it is asked for already
            os.write(self._writer, b"?")

    def watch(self, directories: Iterable[str]) -> None:
        """Look for cgroups of guests that appear in these."""
        if self._nursery is not None:
            self._nursery.watch(directories)

    def renew(self) -> None:
        """Connect anew for the next question."""
        self._stale = True

    def waits(self) -> bool:
        """Tell whether libvirt keeps a question waiting: it holds some guest."""
        since = self._asking_since
        return since is not None and time.monotonic() - since > PATIENCE

    def stop(self) -> None:
        """Serve no more; does not wait for a call that hangs."""
        self._ended = True
        self.ask()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        if self._nursery is not None:
            poll.register(self._nursery.fileno(), select.POLLIN)
        while not self._ended:
            ready = {fd for fd, _ in poll.poll(self._until_due())}
            if self._nursery is not None and self._nursery.fileno() in ready:
                for name in self._nursery.names():
                    self._appeared(name)
            self._pass_on()
            if self._reader in ready and os.read(self._reader, 4096) and not self._ended:
                self._ask(lambda roster: self._put(Counted(roster.active_ids())))
        self._let_go()

    def _until_due(self) -> float | None:
        """Return the milliseconds until a definition is to be passed on, None without one."""
        if not self._early:
            return None
        return max(0.0, self._early[0][0] - time.monotonic()) * 1000

    def _pass_on(self) -> None:
        while self._early and self._early[0][0] <= time.monotonic():
            _, number, starting = self._early.popleft()
            if number not in self.known:
                self._put(starting)

    def _appeared(self, directory: str) -> None:
        match = _GUEST.match(directory)
        number = int(match[1]) if match else self._last
        if number != self._last and number not in self.known:
            self._last = number
            self._ask(lambda roster: self._read(roster, number))

    def _read(self, roster: Roster, number: int) -> None:
        starting = Starting(*roster.definition(number))
        self._early.append((time.monotonic() + self._pause, number, starting))

    def _ask(self, question: Callable[[Roster], None]) -> None:
        if self._stale:
            self._stale = False  # before the connection is made: a later wish is not lost
            self._let_go()
        try:
            self._roster = self._roster or self._connect()
            self._asking_since = time.monotonic()
            question(self._roster)
        except GuestError:  # it did not start after all
            return
        except Exception:  # noqa: BLE001 - whoever decides learns of it by its own connection
            self._let_go()
        finally:
            self._asking_since = None

    def _let_go(self) -> None:
        if self._roster is not None:
            self._roster.close()
        self._roster, self._last = None, -1
