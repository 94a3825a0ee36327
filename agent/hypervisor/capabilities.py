"""The host's cells in libvirt's capabilities, as values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from agent.cpuset import LIMIT, CellId, CpuSet, CpuSetError
from agent.topology import ForeignCell

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBER: Final = re.compile(r"[0-9]{1,5}\Z")


def cells(text: str) -> tuple[ForeignCell, ...]:
    """Return the cells of a capabilities document by id; what makes no sense is left out.

    A pCPU that was off line when libvirt looked has no siblings there.
    """
    try:
        found = ET.fromstring(text).iterfind("host/topology/cells/cell")  # noqa: S314 - libvirt's own
    except ET.ParseError:
        return ()
    numbered = ((_number(element.get("id")), element) for element in found)
    told = [
        ForeignCell(
            CellId(number),
            CpuSet(cpu for cpu, _ in _cpus(element)),
            tuple((cpu, siblings) for cpu, siblings in _cpus(element) if siblings),
        )
        for number, element in numbered
        if number is not None
    ]
    return tuple(sorted(told, key=lambda cell: cell.id))


def _cpus(cell: ET.Element) -> Iterator[tuple[int, CpuSet | None]]:
    for element in cell.iterfind("cpus/cpu"):
        number = _number(element.get("id"))
        if number is not None:
            yield number, _siblings(element.get("siblings"))


def _siblings(text: str | None) -> CpuSet | None:
    try:
        return None if text is None else CpuSet.parse(text)
    except CpuSetError:
        return None


def _number(text: str | None) -> int | None:
    if text is None or not _NUMBER.match(text) or int(text) >= LIMIT:
        return None
    return int(text)
