"""The socket of the hook: callers of all kinds, and what the daemon's other threads notice."""

from __future__ import annotations

import os
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from agent.admit import ADMIT, REFUSE, REPLACE, UNKNOWN, NoAnswer, ask
from agent.config import AdmissionSettings
from agent.domainxml import MAX_TEXT
from agent.doorkeeper import UNGUARDED, Doorkeeper, Limits
from agent.reception import Reception
from tests.definitions import domain_xml
from tests.desk import Desk, listens
from tests.guests import wait_until
from tests.logbook import Logbook
from tests.web import Clock, is_dropped, is_open

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.config import Config

PATIENCE: Final = 30.0
"""Seconds; no test comes near."""


class Door:
    """A desk behind a door."""

    def __init__(self, folder: Path, keeper: Doorkeeper, desk: Desk) -> None:
        self.path = folder / "door"
        self.keeper = keeper
        self.desk = desk

    def ask(self, text: str, operation: str = "prepare", patience: float = PATIENCE) -> str:
        """Return the word of the answer, as the hook gets it."""
        try:
            return ask(str(self.path), operation, text.encode(), patience)[0]
        except NoAnswer as error:
            return str(error)

    def newcomer(self, name: str) -> str:
        """Return the definition of a guest that is about to start."""
        return self.desk.node.fake.guests[self.desk.define(name)].xml()

    def call(self) -> socket.socket:
        """Call, and wait until that was noticed: whoever calls afterwards is answered."""
        caller = socket.socket(socket.AF_UNIX)
        caller.settimeout(PATIENCE)
        caller.connect(str(self.path))
        assert (
            self.ask("") == "the daemon cannot tell: domain XML: no element found: line 1, column 0"
        )
        return caller

    def configure(self, **admission: object) -> None:
        settings = replace(self.desk.config.admission, **admission)  # type: ignore[arg-type]
        self.desk.config = replace(self.desk.config, admission=settings)
        self.keeper.reconfigure(self.desk.config)


@contextmanager
def guarded(
    folder: Path,
    uid: int | None = None,
    limits: Limits | None = None,
    clock: Clock | None = None,
    reception: type[Reception] = Reception,
) -> Iterator[Door]:
    desk = Desk(folder, reception=reception)
    desk.config = replace(
        desk.config, admission=AdmissionSettings(enabled=True, socket=folder / "door")
    )
    keeper = Doorkeeper(
        desk.config,
        desk.reception,
        os.getuid() if uid is None else uid,
        limits,
        clock or Clock(),
    )
    keeper.start()
    try:
        wait_until(lambda: listens(folder / "door"), what="the door to open")
        yield Door(folder, keeper, desk)
    finally:
        keeper.stop()
        desk.node.stop()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with guarded(tmp_path) as made:
        yield made


def said(caller: socket.socket) -> bytes:
    """Return all that the daemon says until it hangs up."""
    got = b""
    with suppress(ConnectionResetError):
        while chunk := caller.recv(1 << 16):
            got += chunk
    return got


def test_root_is_answered(door: Door) -> None:
    assert [door.ask(door.newcomer(name)) for name in "abc"] == [ADMIT, ADMIT, REFUSE]
    foreign = door.desk.define("d", emulatorpin="99")
    assert door.ask(door.desk.node.fake.guests[foreign].xml(), "restore") == REPLACE
    assert door.keeper.counters() == door.desk.reception.counters()


def test_of_ten_at_once_one_gets_the_last_place(door: Door) -> None:
    door.desk.start(door.desk.define("first"))
    texts = [door.newcomer(str(number)) for number in range(10)]
    with ThreadPoolExecutor(len(texts)) as crowd:
        words = list(crowd.map(door.ask, texts))
    assert sorted(words) == [ADMIT] + [REFUSE] * 9


def test_nobody_else_is_told_anything(tmp_path: Path) -> None:
    with guarded(tmp_path, uid=os.getuid() + 1) as door, Logbook() as book:
        assert door.ask(door.newcomer("a")) not in {ADMIT, REFUSE}
        wait_until(lambda: book.told("caller.refused"), what="the refusal to be told")
        assert {event["uid"] for event in book.told("caller.refused")} == {os.getuid()}
        assert not any(door.keeper.counters().values())


def test_the_socket_is_its_owners_alone(door: Door) -> None:
    mode = door.path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


TEXT: Final = domain_xml().encode()


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        pytest.param(b"\n", b"no question", id="an empty line"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", b"no question", id="another protocol"),
        pytest.param(b"\x16\x03\x01\n", b"no question", id="bytes"),
        pytest.param(b"x" * 64, b"no question", id="a line without an end"),
        pytest.param(b"emupool\n", b"no question", id="one word"),
        pytest.param(b"emupool 2 prepare 9\n" + TEXT, b"version 1", id="a later version"),
        pytest.param(b"emupool \xff\n", b"version 1", id="a version that is none"),
        pytest.param(b"emupool 1 destroy 9\n" + TEXT, b"spoken here", id="another operation"),
        pytest.param(b"emupool 1 prepare\n" + TEXT, b"version 1", id="no length"),
        pytest.param(b"emupool 1 prepare -1\n" + TEXT, b"spoken here", id="a negative length"),
        pytest.param(b"emupool 1 prepare 1e3\n" + TEXT, b"spoken here", id="a length with letters"),
        pytest.param(b"emupool 1 prepare 4194305\n", b"4194304 bytes", id="a length too large"),
        pytest.param(b"emupool 1 prepare " + b"9" * 40 + b"\n", b"bytes", id="a huge length"),
        pytest.param(b"emupool 1 prepare 2\n\xff\xfe", b"UTF-8", id="no text"),
        pytest.param(b"emupool 1 prepare 0\n", b"no element found", id="no definition"),
        pytest.param(b"emupool 1 prepare 9\n<garbage>", b"domain XML", id="no XML"),
    ],
)
def test_what_is_no_question_is_told_so(door: Door, sent: bytes, why: bytes) -> None:
    with closing(door.call()) as caller:
        caller.sendall(sent)
        told = said(caller)
    assert told.startswith(f"{UNKNOWN} ".encode())
    assert why in told
    assert door.ask(door.newcomer("a")) == ADMIT


def test_half_a_question_is_none(door: Door) -> None:
    question = f"emupool 1 prepare {len(TEXT)}\n".encode() + TEXT
    for half in (b"", b"emu", question[:40], question[:-1]):
        with closing(door.call()) as caller:
            caller.sendall(half)
            caller.shutdown(socket.SHUT_WR)
            assert said(caller) == b""
    assert [door.ask(door.newcomer(name)) for name in "ab"] == [ADMIT] * 2


def test_a_slow_caller_is_answered_and_holds_up_nobody(door: Door) -> None:
    text = door.newcomer("a").encode()
    with closing(door.call()) as slow:
        for byte in f"emupool 1 prepare {len(text)}\n".encode():
            slow.sendall(bytes([byte]))
        for at in range(0, len(text), 100):
            assert door.ask("").startswith("the daemon cannot tell")
            slow.sendall(text[at : at + 100])
        assert said(slow) == b"admit 0\n"


def test_a_caller_has_to_come_to_an_end_in_time_however_busy_it_looks(tmp_path: Path) -> None:
    clock = Clock()
    with (
        guarded(tmp_path, limits=Limits(seconds=1.0), clock=clock) as door,
        closing(door.call()) as silent,
        closing(door.call()) as slow,
    ):
        slow.sendall(b"emupool 1 prep")
        clock.now = 0.9
        slow.sendall(b"are 100\n")
        assert door.ask(door.newcomer("a")) == ADMIT
        assert is_open(silent)
        assert is_open(slow)
        clock.now = 1.0
        assert door.ask(door.newcomer("b")) == ADMIT
        assert is_dropped(silent)
        assert is_dropped(slow)


def test_of_too_many_callers_the_oldest_go(tmp_path: Path) -> None:
    with guarded(tmp_path, limits=Limits(callers=4)) as door, ExitStack() as crowd:
        callers = [crowd.enter_context(closing(door.call())) for _ in range(10)]
        assert door.ask(door.newcomer("a")) == ADMIT
        assert [is_open(caller) for caller in callers] == [False] * 7 + [True] * 3


def test_the_longest_definition_is_read(door: Door) -> None:
    start, end = "<domain><!--", "--></domain>"
    text = start + "x" * (MAX_TEXT - len(start + end)) + end
    assert door.ask(text) == "the daemon cannot tell: domain XML: '' is not a UUID"
    assert door.ask(text + " ") != ADMIT
    assert door.ask(door.newcomer("a")) == ADMIT


def long_one(door: Door) -> bytes:
    """Return a definition with a pin from elsewhere, longer than what a socket holds."""
    beside = f"<x:y xmlns:x='u'>{'z' * 3_000_000}</x:y>"
    uuid = door.desk.define("long", emulatorpin="99", metadata=beside)
    return door.desk.node.fake.guests[uuid].xml().encode()


def test_a_long_answer_arrives_whole(door: Door) -> None:
    text = long_one(door)
    told = ask(str(door.path), "restore", text, PATIENCE)
    assert told == (REPLACE, text.replace(b"cpuset='99'", b"cpuset='0'"))


def test_a_caller_that_does_not_take_its_answer_holds_up_nobody(tmp_path: Path) -> None:
    clock = Clock()
    with (
        guarded(tmp_path, limits=Limits(seconds=1.0), clock=clock) as door,
        closing(door.call()) as stalled,
    ):
        text = long_one(door)
        stalled.sendall(f"emupool 1 restore {len(text)}\n".encode() + text)
        stalled.recv(1)
        assert door.ask(door.newcomer("b")) == ADMIT
        clock.now = 1.0
        assert door.ask(door.newcomer("c")) == ADMIT
        assert len(said(stalled)) < len(text)


# Where it stands.


def test_a_reload_opens_moves_and_closes_the_door(door: Door, tmp_path: Path) -> None:
    with Logbook() as book:
        other = tmp_path / "other"
        door.configure(socket=other)
        wait_until(lambda: listens(other), what="the door to move")
        assert not door.path.exists()
        door.path = other
        assert door.ask(door.newcomer("a")) == ADMIT
        door.configure(enabled=False)
        wait_until(lambda: not other.exists(), what="the door to close")
        assert door.ask(door.newcomer("b")) == f"{other}: No such file or directory"
        door.configure(enabled=True)
        wait_until(lambda: listens(other), what="the door to open")
        assert door.ask(door.newcomer("b")) == ADMIT
        told = [
            (event["event"], event["path"]) for event in book.told("door.opened", "door.closed")
        ]
    assert told == [
        ("door.closed", str(tmp_path / "door")),
        ("door.opened", str(other)),
        ("door.closed", str(other)),
        ("door.opened", str(other)),
    ]


def test_what_an_earlier_daemon_left_gives_way_and_a_file_of_others_does_not(
    door: Door, tmp_path: Path
) -> None:
    left, file = tmp_path / "left", tmp_path / "file"
    with closing(socket.socket(socket.AF_UNIX)) as earlier:
        earlier.bind(str(left))
    file.write_text("precious")
    door.configure(socket=left)
    wait_until(lambda: listens(left), what="the door to move")
    door.path = left
    assert door.ask(door.newcomer("a")) == ADMIT
    with Logbook() as book:
        door.configure(socket=file)
        wait_until(lambda: book.told("door.failed"), what="the failure to be told")
        for _ in range(3):
            door.keeper.stand(connected=True)  # any news: it tries again
            wait_until(door.keeper._news.empty, what="the news to be heard")
        file.unlink()
        door.keeper.stand(connected=True)
        wait_until(lambda: book.told("door.opened"), what="the door to open")
        (told,) = book.told("door.failed")
    assert told["error"] == "something else is there: remove it"
    door.path = file
    assert door.ask(door.newcomer("b")) == ADMIT


def test_a_stop_hangs_up_and_removes_the_socket(tmp_path: Path) -> None:
    with guarded(tmp_path) as door, closing(door.call()) as caller:
        door.keeper.stop()
        assert is_dropped(caller)
        assert not door.path.exists()
        assert "doorkeeper" not in {thread.name for thread in threading.enumerate()}


# Who waits for whom.


class Stuck(Reception):
    """Answers nothing until it is let go."""

    let_go = threading.Event()

    def answer(self, operation: str, text: str) -> tuple[str, str]:
        assert self.let_go.wait(PATIENCE)
        return super().answer(operation, text)


def test_the_daemon_does_not_wait_for_the_door_nor_the_hook_for_either(tmp_path: Path) -> None:
    with guarded(tmp_path, reception=Stuck) as door:
        Stuck.let_go.clear()
        text = door.newcomer("a")
        result = door.desk.node.cycle()
        assert door.ask(text, patience=0.05) == f"{door.path}: no answer within 0.05 s"
        for _ in range(10_000):  # more than the wakes that a socket holds
            door.keeper.saw(result)
        Stuck.let_go.set()
        assert door.ask(text) == ADMIT


def test_an_unguarded_door_takes_all_news(tmp_path: Path) -> None:
    with guarded(tmp_path) as door:
        config: Config = door.desk.config
        for keeper in (UNGUARDED, Doorkeeper(config, door.desk.reception)):  # never started
            keeper.saw(door.desk.node.cycle())
            keeper.stand(connected=True)
            keeper.reconfigure(config)
        assert UNGUARDED.counters() == {}
