"""Lines that a log's reader can trust, whatever guests are called."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import unicodedata
from datetime import UTC, datetime
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import logs
from agent.cpuset import CpuSet
from agent.transition import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def _after() -> Iterator[None]:
    yield
    logs.configure("warning", "auto", sys.__stderr__ or io.StringIO())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(write: Callable[[logs.Logger], None], form: str = "json", level: str = "debug") -> str:
    stream = io.StringIO()
    logs.configure(level, form, stream)
    write(logs.get("pinner"))
    return stream.getvalue()


def event(**fields: object) -> dict[str, Any]:
    """Return what a reader of JSON gets of one event with these fields."""
    text = written(lambda log: log.info("pin.applied", **fields))
    assert text.count("\n") == 1
    assert text.isascii()
    read: dict[str, Any] = json.loads(text)
    return read


def harmless(text: str) -> bool:
    return not any(
        unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"}
        or unicodedata.bidirectional(c) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "PDI"}
        for c in text
    )


def test_an_event_is_a_line_of_json_with_its_time_in_utc() -> None:
    before = datetime.now(UTC)
    read = event(guest="web-1", cpus=CpuSet.parse("2-3"), reason=Reason.ARRIVE, seconds=0.25)
    assert before <= datetime.fromisoformat(read.pop("timestamp")) <= datetime.now(UTC)
    assert list(read.items()) == [
        ("level", "info"),
        ("event", "pin.applied"),
        ("logger", "pinner"),
        ("guest", "web-1"),
        ("cpus", "2-3"),
        ("reason", "arrive"),
        ("seconds", 0.25),
    ]


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (1.5, 1.5),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (Fraction(5, 2), "5/2"),
        (b"\xff\n", "b'\\xff\\n'"),
        ((1, "a", None), [1, "a", None]),
        ({0: {"a": [1]}}, {"0": {"a": [1]}}),
        (list(range(25)), [*range(20), "and 5 more"]),
        ([[[[1]]]], [[["[1]"]]]),
        ("Grüße, 世界 🙂", "Grüße, 世界 🙂"),
        ("a\nb\r\x00\x1b[31m\x7f\x9b2J", "a\\nb\\r\\x00\\x1b[31m\\x7f\\x9b2J"),
        ("a\u2028b\u2029\x85", "a\\u2028b\\u2029\\x85"),
        ("\u202etxt.exe\u2066", "\\u202etxt.exe\\u2066"),
        ("\ud800", "\\ud800"),
    ],
    ids=ascii,
)
def test_a_field_is_what_json_holds_of_it_and_harmless(value: object, read: object) -> None:
    assert event(value=value)["value"] == read


@given(st.text() | st.recursive(st.text(), lambda inner: st.lists(inner) | st.tuples(inner)))
def test_no_text_breaks_a_line_or_reaches_a_terminal(hostile: object) -> None:
    def texts(value: object) -> list[str]:
        return [value] if isinstance(value, str) else [t for v in list(value) for t in texts(v)]  # type: ignore[call-overload]

    assert all(map(harmless, texts(event(value=hostile)["value"])))
    console = written(lambda log: log.info("pin.applied", value=hostile), "console")
    assert console.count("\n") == 1
    assert harmless(console[:-1])


def test_texts_are_cut() -> None:
    assert event(value="x" * 500)["value"] == "x" * 500
    assert event(value="x" * 1_000_000)["value"] == "x" * 499 + "…"
    assert len(event(value=10**4999)["value"]) == 500
    assert len(event(value={"x" * 1000: 1})["value"].popitem()[0]) == 500


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    "value",
    [
        ["🙂" * 10**6] * 100,
        {f"{n}🙂" + "\x9b" * 10**6: "🙂" * 10**6 for n in range(100)},
        [[["🙂" * 500] * 20] * 20] * 4,
        {n: {n: dict.fromkeys(range(20), "é" * 500) for n in range(20)} for n in range(20)},
    ],
    ids=["texts", "a map", "nested lists", "nested maps"],
)
def test_no_line_is_longer_than_journald_takes(form: str, value: object) -> None:
    fields = {f"field{n}": value for n in range(3)}
    text = written(lambda log: log.info("pin.applied", **fields), form)
    assert text.count("\n") == 1
    assert len(text.encode()) <= logs.LINE + 1 < 48 * 1024
    assert "field2" in text
    assert "pin.applied" in text


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_traceback_is_longer_than_journald_takes(form: str) -> None:
    text = written(failing("🙂" * 10**6 + ("\n" + "🙂" * 400) * 200), form)
    assert len(text.encode()) <= logs.LINE + 1
    assert "ValueError" in text


def test_a_line_that_fits_is_cut_no_harder_than_it_must() -> None:
    read = event(texts=["é" * 500] * 5, long="x" * 501)
    assert read["texts"] == ["é" * 500] * 5
    assert read["long"] == "x" * 499 + "…"


class Nasty:
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_a_value_that_cannot_be_written_is_no_error() -> None:
    assert event(value=Nasty())["value"] == "<Nasty: RuntimeError>"


def failing(message: str) -> Callable[[logs.Logger], None]:
    def refuse() -> None:
        raise ValueError(message)

    def fail(log: logs.Logger) -> None:
        try:
            refuse()
        except ValueError:
            log.exception("cycle.failed", cell=0)

    return fail


def test_an_exception_is_a_field_of_the_same_line() -> None:
    text = written(failing("guest \x1b[2J\r" + "x" * 9999 + "\nforged" * 50_000))
    assert text.count("\n") == 1
    assert len(text) < 60_000
    read = json.loads(text)
    assert (read["level"], read["cell"]) == ("error", 0)
    lines = read["exception"].split("\n")
    assert lines[0] == "Traceback (most recent call last):"
    assert any("raise ValueError(message)" in line for line in lines)
    assert any(line.startswith("ValueError: guest \\x1b[2J\\r") for line in lines)
    assert all(harmless(line) and len(line) < 520 for line in lines)


def test_a_traceback_on_the_console_cannot_pass_for_events() -> None:
    hostile = failing("x\n2026-01-01T00:00:00Z [error] forged")
    first, *rest = written(hostile, "console").splitlines()
    assert "cycle.failed" in first
    assert any("forged" in line for line in rest)
    assert all(line.startswith("    ") for line in rest)


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["a.debug", "a.info", "a.warning", "a.error", "cycle.failed"]),
        ("info", ["a.info", "a.warning", "a.error", "cycle.failed"]),
        ("warning", ["a.warning", "a.error", "cycle.failed"]),
        ("error", ["a.error", "cycle.failed"]),
    ],
)
def test_events_below_the_level_are_not_written(level: str, events: list[str]) -> None:
    def all_of_them(log: logs.Logger) -> None:
        log.debug("a.debug")
        log.info("a.info")
        log.warning("a.warning")
        log.error("a.error")
        failing("no")(log)

    lines = written(all_of_them, level=level).splitlines()
    assert [json.loads(line)["event"] for line in lines] == events


def test_an_event_below_the_level_formats_nothing() -> None:
    asked: list[str] = []

    class Costly:
        def __str__(self) -> str:
            asked.append("str")
            return ""

    assert not written(lambda log: log.debug("a.b", value=Costly()), level="info")
    assert not asked
    written(lambda log: log.debug("a.b", value=Costly()))
    assert asked


def test_a_reload_reaches_the_loggers_that_exist() -> None:
    before, after = io.StringIO(), io.StringIO()
    logs.configure("info", "json", before)
    log = logs.get("pinner")
    bound = log.bind(guest="web-1")
    log.debug("a.b")
    logs.configure("debug", "console", after)
    log.debug("a.b")
    bound.debug("c.d")
    assert before.getvalue() == ""
    assert re.search(r"a\.b .*\n.*c\.d .*guest=web-1\n\Z", after.getvalue())


def test_bound_fields_are_in_each_event() -> None:
    text = written(lambda log: log.bind(guest="web-1", cell=0).info("pin.applied", cpus="3"))
    read = json.loads(text)
    assert (read["guest"], read["cell"], read["cpus"]) == ("web-1", 0, "3")


@pytest.mark.parametrize(
    ("form", "stream", "console", "colour"),
    [
        ("auto", Terminal(), True, True),
        ("auto", io.StringIO(), False, False),
        ("json", Terminal(), False, False),
        ("console", io.StringIO(), True, False),
    ],
)
def test_auto_is_for_people_on_a_terminal_and_json_elsewhere(
    form: str, stream: io.StringIO, *, console: bool, colour: bool
) -> None:
    logs.configure("info", form, stream)
    logs.get("pinner").info("pin.applied")
    assert (not stream.getvalue().startswith("{")) == console
    assert ("\x1b[" in stream.getvalue()) == colour


class Broken(io.StringIO):
    def write(self, _: str) -> int:
        raise BrokenPipeError


def closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Broken(), closed()], ids=["broken", "closed"])
def test_a_line_that_cannot_be_written_is_lost_and_no_error(stream: TextIO) -> None:
    logs.configure("info", "auto", stream)
    logs.get("pinner").info("pin.applied")
    assert "pin.applied" in written(lambda log: log.info("pin.applied"))


def test_what_the_stream_cannot_encode_is_escaped() -> None:
    raw = io.BytesIO()
    logs.configure("info", "console", io.TextIOWrapper(raw, encoding="ascii"))
    logs.get("pinner").info("pin.applied", guest="Grüße")
    assert b"guest=Gr\\xfc\\xdfe" in raw.getvalue()


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)


def test_unconfigured_only_warnings_are_written_and_not_to_standard_output() -> None:
    ended = run("from agent import logs; log = logs.get('x'); log.info('a.b'); log.warning('c.d')")
    assert ended.stdout == ""
    assert [json.loads(line)["event"] for line in ended.stderr.splitlines()] == ["c.d"]


def test_what_nobody_catches_is_an_event_too() -> None:
    code = """
import sys, threading
from agent import logs
logs.configure("info", "json", sys.stderr)
logs.catch_uncaught()
def fail(): raise ValueError("evil\\n\x1b[2J")
thread = threading.Thread(target=fail, name="worker")
thread.start()
thread.join()
threading.Thread(target=sys.exit).start()
fail()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    events = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [(e["event"], e["where"]) for e in events] == [
        ("error.uncaught", "worker"),
        ("error.uncaught", "MainThread"),
    ]
    assert all("ValueError: evil" in e["exception"] for e in events)
    assert harmless(ended.stderr.replace("\n", ""))
