"""Requests and answers as bytes: pure, so that every broken request is a line in a table.

Strict where two readers could disagree (folded headers, control characters, two hosts), lenient
where a person types (bare line feeds, no headers). Bodies and lengths are never read.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Final

HEAD_BYTES: Final = 16384
"""The longest request line and headers together."""
_HEADERS: Final = 100

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST: Final = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/([0-9])\.([0-9])\Z")
_TARGET: Final = re.compile(rb"(?:(?i:https?://[^/?#]+)|(?=/))(/[^?#]*)?(?:\?([^#]*))?\Z")
_HEADER: Final = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t -~\x80-\xff]*)\Z")

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}

_ALWAYS: Final = (
    "Connection: close\r\n"
    "Cache-Control: no-store\r\n"
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "X-Content-Type-Options: nosniff\r\n"
)

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
HTML: Final = "text/html; charset=utf-8"


class Refusal(Exception):
    """The request gets an error for an answer, and why in a line."""

    def __init__(self, status: int, why: str) -> None:
        """Answer with `status`, and `why` as the body."""
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """What matters of a request; path and query as they were sent."""

    method: str
    path: str
    accept: str
    query: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """What is sent back; `kind` is the content type, `allow` the header of that name."""

    status: int
    kind: str
    body: bytes
    allow: str = ""


def parse(head: bytes) -> Request:
    """Read request line and headers, without the empty line that ends them; Refusal if broken."""
    first, *rest = (line.removesuffix(b"\r") for line in head.split(b"\n"))
    line = _REQUEST.match(first)
    target = _TARGET.match(line[2]) if line else None
    if line is None or target is None:
        raise Refusal(400, "the first line has to be like: GET /metrics HTTP/1.1")
    if line[3] != b"1":
        raise Refusal(505, "HTTP/1.1 is spoken here")
    if len(rest) > _HEADERS:
        raise Refusal(431, f"a request has at most {_HEADERS} headers")
    headers = [_header(line) for line in rest]
    if line[4] != b"0" and [name for name, _ in headers].count(b"host") != 1:
        raise Refusal(400, "HTTP/1.1 demands one Host header")
    accept = b",".join(value for name, value in headers if name == b"accept")
    path, query = target[1] or b"/", target[2] or b""
    return Request(line[1].decode(), path.decode(), accept.decode("latin-1"), query.decode())


def _header(line: bytes) -> tuple[bytes, bytes]:
    """Return (lower-case name, value)."""
    header = _HEADER.match(line)
    if header is None:
        raise Refusal(400, "a header is not like: Name: value")
    return header[1].lower(), header[2]


def readiness(ready: bool, line: str) -> Response:  # noqa: FBT001 - as the daemon says it
    """Answer whether the daemon is ready, and what is missing."""
    return Response(200 if ready else 503, TEXT, encoded(" ".join(line.split()) + "\n"))


def refused(refusal: Refusal) -> Response:
    """Return the answer that a refusal is."""
    return Response(refusal.status, TEXT, encoded(f"{refusal}\n"))


def encoded(text: str) -> bytes:
    """Return UTF-8, lone surrogates as escapes."""
    return text.encode("utf-8", "backslashreplace")


def encode(response: Response, now: float, *, with_body: bool) -> bytes:
    """Return all that goes over the wire; `now` is Unix time."""
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now))
    allow = f"Allow: {response.allow}\r\n" if response.allow else ""
    head = (
        f"HTTP/1.1 {response.status} {_REASONS[response.status]}\r\nDate: {date}\r\n"
        f"Content-Type: {response.kind}\r\nContent-Length: {len(response.body)}\r\n"
        f"{allow}{_ALWAYS}\r\n"
    )
    return head.encode() + (response.body if with_body else b"")
