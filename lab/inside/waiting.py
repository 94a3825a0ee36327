"""Waiting for states: the lab emulates its pCPUs, so everything takes ten times as long."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECONDS: Final = 180.0
"""For how long a state is waited for; a busy machine outside may double every time again."""
_PACE: Final = 0.25


class Failure(AssertionError):
    """A scenario found something else than it has to be."""


def check(holds: object, otherwise: str) -> None:
    """Fail with `otherwise` unless `holds`."""
    if not holds:
        raise Failure(otherwise)


def wait_for(
    met: Callable[[], object], what: str, seconds: float = SECONDS, pace: float = _PACE
) -> float:
    """Wait until `met` holds, and return the seconds that took."""
    began = time.monotonic()
    while not met():
        if time.monotonic() - began > seconds:
            raise Failure(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(pace)
    return time.monotonic() - began


def wait_in_order(
    complaints: Callable[[], Sequence[str]], what: str, seconds: float = SECONDS
) -> float:
    """Wait until nothing is complained of, and return the seconds; fail with the complaints."""
    left: Sequence[str] = ()

    def none_left() -> bool:
        nonlocal left
        left = complaints()
        return not left

    try:
        return wait_for(none_left, what, seconds)
    except Failure as failure:
        raise Failure("\n  ".join((str(failure), *left[:20]))) from None
