"""`emupool status --watch`: one picture that changes, whatever becomes of the daemon."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
from rich.console import Console

from agent import client, draw, watching
from agent.errors import HypervisorAway
from tests.documents import SGR, cell, guest, pipe, plan, screen, status
from tests.web import ANSWERS, LOOPBACK, running

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.documents import Json, Output

ENTER: Final = "\x1b[?1049h"
LEAVE: Final = "\x1b[?1049l"
HIDDEN: Final = "\x1b[?25l"
SEEN: Final = "\x1b[?25h"
HOME: Final = "\x1b[H"


def daemon(name: str, **values: object) -> Json:
    """Return the status of a daemon with one guest of that name."""
    return status(plan(guest(0, name=name), cells=(cell(pool="2", pool_now="2"),)), **values)


def watched(
    output: Output, *looks: Json | str, during: Callable[[int], None] = lambda _: None
) -> None:
    """Watch a daemon that answers so, or is away for that reason, and then press Ctrl-C."""
    left = list(looks)
    now = [0.0]

    def fetch() -> Json:
        look = left.pop(0)
        if isinstance(look, str):
            raise HypervisorAway(look)
        return look

    def pause(seconds: float) -> None:
        assert seconds == watching.PERIOD
        now[0] += seconds
        during(len(looks) - len(left))
        if not left:
            raise KeyboardInterrupt

    watching.watch(output.console, fetch, pause, lambda: now[0])


# a terminal


def frames(output: Output) -> list[str]:
    """Return what each redrawing of the second screen wrote."""
    entered = output.raw.partition(ENTER + HOME)[2].partition(LEAVE)[0]
    return entered.split(HOME)[1:]


def test_a_terminal_shows_one_picture_in_place_and_leaves_the_last() -> None:
    output = screen(100)
    watched(output, daemon("first"), daemon("second"))
    before, _, after = output.raw.partition(LEAVE)
    assert before.count(ENTER) == 1
    assert [("first" in one, "second" in one) for one in frames(output)[-2:]] == [
        (True, False),
        (False, True),
    ]
    assert before.index(HIDDEN) < before.rindex(SEEN)
    assert "second" in after
    assert "first" not in after


def test_what_was_longer_before_is_wiped() -> None:
    output = screen(100)
    watched(output, daemon("guest"), daemon("guest"))
    for frame in frames(output)[-2:]:
        lines = frame.split("\n")
        assert all(line.endswith("\x1b[K") for line in lines[:-1])
        assert lines[-1].partition(SEEN)[0].endswith("\x1b[K\x1b[J")


def test_a_picture_that_is_higher_than_its_terminal_is_cut_and_says_so() -> None:
    crowd = [guest(number, state="left") for number in range(40)]
    output = screen(100)
    watched(output, status(plan(*crowd, cells=tuple(cell(number) for number in range(8)))))
    frame = frames(output)[-1].partition(SEEN)[0]
    assert frame.count("\n") == output.console.height - 1
    assert "lines more" in frame.split("\n")[-1]


def test_a_terminal_that_changes_its_size_is_followed() -> None:
    output = screen(100)
    sizes = {1: (60, 10), 2: (160, 40)}

    def during(look: int) -> None:
        if look in sizes:
            output.console.size = sizes[look]

    watched(output, daemon("a"), daemon("b"), daemon("c"), during=during)
    tops = [re.findall("╭.*╮", SGR.sub("", frame)) for frame in frames(output)]
    assert [len(top) for (top,) in tops] == [100, 60, 160]


def test_drawing_does_not_hold_a_console_to_the_size_that_it_had() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, _environ={})
    draw.status(console, daemon("a"))
    assert console._width is None


def test_a_daemon_that_goes_away_leaves_its_last_picture_with_the_reason() -> None:
    output = screen(100)
    watched(output, daemon("kept"), "connection refused\x1b[2J", daemon("back"))
    seen, away, back = frames(output)[-3:]
    assert "no answer" not in seen
    assert "no answer: connection refused\ufffd[2J" in away
    assert "what follows is of 1970-01-01" in away
    assert "kept" in away
    assert "no answer" not in back
    assert "back" in back


def test_a_daemon_that_is_not_there_yet_is_waited_for() -> None:
    output = screen(100)
    watched(output, "connection refused", daemon("there"))
    assert "what follows" not in frames(output)[0]
    assert "there" in frames(output)[-1]


def test_nothing_is_left_standing_of_a_daemon_that_never_came() -> None:
    output = screen(100)
    watched(output, "connection refused")
    assert output.raw.partition(LEAVE)[2] == ""


def test_an_error_that_is_none_of_ours_leaves_the_terminal_as_it_was() -> None:
    output = screen(100)

    def fetch() -> Json:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        watching.watch(output.console, fetch)
    assert output.raw.endswith(LEAVE)


# a pipe


def test_a_pipe_gets_a_picture_for_each_change_and_none_for_a_mere_cycle() -> None:
    output = pipe()
    later = {"at": 9.0, "event": "reconcile", "seconds": 0.1, "steps": 0, "errors": 0}
    first = daemon("first")
    watched(output, first, first | {"last_cycle": later, "counters": {"a": 1}}, daemon("second"))
    assert "\x1b" not in output.raw
    times = [line for line in output.lines if line.startswith("1970-01-01 ")]
    assert len(times) == 2
    assert output.text.count("emupool 1.2, qemu:///system connected") == 2


def test_a_pipe_is_told_once_that_nobody_answers_and_sees_who_comes_back() -> None:
    output = pipe()
    watched(output, daemon("same"), "refused", "refused", daemon("same"), daemon("same"))
    assert sum(line.endswith(" no answer: refused") for line in output.lines) == 1
    assert sum("same" in line for line in output.lines) == 2


# the real ones


def test_a_real_daemon_is_seen_again_after_a_restart() -> None:
    names = ["before"]
    answers = replace(ANSWERS, status=lambda: json.dumps(daemon(names[0])).encode())
    output = pipe()
    with running(answers=answers) as server:
        assert server.address is not None
        host, port = server.address[:2]
        servers = [server]

        def pause(_: float) -> None:
            match len(output.text.split("no answer")), "after" in output.text:
                case 1, _:
                    servers[0].stop()
                case _, True:
                    raise KeyboardInterrupt
                case _:
                    names[0] = "after"
                    servers[0] = again.__enter__()

        again = running(replace(LOOPBACK, listen=f"{host}:{port}"), answers)
        fetch = partial(client.fetch_status, f"http://{host}:{port}")
        try:
            watching.watch(output.console, fetch, pause)
        finally:
            servers[0].stop()
    assert [name for name in ("before", "no answer", "after") if name in output.text] == [
        "before",
        "no answer",
        "after",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_command_with_success_and_the_terminal_as_it_was(number: int) -> None:
    answers = replace(ANSWERS, status=lambda: json.dumps(daemon("vm")).encode())
    ours, theirs = pty.openpty()
    with running(answers=answers) as server:
        assert server.address is not None
        url = "http://{}:{}".format(*server.address[:2])
        # A shell that starts us in the background has us ignore SIGINT, and children inherit that.
        before = signal.signal(number, signal.default_int_handler)
        process = subprocess.Popen(
            [sys.executable, "-m", "agent", "status", "--watch", "--url", url],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
        )
        signal.signal(number, before)
        os.close(theirs)
        seen = b""
        while b"\x1b[J" not in seen:  # the whole first picture
            seen += os.read(ours, 65536)
        process.send_signal(number)
        seen += rest(ours)  # a terminal that nobody reads would hold the program up
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert seen.count(ENTER.encode()) == seen.count(LEAVE.encode()) == 1
    assert seen.rindex(SEEN.encode()) > seen.rindex(HIDDEN.encode())
    assert b"vm" in seen.partition(LEAVE.encode())[2]


def rest(terminal: int) -> bytes:
    """Return what a terminal still has whose program has ended, and close it."""
    seen = b""
    with suppress(OSError):  # EIO: nobody has its other end any more
        while chunk := os.read(terminal, 65536):
            seen += chunk
    os.close(terminal)
    return seen


def test_watching_is_no_document() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent", "status", "--watch", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "give one of them" in done.stderr


def test_what_answers_but_is_no_daemon_is_one_line() -> None:
    for body in (b"[]", b'{"schema":2}', b"3"):
        with running(answers=replace(ANSWERS, status=partial(bytes, body))) as server:
            assert server.address is not None
            with pytest.raises(HypervisorAway, match="no status of an emupool"):
                client.fetch_status("http://{}:{}".format(*server.address[:2]))
