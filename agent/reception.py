"""What the libvirt hook is answered: from the last cycle's result, and nothing else.

One thread asks it (the doorkeeper's), and it waits for nobody: neither for libvirt, which waits for
the hook itself, nor for the thread that decides, which may wait for libvirt. Whoever asks at the
same time is answered in turn, and each place that is given is reserved before the next question.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from agent import admission, domainxml, incoming, logs
from agent.admission import Footing, Reservation
from agent.admit import ADMIT, REFUSE, REPLACE, UNKNOWN
from agent.errors import EmupoolError
from agent.question import Question

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.admission import Arrival
    from agent.config import Config
    from agent.cycle import CycleResult
    from agent.domainxml import Domain
    from agent.guestbook import Guestbook

Answer = tuple[str, str]
"""A word of `agent.admit`, and the text that goes with it."""

_STALE: Final = 60.0
"""Seconds for which a picture of the guests is good, where cycles are more frequent than that."""
_STATES: Final = ("admitted", "refused", "unknown")


class Reception:
    """Answers questions; one thread calls all of it, but for `counters`."""

    def __init__(
        self, config: Config, guestbook: Guestbook, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Know nothing yet but who was seen earlier; `clock` is the cycles'."""
        self._config = config
        self._guestbook = guestbook
        self._clock = clock
        self._result: CycleResult | None = None  # over this connection
        self._at = 0.0  # when that was told
        self._connected = False
        self._reserved: dict[str, Reservation] = {}  # by UUID, in the order of the questions
        self._expected: dict[str, float] = {}  # guests from elsewhere by UUID, and until when
        self._counts: Counter[str] = Counter()
        self._log = logs.get("admission")
        self._unsaved = False

    def counters(self) -> dict[str, float]:
        """Return how often what was answered; no metric has it. From any thread."""
        told = {
            f'emupool_admissions_total{{state="{state}"}}': self._counts[state] for state in _STATES
        }
        return {**told, "emupool_incoming_pins_replaced_total": self._counts["replaced"]}

    def reconfigure(self, config: Config) -> None:
        """Answer by another configuration from now on."""
        self._config = config

    def stand(self, *, connected: bool) -> None:
        """Take in whether libvirt is there: once it is not, who runs has to be looked up anew."""
        self._connected = connected
        if not connected:
            self._result = None

    def saw(self, result: CycleResult) -> None:
        """Take in what a cycle found, and who runs."""
        self._result, self._at = result, self._clock()
        running = {guest.uuid: guest.start for guest in result.guests if guest.active}
        try:
            self._guestbook.enter(running)
        except OSError as error:
            if not self._unsaved:
                self._log.warning("guestbook.unsaved", error=str(error))
            self._unsaved = True
        else:
            self._unsaved = False
        self._tidy()

    def answer(self, operation: str, text: str) -> Answer:
        """Answer one question about the guest that `text` defines."""
        trace: Exception | None = None
        try:
            word, told = self._answer(operation, text)
        except EmupoolError as error:
            word, told = UNKNOWN, str(error)
        except Exception as error:  # noqa: BLE001 - one guest's surprise must not end the thread
            word, told, trace = UNKNOWN, f"{type(error).__name__}: {error}", error
        if word == UNKNOWN:
            self._counts["unknown"] += 1
            self._log.warning("question.unanswered", operation=operation, why=told, exc_info=trace)
        return word, told

    def _answer(self, operation: str, text: str) -> Answer:
        if self._result is None:
            why = "looked at the guests yet" if self._connected else "got libvirt"
            return UNKNOWN, f"it has not {why}"
        age = self._clock() - self._at
        if age > max(_STALE, 3 * self._config.reconcile.interval):
            return UNKNOWN, f"it last looked at the guests {age:.0f} s ago: see its log"
        domain = domainxml.parse(text)
        self._tidy()
        footing = self._footing(self._result)
        if operation == "prepare":
            return self._admit(footing, domain)
        return self._receive(footing, domain, text)

    def _footing(self, result: CycleResult) -> Footing:
        question = Question(
            host=result.host,
            settings=self._config.pool,
            manage=self._config.guests.manage,
            guests=result.guests,
            memory=result.memory,
            now=self._clock(),
            partition=result.partition,
        )
        return Footing(question, self._config.guests)

    def _arrive(self, footing: Footing, domain: Domain) -> Arrival:
        ahead = [reservation.guest for reservation in self._reserved.values()]
        return admission.arrive(footing, domain, ahead, incoming=domain.uuid in self._expected)

    def _admit(self, footing: Footing, domain: Domain) -> Answer:
        arrival = self._arrive(footing, domain)
        refusal = admission.refusal(arrival)
        seen = domain.uuid in self._guestbook.starts
        label, uuid = arrival.guest.label, domain.uuid
        if refusal is None or seen:
            self._reserve(arrival)
            self._counts["admitted"] += 1
            cell = arrival.cell.id if arrival.cell is not None else None
            fits = refusal is None
            self._log.info("guest.admitted", guest=label, uuid=uuid, cell=cell, fits=fits)
            return ADMIT, ""
        dry_run = self._config.reconcile.dry_run
        self._counts["refused"] += 1
        self._log.warning("guest.refused", guest=label, uuid=uuid, why=refusal, dry_run=dry_run)
        if dry_run:
            self._reserve(arrival)
            return ADMIT, ""
        self._reserved.pop(uuid, None)
        return REFUSE, refusal

    def _reserve(self, arrival: Arrival) -> None:
        uuid = arrival.guest.uuid
        until = self._clock() + self._config.admission.reservation
        before = self._guestbook.starts.get(uuid)
        self._reserved.pop(uuid, None)
        self._reserved[uuid] = Reservation(arrival.guest, until, before)

    def _receive(self, footing: Footing, domain: Domain, text: str) -> Answer:
        """Give a guest from elsewhere the pins that it is to have here."""
        self._expected[domain.uuid] = self._clock() + self._config.admission.reservation
        arrival = self._arrive(footing, domain)
        pins = admission.repinned(arrival, iothreads=self._config.pool.iothreads)
        if not pins or self._config.reconcile.dry_run:
            return ADMIT, ""
        self._counts["replaced"] += len(pins)
        self._log.info(
            "guest.repinned",
            guest=arrival.guest.label,
            uuid=domain.uuid,
            pins={_named(thread): str(cpus) for thread, cpus in pins.items()},
        )
        return REPLACE, incoming.replaced(text, pins)

    def _tidy(self) -> None:
        """Forget who has appeared, and who did not in time."""
        now, starts = self._clock(), self._guestbook.starts
        self._reserved = {u: one for u, one in self._reserved.items() if one.holds(starts, now)}
        self._expected = {uuid: until for uuid, until in self._expected.items() if now < until}


def _named(thread: int | None) -> str:
    return "emulator" if thread is None else f"iothread {thread}"
