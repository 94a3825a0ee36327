"""How often a property is tried: some in `make test`, many in `make soak`."""

from __future__ import annotations

import os
from typing import Final

SOAK: Final = os.environ.get("EMUPOOL_SOAK") == "1"


def examples(some: int, many: int) -> int:
    """Return `many` in a soak, else `some`."""
    return many if SOAK else some
