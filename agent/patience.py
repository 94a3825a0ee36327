"""A link that does not wait for a guest that libvirt holds.

libvirt keeps a guest's lock while it starts or destroys it, or runs a hook for it; to read such a
guest, or to list all of them, is to wait for that, seconds perhaps. The thread that decides must
not: other guests depend on it. So each call is made by a reader, a thread of its own, and is given
up after `PATIENCE`: the guest then counts as held (GuestBusy; for a list, Held), and its reader is
left to wait. When the call returns in the end, what it brings is old, and only says "look again":
at that guest, and at those for whom no reader was left.

The first reader uses the link's own connection; another one is opened only while that one waits,
and there are `READERS` at most. A held guest is not asked for again until its call has returned.

Whoever starves would take every guest for held. A wait that ends late tells that this process is
not let run, nor was the reader then: it is given as much time once more.

To hand a question to a reader and to be woken by its answer takes longer than most answers do, so
definitions are read in rows. A row that comes upon a held guest is left to it; what remains of it
is another reader's.
"""

from __future__ import annotations

import contextlib
import threading
import time
from operator import methodcaller
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agent.errors import EmupoolError, GuestBusy, Held, HypervisorAway
from agent.port import GuestEvent, ListReturned, Topic, answered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from agent.port import Link, Reads

    _T = TypeVar("_T")
    _Question = Callable[[Reads], Any]

PATIENCE: Final = 0.050
"""Seconds after which a call is given up; most take a fifth of a millisecond."""
READERS: Final = 4
"""Calls under way at most, those that wait included."""
ROW: Final = 32
"""Definitions read in a row; at ten kilobytes each they are held for a moment."""
_PROMPT: Final = 0.010
"""Seconds by which a wait may end late; more is starving."""
_LONGEST: Final = 1.0
"""Seconds of starving that are made up for, in one wait."""
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

    def xmls(self, uuids: Sequence[str]) -> Iterator[tuple[str, str | EmupoolError]]:
        """Yield each guest with its definition, or why there is none; GuestBusy if it is held."""
        for first in range(0, len(uuids), ROW):
            row = uuids[first : first + ROW]
            answers = self._answers({uuid: methodcaller("xml", uuid) for uuid in row})
            for uuid in row:
                yield uuid, answers[uuid]

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
        answer = self._answers({about: question})[about]
        if isinstance(answer, EmupoolError):
            raise answer
        return answer  # type: ignore[no-any-return]

    def _answers(self, questions: Mapping[str, _Question]) -> dict[str, Any]:
        """Return what came of each question: a value, or an error of our tree."""
        self._take_back()
        answers: dict[str, Any] = {one: _refusal(one) for one in questions if one in self._held}
        while left := {about: q for about, q in questions.items() if about not in answers}:
            if len(self._held) >= READERS:
                for about in left:
                    self._refused.put(about)
                return answers | {about: _refusal(about) for about in left}
            reader = self._idle.pop() if self._idle else self._another()
            call = _Call(left)
            reader.todo.put(call)
            held = call.wait(self._patience)
            answers |= call.answers
            if held is None:
                self._idle.append(reader)
            else:
                self._held[held] = reader, call
                answers[held] = _refusal(held)
        return answers

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
    """Questions to libvirt that are asked in a row, and the answers: values, or our errors."""

    def __init__(self, questions: Mapping[str, _Question]) -> None:
        self.questions = questions
        self.answers: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._about, self._since = next(iter(questions)), time.monotonic()
        self._given_up: str | None = None  # the one that libvirt did not answer in time
        self._ended: SimpleQueue[None] = SimpleQueue()

    # the reader's part

    def goes_on(self, about: str) -> bool:
        """Say what is asked now; False if nobody waits for it any more."""
        with self._lock:
            if self._given_up is None:
                self._about, self._since = about, time.monotonic()
            return self._given_up is None

    def end(self) -> str | None:
        """Say that nothing is asked any more; return what was given up, None if nothing was."""
        with self._lock:
            self._ended.put(None)
            return self._given_up

    # the part of who waits

    @property
    def returned(self) -> bool:
        return not self._ended.empty()

    def wait(self, patience: float) -> str | None:
        """Return None once all is answered, or what has gone unanswered for `patience` seconds."""
        given, until = 0.0, 0.0  # seconds to make up for starving, and when they are over
        while self._given_up is None:
            asked = time.monotonic()
            left = max(0.0, max(self._since + patience, until) - asked)
            with contextlib.suppress(Empty):
                self._ended.get(timeout=left)
                return None
            now = time.monotonic()
            grace = made_up(now - asked - left, given)
            if grace:
                given, until = given + grace, now + grace
                continue
            with self._lock:
                if not self.returned and max(self._since + patience, until) <= now:
                    self._given_up = self._about
        return self._given_up


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
            for about, question in call.questions.items():
                if not call.goes_on(about):
                    break
                call.answers[about] = self._make(question)
            given_up = call.end()
            if given_up is not None:
                self._returned(given_up)
        self._let_go()

    def _make(self, question: _Question) -> Any:  # noqa: ANN401 - whatever was asked for
        answer = answered(lambda: question(self._connected()))
        if isinstance(answer, HypervisorAway):
            self._let_go()
        return answer

    def _connected(self) -> Reads:
        if self._reads is None:
            self._reads = self._connect()
        return self._reads

    def _let_go(self) -> None:
        if self._own and self._reads is not None:
            self._reads.close()
            self._reads = None


def made_up(late: float, given: float) -> float:
    """Return the seconds that are waited on after a wait that ended `late`; `given` were so far.

    However late: a host that was stopped for a minute is not waited for a minute more.
    """
    return min(late, _LONGEST - given) if late > _PROMPT else 0.0


def _refusal(about: str) -> EmupoolError:
    if about == _LIST:
        return Held("libvirt does not list its guests now: it holds one of them")
    return GuestBusy("libvirt holds it: it is started, destroyed, or has a hook running")
