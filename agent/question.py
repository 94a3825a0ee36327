"""What a plan is made from: the host, the settings, the guests, the memory and the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.cpuset import CpuSet
    from agent.policy import Policy
    from agent.pool import Memory, PoolSettings
    from agent.snapshot import Guest
    from agent.topology import Host


@dataclass(frozen=True, slots=True)
class Question:
    """All that a plan is made from; times are in seconds, of one clock that never goes back."""

    host: Host
    settings: PoolSettings
    manage: frozenset[Policy]
    guests: tuple[Guest, ...]
    memory: Memory
    now: float
    partition: CpuSet | None = None  # effective cpuset of libvirt's machine partition
    damped: bool = True  # False: sizes and sets follow at once, as after a reload

    def managed(self) -> list[Guest]:
        """Return the managed guests, from the oldest to the newest."""
        managed = [
            guest for guest in self.guests if guest.active and guest.verdict.policy in self.manage
        ]
        return sorted(managed, key=lambda guest: guest.seniority)
