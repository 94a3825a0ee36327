"""Connecting again and again: one link for each asking, patience that grows, and an end to it."""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from agent.connector import Connector, _patience, daemon_runs
from agent.errors import HypervisorAway, NotPermitted
from agent.events import LinkFailed, LinkUp
from agent.port import GuestEvent, LinkLost
from tests.fake import Call, Fake

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.events import Event


class Bench:
    """A connector to a fake, and what it put."""

    def __init__(self) -> None:
        self.fake = Fake()
        self.put: SimpleQueue[Event] = SimpleQueue()
        self.runs = True
        before = set(threading.enumerate())
        self.connector = Connector(self.fake, self.put.put, lambda: self.runs)
        self._before = before

    def thread(self) -> threading.Thread:
        (found,) = set(threading.enumerate()) - self._before
        return found

    def next(self) -> Event:
        return self.put.get(timeout=10)

    def failure(self) -> str:
        event = self.next()
        assert isinstance(event, LinkFailed)
        return event.why

    def link(self) -> LinkUp:
        """Return the next link, whatever failed before."""
        while not isinstance(event := self.next(), LinkUp):
            assert isinstance(event, LinkFailed)
        return event


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.connector.stop()


def test_a_link_is_made_and_hears(bench: Bench) -> None:
    bench.connector.start()
    made = bench.link()
    assert made.link.uuids() == ()
    bench.fake.create("a")
    assert isinstance(bench.next(), GuestEvent)
    bench.next()
    bench.fake.lose("why not")
    assert bench.next() == LinkLost("why not")
    assert bench.put.empty()


def test_nothing_is_done_before_it_is_asked_for(bench: Bench) -> None:
    assert bench.fake.log == []
    bench.connector.again()
    assert bench.fake.log == []
    assert bench.put.empty()


def test_each_asking_makes_one_link(bench: Bench) -> None:
    bench.connector.start()
    bench.link()
    bench.connector.again()
    second = bench.link()
    bench.connector.again()
    third = bench.link()
    assert second.link is not third.link
    assert bench.fake.count("link") == 3
    bench.connector.stop()
    bench.thread().join(10)
    assert bench.put.empty()


def test_links_that_do_not_live_call_for_patience_too(bench: Bench) -> None:
    bench.connector.start()
    bench.link()
    bench.connector.again()
    bench.link()  # at once: one may be bad luck
    began = time.monotonic()
    bench.connector.again()
    bench.link()
    assert time.monotonic() - began >= 0.4
    assert [_patience(hasty) for hasty in (0, 1, 2, 3, 4, 7, 8, 10**9)] == [
        *(0, 0, 0.4, 0.8, 1.6),
        *(12.8, 15, 15),
    ]


def test_asking_twice_while_it_connects_makes_no_third_link(bench: Bench) -> None:
    begun, go = threading.Event(), threading.Event()

    def slowly(call: Call) -> None:
        del call
        begun.set()
        assert go.wait(10)

    bench.fake.hook = slowly
    bench.connector.start()
    assert begun.wait(10)
    bench.connector.again()
    bench.connector.again()
    go.set()
    bench.link()
    bench.link()
    bench.connector.stop()
    bench.thread().join(10)
    assert bench.fake.count("link") == 2


@pytest.mark.parametrize(
    "error", [HypervisorAway("refused"), NotPermitted("polkit says no"), ZeroDivisionError("odd")]
)
def test_whatever_fails_is_told_and_tried_again(bench: Bench, error: Exception) -> None:
    def fail(call: Call) -> None:
        if call.name == "link" and bench.fake.count("link") <= 2:
            raise error

    bench.fake.hook = fail
    bench.connector.start()
    assert str(error) in bench.failure()
    assert str(error) in bench.failure()
    assert isinstance(bench.next(), LinkUp)


def test_patience_grows_and_stop_ends_it_at_once(bench: Bench) -> None:
    bench.fake.reachable = False
    bench.connector.start()
    at = []
    for _ in range(4):
        assert "Failed to connect" in bench.failure()
        at.append(time.monotonic())
    waits = [later - earlier for earlier, later in pairwise(at)]
    assert [wait >= least for wait, least in zip(waits, (0.09, 0.19, 0.39), strict=True)] == [
        True
    ] * 3
    thread = bench.thread()
    bench.connector.stop()
    thread.join(0.5)  # it would wait for 0.8 s and more
    assert not thread.is_alive()
    assert bench.put.empty()
    assert bench.fake.count("link") == 4


def test_patience_begins_anew_with_each_asking(bench: Bench) -> None:
    bench.fake.reachable = False
    bench.connector.start()
    for _ in range(3):
        bench.failure()
    bench.fake.reachable = True
    bench.link()
    bench.fake.fail("link", HypervisorAway("once"))
    began = time.monotonic()
    bench.connector.again()
    bench.link()
    assert time.monotonic() - began < 0.7  # the next of the first row would be 0.8 s


def test_stop_ends_a_connector_that_is_not_asked_for_anything(bench: Bench) -> None:
    bench.connector.start()
    bench.link()
    thread = bench.thread()
    bench.connector.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert bench.fake.count("link") == 1


def test_a_libvirt_that_an_operator_stopped_is_not_woken(bench: Bench) -> None:
    bench.runs = False
    bench.connector.start()
    assert "none is to be started" in bench.failure()
    assert "none is to be started" in bench.failure()
    assert bench.fake.log == []
    bench.runs = True
    bench.link()
    assert bench.fake.count("link") == 1


# --- is there a daemon to talk to ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "runs"),
    [
        ({}, False),
        ({"a.pid": "4711\n"}, True),
        ({"a.pid": "4712\n"}, False),
        ({"a.pid": ""}, False),
        ({"a.pid": "garbage"}, False),
        ({"a.pid": "4712\n", "b.pid": " 4711 "}, True),
        ({"b.pid": "4711"}, True),
    ],
    ids=str,
)
def test_a_pid_file_of_a_live_process_says_that_a_daemon_runs(
    tmp_path: Path, files: dict[str, str], *, runs: bool
) -> None:
    (tmp_path / "4711").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    pidfiles = [tmp_path / "a.pid", tmp_path / "b.pid"]
    assert daemon_runs(pidfiles, tmp_path) is runs


def test_a_pid_file_that_is_no_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.pid").mkdir()
    (tmp_path / "b.pid").write_text(str(os.getpid()))
    assert daemon_runs([tmp_path / "a.pid", tmp_path / "b.pid"])
    assert not daemon_runs([tmp_path / "a.pid"])
