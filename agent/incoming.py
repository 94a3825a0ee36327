"""Pins in the text of a definition, replaced where they stand.

What libvirt gives a hook it takes back as it is, so not a byte else changes: no parser writes the
text anew. Where the pins stand the parser tells; a tenant's text may hold what looks like one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from xml.parsers import expat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.cpuset import CpuSet

_CPUTUNE: Final = ["domain", "cputune"]
_ATTRIBUTE = re.compile(rb"""\s+([^\s=]+)\s*=\s*(?:"[^"]*"|'[^']*')""")


def replaced(text: str, pins: Mapping[int | None, CpuSet]) -> str:
    """Return `text`, a definition, with these pins; None is the emulator's, others of iothreads.

    A pin that the text does not have is not added. ValueError if the text is no XML.
    """
    data = text.encode()
    for start, end, cpus in reversed(_places(data, pins)):
        data = data[:start] + f" cpuset='{cpus}'".encode() + data[end:]
    return data.decode()


def _places(data: bytes, pins: Mapping[int | None, CpuSet]) -> list[tuple[int, int, CpuSet]]:
    """Return where the attributes to be replaced begin and end, and what is to be there."""
    wanted = {
        ("emulatorpin", "") if thread is None else ("iothreadpin", str(thread)): cpus
        for thread, cpus in pins.items()
    }
    found: list[tuple[int, int, CpuSet]] = []
    path: list[str] = []
    parser = expat.ParserCreate("utf-8")

    def enter(tag: str, attributes: dict[str, Any]) -> None:
        cpus = wanted.get((tag, attributes.get("iothread", "")))
        if cpus is not None and path == _CPUTUNE and "cpuset" in attributes:
            start = parser.CurrentByteIndex + len(b"<") + len(tag.encode())
            found.append((*_attribute(data, start), cpus))
        path.append(tag)

    parser.StartElementHandler = enter
    parser.EndElementHandler = lambda _tag: path.pop()
    try:
        parser.Parse(data, True)  # noqa: FBT003 - as expat has it
    except expat.ExpatError as error:
        raise ValueError(str(error)) from None
    return found


def _attribute(data: bytes, at: int) -> tuple[int, int]:
    """Return where `cpuset`, with the space before it, stands among the attributes at `at`."""
    while (one := _ATTRIBUTE.match(data, at)) is not None:
        if one[1] == b"cpuset":
            return one.span()
        at = one.end()
    raise ValueError("a pin without the attribute that it has")
