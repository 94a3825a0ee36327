"""config.example.toml, and what it says when its comment signs are taken away."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

EXAMPLE: Final = (Path(__file__).parent.parent / "config.example.toml").read_text()
SAID: Final = re.sub(r"^#(?=[a-z_]+ = )", "", EXAMPLE, flags=re.MULTILINE)
"""The file with every key in force."""
NESTED: Final = "\n".join(re.findall(r"^#   (\[.*|[a-z_]+ = .*)$", EXAMPLE, flags=re.MULTILINE))
"""The examples of a cell and of rules alone."""


def tree() -> dict[str, Any]:
    """Return all of it as one tree: each key there is, at least once."""
    nested = tomllib.loads(NESTED)
    return {name: {**table, **nested.get(name, {})} for name, table in tomllib.loads(SAID).items()}
