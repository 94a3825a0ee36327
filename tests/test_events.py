"""The inbox: what becomes of many events, from any thread or signal handler; and what feeds it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from agent.events import (
    CpusChanged,
    CpusUnwatched,
    HostTold,
    Inbox,
    LinkFailed,
    LinkUp,
    PinReturned,
    Reload,
    Stop,
    Timer,
    Wake,
    follow_cpus,
    watch_cpus,
)
from agent.port import GuestEvent, LinkLost, Topic
from tests.fake import Clock, Fake

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.events import Event

UEVENT = Path("/sys/devices/system/cpu/cpu0/uevent")


def guest_event(uuid: str, topic: Topic = Topic.LIFECYCLE, at: float = 0.0) -> GuestEvent:
    return GuestEvent(uuid, topic, at)


def link_up() -> LinkUp:
    return LinkUp(Fake().link(lambda _: None))


def told(wake: Wake) -> set[str]:
    """Return the names of the fields that say something."""
    names = (
        *("guests", "link", "failed", "lost", "unwatched", "cpus", "told"),
        *("returned", "reload", "stop"),
    )
    return {name for name in names if getattr(wake, name)}


@pytest.mark.parametrize(
    ("event", "field", "label"),
    [
        (guest_event("a"), "guests", "lifecycle"),
        (guest_event("a", Topic.TUNABLE), "guests", "tunable"),
        (guest_event("a", Topic.METADATA), "guests", "metadata"),
        (guest_event("a", Topic.JOB), "guests", "job"),
        (link_up(), "link", "connection"),
        (LinkLost("gone"), "lost", "connection"),
        (LinkFailed("refused"), "failed", "connection"),
        (CpusChanged(), "cpus", "cpu"),
        (HostTold(()), "told", "connection"),
        (PinReturned(), "returned", "step"),
        (Reload(), "reload", "signal"),
        (Stop(), "stop", "signal"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_each_event_says_one_thing_and_is_counted(event: Event, field: str, label: str) -> None:
    inbox = Inbox()
    inbox.put(event)
    wake = inbox.wait(0)
    assert told(wake) == {field}
    assert wake.counts == {label: 1}


def test_a_burst_is_one_wake_with_each_guests_events_in_order() -> None:
    inbox = Inbox()
    events = [guest_event("ab"[n % 2], at=float(n)) for n in range(1000)]
    for event in events:
        inbox.put(event)
    inbox.put(Reload())
    assert inbox.depth() == 1001
    wake = inbox.wait(0)
    assert inbox.depth() == 0
    assert wake.guests == {"a": events[::2], "b": events[1::2]}
    assert told(wake) == {"guests", "reload"}
    assert wake.counts == {"lifecycle": 1000, "signal": 1}


@pytest.mark.parametrize("timeout", [0, 0.001, -5])
def test_without_events_a_wake_says_that_time_has_passed(timeout: float) -> None:
    wake = Inbox().wait(timeout)
    assert told(wake) == set()
    assert not wake.counts


def test_a_new_link_makes_up_for_an_earlier_loss_but_not_for_a_later_one() -> None:
    lost, found = LinkLost("gone"), link_up()
    wake = Wake()
    wake.add(lost)
    wake.add(found)
    assert (wake.link, wake.lost) == (found, None)
    wake.add(lost)
    assert (wake.link, wake.lost) == (found, lost)


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_wait_ends_with_the_first_event(timeout: float | None) -> None:
    inbox = Inbox()
    thread = threading.Thread(target=inbox.put, args=(CpusChanged(),))
    thread.start()
    assert inbox.wait(timeout).cpus
    thread.join()


def test_nothing_is_lost_between_threads_and_a_signal_handler() -> None:
    inbox = Inbox()
    fired: list[int] = []

    def handler(*_: object) -> None:
        fired.append(1)
        inbox.put(Reload())

    def put() -> None:
        for _ in range(2000):
            inbox.put(CpusChanged())

    before = signal.signal(signal.SIGALRM, handler)
    threads = [threading.Thread(target=put) for _ in range(3)]
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    puts = 0
    try:
        for thread in threads:
            thread.start()
        while len(fired) < 20:
            inbox.put(CpusChanged())  # where the handler interrupts it
            puts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for thread in threads:
        thread.join()
    counts = inbox.wait(0).counts
    assert (counts["cpu"], counts["signal"]) == (6000 + puts, len(fired))


def test_a_signal_ends_a_wait() -> None:
    inbox = Inbox()
    before = signal.signal(signal.SIGUSR1, lambda *_: inbox.put(Stop()))
    try:
        main = threading.main_thread().ident
        assert main is not None
        threading.Thread(target=signal.pthread_kill, args=(main, signal.SIGUSR1)).start()
        assert inbox.wait(10).stop
    finally:
        signal.signal(signal.SIGUSR1, before)


class Loop:
    """An event loop that has one event to deliver, when it is run."""

    def __init__(self) -> None:
        self.deliver: Callable[[], None] = lambda: None
        self.limits: list[float | None] = []
        self.woken = 0

    def wait(self, until: Callable[[], bool], timeout: float | None) -> None:
        self.limits.append(timeout)
        if not until():
            self.deliver()

    def wake(self) -> None:
        self.woken += 1


def test_a_loop_is_run_while_there_is_nothing_to_do() -> None:
    loop = Loop()
    inbox = Inbox(loop)
    assert told(inbox.wait(5)) == set()
    loop.deliver = lambda: inbox.put(guest_event("a"))
    assert told(inbox.wait(None)) == {"guests"}
    assert loop.woken == 1
    inbox.put(Stop())
    loop.deliver = lambda: pytest.fail("there is something to do")
    assert told(inbox.wait(-3)) == {"stop"}
    assert loop.limits == [5, None, 0]
    assert loop.woken == 2


def test_a_timer_is_due_at_once_and_then_after_its_interval() -> None:
    clock = Clock()
    timer = Timer(30, clock)
    assert timer.remaining() == 0
    clock.now += 5
    assert timer.remaining() == -5
    timer.done()
    assert timer.remaining() == 30
    clock.now += 10
    timer.interval = 60
    assert timer.remaining() == 20
    timer.done()
    assert timer.remaining() == 60
    timer.expire()
    assert timer.remaining() == 0


@pytest.mark.skipif(not os.access(UEVENT, os.W_OK), reason="host: may not write uevents")
def test_what_the_kernel_tells_of_its_cpus_is_put(tmp_path: Path) -> None:
    told_of: SimpleQueue[Event] = SimpleQueue()
    assert watch_cpus(told_of.put, udevd=tmp_path / "control") is None
    UEVENT.write_text("change")
    assert told_of.get(timeout=10) == CpusChanged()


def test_what_keeps_cpus_from_being_watched_is_told() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    watch_cpus(lambda _: None)  # what it needs is imported
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        why = watch_cpus(lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert why is not None
    assert "Too many open files" in why


def test_cpus_are_followed_until_that_fails_and_then_it_is_told() -> None:
    device = object()
    polled: list[object] = [
        device,
        None,
        OSError(errno.ENOBUFS, "No buffer space available"),
        device,
        OSError(errno.EBADF, "Bad file descriptor"),
    ]

    def poll() -> object:
        found = polled.pop(0)
        if isinstance(found, OSError):
            raise found
        return found

    told_of: list[Event] = []
    follow_cpus(poll, told_of.append)
    assert told_of == [
        *[CpusChanged()] * 3,
        CpusUnwatched("[Errno 9] Bad file descriptor"),
    ]
    assert polled == []
