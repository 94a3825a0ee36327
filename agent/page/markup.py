"""Texts as HTML: escaped, tamed, and broken only where a reader would break them."""

from __future__ import annotations

import re
from html import escape
from typing import Final

from agent import words

_RANGE: Final = re.compile(r"\d+-\d+")
_COMMA: Final = re.compile(r",(?=\d|<)")


def text(value: object, length: int = words.NAME) -> str:
    """Return what somebody else wrote as HTML that shows it, and nothing else."""
    return escape(words.plain(value, length))


def prose(told: str) -> str:
    """Return a text of ours as HTML; a set of pCPUs in it is broken after commas only."""
    whole = _RANGE.sub(r'<span class="whole">\g<0></span>', escape(told))
    return _COMMA.sub(",<wbr>", whole)
