"""What a cycle follows of the configuration: for the daemon, and for commands that plan once.

Apart from the daemon's parts, so that a command loads none of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent import offline
from agent.rebalancer import Settings

if TYPE_CHECKING:
    from fractions import Fraction

    from agent.config import Config


def settings(config: Config, ratio: Fraction | None = None) -> Settings:
    """Return what a cycle follows, with `ratio` in every cell if it is given."""
    pool = config.pool if ratio is None else offline.with_ratio(config.pool, ratio)
    return Settings(pool, config.guests, config.reconcile.dry_run)
