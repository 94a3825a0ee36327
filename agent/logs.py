"""The log: events with fields, one line each, whatever a guest is called.

An event is a constant `noun.verb`; everything that varies is a field. Fields may hold what tenants
wrote, so each text is cut to `LENGTH`, and characters that could forge a line, drive a terminal or
turn the direction of reading are written as escapes; so are lone surrogates, which no encoding
takes. This holds for the decoded JSON too: printing a field is as safe as printing the line. A
traceback is one field, cut in the middle; on a terminal its lines are indented, so that none of
them can pass for an event. An event that is too long for journald, which would make several lines
of it, is cut harder, texts and lists alike. What nobody catches is an event as well, in any thread.

A line that cannot be written (journald gone, disk full) is lost: logging must not end a cycle.

All loggers share one `_Output`, kept where structlog keeps its configuration: `configure` changes
it in place, so that a reload reaches the loggers that exist. A call below the level looks at one
number and formats nothing (0.3 us; a line of JSON 40 us).

structlog imports rich where that is installed, for coloured tracebacks that nobody asks for here,
and asyncio, for methods that nobody awaits here: 4.5 and 2 MiB, an eighth of this daemon. It is
told that there is no rich, and given a hollow asyncio.
"""

from __future__ import annotations

import json
import math
import re
import sys
import threading
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO

from agent.lean import without

with without(absent=("rich",), hollow=("asyncio",)):
    import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable

    from structlog.typing import EventDict, WrappedLogger

LENGTH: Final = 500
"""Characters kept of one text, if the event is not too long."""

LINE: Final = 40_000
"""Bytes of an event at most; journald cuts at 48 KiB (LineMax= of journald.conf)."""

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class _Cut(NamedTuple):
    """How much is kept: characters of a text, items of a list."""

    length: int
    items: int


_CUTS: Final = (_Cut(LENGTH, 20), _Cut(100, 5), _Cut(30, 0))
"""Tried in this order until an event fits; after the last, each field has 360 bytes at most."""
_DEPTH: Final = 3
_BITS: Final = 128
"""Of an integer that is written as one; Python refuses to write more than 4300 digits."""

_HOSTILE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 and C1 controls; all terminal sequences begin with one
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of reading
    "\u2028\u2029"  # separators of lines and paragraphs
    "\ud800-\udfff\ufeff]"
)


class Logger(structlog.BoundLoggerBase):
    """Writes events of one module; `bind` returns one that adds fields to each."""

    def debug(self, event: str, **fields: object) -> None:
        """Write what a developer asks for."""
        if self._logger.level <= LEVELS["debug"]:
            self._proxy_to_logger("debug", event, **fields)

    def info(self, event: str, **fields: object) -> None:
        """Write what was done."""
        if self._logger.level <= LEVELS["info"]:
            self._proxy_to_logger("info", event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """Write what an operator should look at."""
        if self._logger.level <= LEVELS["warning"]:
            self._proxy_to_logger("warning", event, **fields)

    def error(self, event: str, **fields: object) -> None:
        """Write what failed."""
        self._proxy_to_logger("error", event, **fields)

    def exception(self, event: str, **fields: object) -> None:
        """Write what failed, with the traceback of the exception that is being handled."""
        self._proxy_to_logger("error", event, exc_info=True, **fields)


class _Output:
    """Where lines go and what they look like; the same for all loggers."""

    def __init__(self) -> None:
        self.level = 0
        self._lock = threading.Lock()
        self.direct("info", "json", sys.stderr)

    def direct(self, level: str, form: str, stream: TextIO) -> None:
        terminal = _is_terminal(stream)
        console = terminal if form == "auto" else form == "console"
        renderer = _console(colours=terminal) if console else _json
        with self._lock:
            self.level, self._stream, self._renderer = LEVELS[level], stream, renderer

    def __call__(self, *_: object) -> _Output:
        """Be the factory that structlog asks for a logger."""
        return self

    def render(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        line = ""
        for cut in _CUTS:
            line = self._renderer(logger, method, _tame(method, event, cut))
            if len(line.encode("utf-8", "replace")) <= LINE:
                break
        return line

    def write(self, line: str) -> None:
        with self._lock:
            try:
                self._stream.write(_encodable(line, self._stream) + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                return  # ValueError: the stream is closed

    debug = info = warning = error = write


def configure(level: str, form: str, stream: TextIO) -> None:
    """Write events of `level` and above to `stream`, in `form` (auto, json, console).

    May be called again at any time. `auto` is console on a terminal, else JSON.
    """
    output = structlog.get_config()["logger_factory"]
    if not isinstance(output, _Output):
        output = _Output()
        structlog.configure(
            processors=[
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                output.render,
            ],
            wrapper_class=Logger,
            logger_factory=output,
        )
    output.direct(level, form, stream)


def get(name: str) -> Logger:
    """Return the logger of a module. Nobody having configured, warnings go to standard error."""
    if not structlog.is_configured():
        configure("warning", "auto", sys.stderr)
    logger: Logger = structlog.get_logger().bind(logger=name)
    return logger


def catch_uncaught() -> None:
    """Write what nobody catches as events: a traceback's text may be a tenant's, too."""
    log = get("emupool")

    def told(kind: type[BaseException], error: BaseException | None, where: str) -> None:
        if issubclass(kind, Exception):
            log.error("error.uncaught", where=where, exc_info=error)

    # libvirt-python reports what its callbacks raise to `sys.excepthook`, too.
    sys.excepthook = lambda kind, error, _: told(kind, error, threading.current_thread().name)
    threading.excepthook = lambda hook: told(
        hook.exc_type, hook.exc_value, hook.thread.name if hook.thread is not None else ""
    )


def _tame(method: str, event: EventDict, cut: _Cut) -> EventDict:
    """Return a copy of the event with its fixed fields first and all values harmless."""
    fields = {"timestamp": None, "level": method, "event": None, **event}
    trace = fields.pop("exception", None)
    tamed: EventDict = {_text(key, cut.length): _value(value, cut) for key, value in fields.items()}
    if trace is not None:
        lines = _ends(trace.split("\n"), 2 * cut.items)
        tamed["exception"] = "\n".join(_text(line, cut.length) for line in lines)
    return tamed


def _value(value: object, cut: _Cut, depth: int = 0) -> object:
    """Return what JSON can hold of `value`, harmless and not large."""
    match value:
        case int() if value.bit_length() > _BITS:
            return _text(hex(value), cut.length)
        case None | int():
            return value
        case float() if math.isfinite(value):
            return value
        case Mapping() if depth < _DEPTH:
            pairs = islice(value.items(), cut.items)
            return {_text(_str(k), cut.length): _value(v, cut, depth + 1) for k, v in pairs}
        case list() | tuple() | set() | frozenset() if depth < _DEPTH:
            hidden = len(value) - cut.items
            more = [f"and {hidden} more"] if hidden > 0 else []
            return [_value(item, cut, depth + 1) for item in islice(value, cut.items)] + more
    return _text(_str(value), cut.length)


def _str(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - whatever a value's own code does
        return f"<{type(value).__name__}: {type(error).__name__}>"


def _text(text: str, length: int) -> str:
    """Return `text` cut and escaped."""
    kept = text if len(text) <= length else text[: length - 1] + "…"
    return _HOSTILE.sub(lambda found: found[0].encode("unicode_escape").decode(), kept)


def _ends(lines: list[str], kept: int) -> Iterable[str]:
    """Return the lines, of very many only as many as `kept` from each end."""
    hidden = len(lines) - 2 * kept
    if hidden <= 0:
        return lines
    return [*lines[:kept], f"... {hidden} lines ...", *lines[kept + hidden :]]


def _json(_: WrappedLogger, __: str, event: EventDict) -> str:
    return json.dumps(event, separators=(",", ":"))


def _console(*, colours: bool) -> Any:  # noqa: ANN401 - structlog's Processor, narrowed to text
    renderer = structlog.dev.ConsoleRenderer(
        colors=colours, exception_formatter=structlog.dev.plain_traceback
    )

    def render(logger: WrappedLogger, method: str, event: EventDict) -> str:
        if "exception" in event:
            event["exception"] = "    " + event["exception"].replace("\n", "\n    ")
        return renderer(logger, method, event)

    return render


def _encodable(line: str, stream: TextIO) -> str:
    """Return `line` with what the stream's encoding lacks written as escapes."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:
        return False
