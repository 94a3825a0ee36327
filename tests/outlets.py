"""Everything a cycle is told by, read as its readers do; a text that breaks one fails the test."""

from __future__ import annotations

import io
import json
import sys
import unicodedata
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from agent import accounting, draw, logs, report, topology
from agent.accounting import BillingSettings
from agent.metrics import OPENMETRICS, TEXT, Metrics
from agent.page import page
from agent.status import Standing, status
from agent.telling import Teller, status_line
from agent.usage import EmulatorTime, PoolUsage
from tests.documents import pipe, screen

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cycle import CycleResult
    from agent.offline import Decided
    from agent.pool import PoolSettings
    from tests.documents import Output

LABELS: Final = frozenset({"cell", "cpu", "reason", "state", "kind", "event", "version", "le"})
LONGEST_LINE: Final = 60_000
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_TAGS: Final = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "div", "span"),
    *("h1", "h2", "h3", "p", "ul", "li", "dl", "dt", "dd", "wbr", "a"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td"),
    *("svg", "defs", "pattern", "g", "rect", "path", "circle", "text"),
}
_VOID: Final = frozenset({"meta", "wbr"})
_ATTRIBUTES: Final = frozenset(
    {
        *("lang", "charset", "http-equiv", "content", "name", "class", "scope", "id"),
        *("href", "role", "tabindex", "aria-label", "aria-labelledby", "aria-hidden"),
        *("width", "height", "x", "y", "rx", "cx", "cy", "r", "d", "fill", "stroke"),
        *("patternunits", "patterntransform"),
    }
)


def check(result: CycleResult, pool: PoolSettings) -> dict[str, Any]:
    """Read all that is told of a cycle; return the status document."""
    metrics = Metrics()
    read_logs(lambda: _teller(metrics).cycle(result, pool, BillingSettings()))
    read_logs(lambda: _teller(Metrics()).cycle(result, pool, BillingSettings()), console=True)
    for accept in (TEXT, OPENMETRICS):
        read_metrics(metrics.expose(accept)[1].decode(), openmetrics=accept == OPENMETRICS)
    document = status(Standing("qemu:///system", connected=True, result=result), metrics.counters())
    read_page(page(document))
    told = as_json(document)
    bills = accounting.account(result.host, BillingSettings(), result.plan, result.guests)
    account = as_json(report.account(bills, result.plan))
    for output in (screen(), pipe(), pipe("ascii")):
        draw.status(output.console, told)
        draw.account(output.console, account)
        read_drawing(output)
    assert status_line(result).isprintable()
    return told


def check_decided(decided: Decided) -> dict[str, Any]:
    """Read all that commands tell of a plan from files; return the plan document."""
    told = as_json(report.plan(decided.plan, decided.steps))
    bills = accounting.account(decided.host, BillingSettings(), decided.plan, decided.guests)
    account = as_json(report.account(bills, decided.plan))
    for output in (screen(), pipe()):
        draw.plan(output.console, told, topology.to_json(decided.host))
        draw.account(output.console, account)
        read_drawing(output)
    return told


def _teller(metrics: Metrics) -> Teller:
    return Teller(metrics, PoolUsage(), EmulatorTime(), lambda _: None)


def harmless(text: str) -> bool:
    """Tell whether a text drives no terminal, ends no line and turns no direction of reading."""
    return not any(unicodedata.category(char) in _UNSEEN for char in text)


def read_logs(write: Callable[[], None], *, console: bool = False) -> list[str]:
    """Return the lines that are written, one event each."""
    stream = io.StringIO()
    logs.configure("debug", "console" if console else "json", stream)
    try:
        write()
    finally:
        logs.configure("warning", "auto", sys.__stderr__ or io.StringIO())
    lines = stream.getvalue().split("\n")
    assert lines.pop() == ""
    for line in lines:
        assert len(line) < LONGEST_LINE
        assert harmless(line)
        if not console:
            assert line.isascii()
            assert harmless("".join(_texts(json.loads(line))))
        else:
            assert line[:2] == "20", "a line begins with its time"
    return lines


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []


def read_metrics(text: str, *, openmetrics: bool) -> None:
    """Read an exposition; only labels that are bounded may be there."""
    families = list((read_openmetrics if openmetrics else read_text)(text))
    assert families
    assert {label for f in families for s in f.samples for label in s.labels} <= LABELS
    assert all(len(line) < 300 for line in text.splitlines())


def as_json(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document as a reader of standard JSON gets it."""
    text = json.dumps(document, allow_nan=False)
    assert text.isascii()
    read: dict[str, Any] = json.loads(text)
    return read


class _Page(HTMLParser):
    """Holds a page to the elements that ours is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in _TAGS
        assert {name for name, _ in attributes} <= _ATTRIBUTES
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        assert harmless(data.replace("\n", "")), data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    handle_pi = unknown_decl = handle_comment


def read_page(text: str) -> None:
    """Read a page: each element of it is one of ours, and closed where it should be."""
    parser = _Page()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert text.startswith("<!doctype html>")
    assert text.endswith("</html>")


def read_drawing(output: Output) -> None:
    """Read what was drawn: lines that fit, and nothing in them but letters and our colours."""
    lines = output.text.split("\n")
    assert all(map(harmless, lines))
    if output.console.is_terminal:
        assert max(map(_columns, lines)) <= output.console.width


def _columns(line: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in line
    )
