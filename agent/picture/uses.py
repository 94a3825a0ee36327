"""What a pCPU is used for, and how that is told from a plan and its host."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from agent.cpuset import EMPTY, CpuSet, union

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.words import Json


class Use(StrEnum):
    """What a pCPU is used for, by its letter."""

    POOL = "P"
    JOINS = "+"
    LEAVES = "-"
    TAKEN = "!"
    CLAIMED = "C"
    REALTIME = "R"
    CANDIDATE = "o"
    RESERVED = "#"
    ISOLATED = "i"
    OFFLINE = "x"
    ONLINE = "."
    UNTOLD = " "


IN_PLAN: Final[Mapping[Use, str]] = {
    Use.POOL: "pool",
    Use.JOINS: "joins it",
    Use.LEAVES: "leaves it",
    Use.TAKEN: "leaves it, claimed",
    Use.CLAIMED: "claimed",
    Use.REALTIME: "claimed, real-time",
    Use.CANDIDATE: "free, could join",
    Use.RESERVED: "reserved",
    Use.ISOLATED: "isolated",
    Use.OFFLINE: "offline",
    Use.ONLINE: "free, not for the pool",
}
IN_TOPOLOGY: Final[Mapping[Use, str]] = {
    Use.ISOLATED: "isolated by the kernel",
    Use.OFFLINE: "offline",
    Use.ONLINE: "online",
}


@dataclass(frozen=True, slots=True)
class Flags:
    """The pCPUs of a host of which the kernel says something."""

    isolated: CpuSet = EMPTY
    offline: CpuSet = EMPTY

    @classmethod
    def of(cls, host: Json) -> Flags:
        """Read a `topology` document."""
        rows = host["cpus"]
        return cls(
            CpuSet(row["id"] for row in rows if row["isolated"]),
            CpuSet(row["id"] for row in rows if not row["online"]),
        )

    def use(self, cpu: int) -> Use:
        """Return what a host alone tells."""
        if cpu in self.offline:
            return Use.OFFLINE
        return Use.ISOLATED if cpu in self.isolated else Use.ONLINE


@dataclass(frozen=True, slots=True)
class Pool:
    """What a plan says of the pCPUs of one cell."""

    cpus: CpuSet
    now: CpuSet
    candidates: CpuSet
    claimed: CpuSet
    realtime: CpuSet
    reserved: CpuSet
    flags: Flags

    @classmethod
    def of(cls, row: Json, flags: Flags) -> Pool:
        """Read a row of `cells`; a daemon of an earlier version has no `realtime`, `reserved`."""
        return cls(
            cpus=CpuSet.parse(row["pool"]),
            now=CpuSet.parse(row["pool_now"]),
            candidates=CpuSet.parse(row["candidates"]),
            claimed=CpuSet.parse(row["claimed"]),
            realtime=CpuSet.parse(row.get("realtime", "")),
            reserved=CpuSet.parse(row.get("reserved", "")),
            flags=flags,
        )

    @property
    def known(self) -> CpuSet:
        """The pCPUs that the plan names."""
        return union((self.cpus, self.now, self.candidates, self.claimed, self.reserved))

    def use(self, cpu: int) -> Use:
        """Return the first that holds."""
        uses = (
            (Use.OFFLINE, cpu in self.flags.offline),
            (Use.POOL, cpu in self.cpus and cpu in self.now),
            (Use.JOINS, cpu in self.cpus),
            (Use.TAKEN, cpu in self.now and cpu in self.claimed),
            (Use.LEAVES, cpu in self.now),
            (Use.REALTIME, cpu in self.realtime),
            (Use.CLAIMED, cpu in self.claimed),
            (Use.RESERVED, cpu in self.reserved),
            (Use.CANDIDATE, cpu in self.candidates),
        )
        return next((use for use, holds in uses if holds), self.flags.use(cpu))
