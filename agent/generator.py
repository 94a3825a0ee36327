"""A made-up trace: Poisson arrivals, heavy-tailed lifetimes, a few sizes.

As clouds are: most guests are small and live for minutes, a few are large or stay for weeks. The
same seed gives the same trace. Holds who runs, and nothing else.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.trace import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIZES: Final = ((1, 10), (2, 35), (4, 30), (8, 18), (16, 7))  # vCPUs, and how often in a hundred
_TAIL: Final = 1.3  # of the Pareto distribution: a finite mean, no finite variance
_LONGEST: Final = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of the host."""

    events: int
    vcpus: int  # that run at the same time, on average
    seed: int = 0
    lifetime: float = 3600.0  # seconds, on average


def generate(demand: Demand) -> Iterator[str]:
    """Yield the lines of a trace."""
    chance = random.Random(demand.seed)  # noqa: S311 - not for keeping secrets
    sizes, weights = zip(*_SIZES, strict=True)
    size = sum(vcpus * often for vcpus, often in _SIZES) / sum(weights)
    rate = demand.vcpus / size / demand.lifetime
    yield ",".join(COLUMNS[:5]) + "\n"
    running: list[tuple[float, int]] = []
    now, number = 0.0, 0
    for _ in range(demand.events):
        arrival = now + chance.expovariate(rate)
        if running and running[0][0] <= arrival:
            now, gone = heapq.heappop(running)
            yield f"{now:.3f},g{gone},stop,,\n"
            continue
        now, number = arrival, number + 1
        vcpus = chance.choices(sizes, weights)[0]
        cells = 2 if vcpus >= 8 and chance.random() < 0.2 else 1  # noqa: PLR2004 - large ones
        yield f"{now:.3f},g{number},start,{vcpus},{cells}\n"
        life = chance.paretovariate(_TAIL) * demand.lifetime * (_TAIL - 1) / _TAIL
        heapq.heappush(running, (now + min(life, _LONGEST), number))
