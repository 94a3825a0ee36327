"""A link that does not wait for a guest that libvirt holds.

libvirt keeps a guest's lock while it starts or destroys it, or runs a hook for it; to read such a
guest, or to list all of them, is to wait for that, seconds perhaps. The thread that decides must
not: other guests depend on it. So each call is made by a reader, a thread of its own, and is given
up after `PATIENCE`: the guest then counts as held (GuestBusy; for a list, Held), and its reader is
left to wait. When the call returns in the end, what it brings is old, and only says "look again":
at that guest, and at those for whom no reader was left.

The first reader uses the link's own connection; another one is opened only while that one waits,
and there are `READERS` at most. A held guest is not asked for again until its call has returned.
"""

from __future__ import annotations

import contextlib
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agent.errors import EmupoolError, GuestBusy, Held, HypervisorAway, unforeseen
from agent.port import GuestEvent, ListReturned, Topic

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.port import Link, Reads

    _T = TypeVar("_T")

PATIENCE: Final = 0.050
"""Seconds after which a call is given up; most take a fifth of a millisecond."""
READERS: Final = 4
"""Calls under way at most, those that wait included."""
_LIST: Final = ""  # what a list is about, where others have a guest's UUID


class PatientLink:
    """A `Link` that raises GuestBusy or Held instead of waiting; used by one thread."""

    def __init__(
        self,
        link: Link,
        connect: Callable[[], Reads],
        hear: Callable[[GuestEvent | ListReturned], None],
        patience: float = PATIENCE,
    ) -> None:
        """Read through `link`, and through what `connect` returns while `link` is kept waiting.

        `hear` is told of calls that returned after all.
        """
        self._link = link
        self._connect = connect
        self._hear = hear
        self._patience = patience
        self._refused: SimpleQueue[str] = SimpleQueue()  # for want of a reader
        self._idle: list[_Reader] = []
        self._held: dict[str, tuple[_Reader, _Call]] = {}

    def uuids(self) -> tuple[str, ...]:
        """Return all defined guests, running or not; Held if libvirt keeps the list waiting."""
        return self._ask(_LIST, lambda reads: reads.uuids())

    def xml(self, uuid: str) -> str:
        """Return the live definition of a running guest, the persistent one of a stopped one."""
        return self._ask(uuid, lambda reads: reads.xml(uuid))

    def persistent_xml(self, uuid: str) -> str | None:
        """Return the persistent definition, None if it has none."""
        return self._ask(uuid, lambda reads: reads.persistent_xml(uuid))

    def occupied(self, uuid: str) -> bool:
        """Tell whether its state says that a job holds the guest."""
        return self._ask(uuid, lambda reads: reads.occupied(uuid))

    def close(self) -> None:
        """Stop hearing and end the connections; readers that wait end when they return."""
        for reader in self._idle:
            reader.todo.put(None)
        for reader, _ in self._held.values():
            reader.todo.put(None)
        self._idle, self._held = [], {}
        self._link.close()

    def _ask(self, about: str, question: Callable[[Reads], _T]) -> _T:
        self._take_back()
        if about in self._held:
            raise _refusal(about)
        if len(self._held) >= READERS:
            self._refused.put(about)
            raise _refusal(about)
        reader = self._idle.pop() if self._idle else self._another()
        call = _Call(about, question)
        reader.todo.put(call)
        try:
            answer = call.wait(self._patience)
        except Empty:
            self._held[about] = reader, call
            raise _refusal(about) from None
        self._idle.append(reader)
        if isinstance(answer, EmupoolError):
            raise answer
        return answer  # type: ignore[no-any-return]

    def _take_back(self) -> None:
        """Let readers whose call has returned be used again."""
        for about, (reader, call) in tuple(self._held.items()):
            if call.returned:
                del self._held[about]
                self._idle.append(reader)

    def _another(self) -> _Reader:
        reader = _Reader(None if self._held else self._link, self._connect, self._tell)
        threading.Thread(target=reader.run, name="reader", daemon=True).start()
        return reader

    def _tell(self, about: str) -> None:
        """Tell that a call has returned after all: a reader is free again for whom it lacked."""
        waiting = [about]
        with contextlib.suppress(Empty):
            while True:
                waiting.append(self._refused.get_nowait())
        for one in dict.fromkeys(waiting):
            self._hear(
                ListReturned() if one == _LIST else GuestEvent(one, Topic.READ, time.monotonic())
            )


class _Call:
    """One question to libvirt, and its answer: a value, or an error of our tree."""

    def __init__(self, about: str, question: Callable[[Reads], Any]) -> None:
        self.about = about
        self.question = question
        self.given_up = False
        self._answer: SimpleQueue[Any] = SimpleQueue()

    @property
    def returned(self) -> bool:
        return not self._answer.empty()

    def answer(self, value: Any) -> None:  # noqa: ANN401 - whatever was asked for
        self._answer.put(value)

    def wait(self, patience: float) -> Any:  # noqa: ANN401 - whatever was asked for
        """Return the answer; Empty if none comes in time, and then the reader is told so."""
        try:
            return self._answer.get(timeout=patience)
        except Empty:
            self.given_up = True
            return self._answer.get_nowait()  # it may have come before the reader could know


class _Reader:
    """A thread that makes calls, one at a time, over a connection of its own or the link's."""

    def __init__(
        self,
        reads: Reads | None,
        connect: Callable[[], Reads],
        returned: Callable[[str], None],
    ) -> None:
        self.todo: SimpleQueue[_Call | None] = SimpleQueue()
        self._reads = reads
        self._own = reads is None
        self._connect = connect
        self._returned = returned

    def run(self) -> None:
        while (call := self.todo.get()) is not None:
            call.answer(self._make(call))
            if call.given_up:
                self._returned(call.about)
        self._let_go()

    def _make(self, call: _Call) -> Any:  # noqa: ANN401 - whatever was asked for
        try:
            if self._reads is None:
                self._reads = self._connect()
            return call.question(self._reads)
        except HypervisorAway as error:
            self._let_go()
            return error
        except EmupoolError as error:
            return error
        except Exception as error:  # noqa: BLE001 - one guest's surprise must not end the reader
            return unforeseen(error)

    def _let_go(self) -> None:
        if self._own and self._reads is not None:
            self._reads.close()
            self._reads = None


def _refusal(about: str) -> EmupoolError:
    if about == _LIST:
        return Held("libvirt does not list its guests now: it holds one of them")
    return GuestBusy("libvirt holds it: it is started, destroyed, or has a hook running")
