"""What one cycle observed of the guests: the frozen values that the decisions read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.cpuset import EMPTY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.cpuset import CpuSet
    from agent.domainxml import Domain, IoThread, Pins
    from agent.policy import Verdict


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread, and the pCPUs that the kernel lets it run on now."""

    tid: int
    cpus: CpuSet


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernel holds for one guest."""

    cpus: CpuSet | None  # effective cpuset of its emulator cgroup; None: no cpuset of its own
    parent: CpuSet | None  # effective cpuset of the cgroup above, the limit of any target
    threads: tuple[Thread, ...]  # of the emulator cgroup by tid, vhost workers included
    iothreads: tuple[tuple[int, tuple[Thread, ...]], ...]  # (iothread id, its threads) by id


@dataclass(frozen=True, slots=True)
class Settled:
    """What the kernel holds after a pin was loosened and read back."""

    kernel: Kernel
    verified: bool  # the cgroup has a cpuset of its own, and that is the target
    stuck: tuple[int, ...]  # threads that do not follow their cpuset, by tid
    permitted: bool  # False: loosening needs CAP_SYS_NICE, which is missing


@dataclass(frozen=True, slots=True)
class Guest:
    """One defined guest; `domain` is its live definition while it runs, else its persistent one."""

    domain: Domain
    original: Pins  # what it was started with, as far as known
    verdict: Verdict
    age: int = 0  # start of QEMU in clock ticks since boot; from files: the domain id
    start: str = ""  # identity of this start: the same UUID started again has another
    busy: bool = False  # its job lock is held, or it is not there yet (incoming migration)
    kernel: Kernel | None = None  # None: not readable, or nothing to read (stopped)

    @property
    def uuid(self) -> str:
        """The UUID, its name in every table."""
        return self.domain.uuid

    @property
    def label(self) -> str:
        """What an operator calls it, fit for a line: its name, or the UUID if it has none."""
        name = self.domain.name
        return (name if name.isprintable() else ascii(name)[1:-1])[:255] or self.domain.uuid

    @property
    def active(self) -> bool:
        """Whether it runs (or is paused, suspended in memory, kept after a crash)."""
        return self.domain.id is not None

    @property
    def seniority(self) -> tuple[int, str]:
        """Sort key from the oldest to the newest."""
        return self.age, self.domain.uuid


def followers(guest: Guest, original: Pins) -> Iterator[IoThread]:
    """Yield the iothreads that follow the emulator threads.

    Those were pinned as the emulator threads were when the guest started; any other pin, or
    none, is someone's intent.
    """
    pins = dict(original.iothreads)
    for thread in guest.domain.iothreads:
        pin = pins.get(thread.id)
        if pin is not None and pin == original.emulator and not thread.realtime:
            yield thread


def released(guest: Guest, online: CpuSet) -> CpuSet:
    """Return what a release pins to.

    That is the original pin as far as it can be had now, else where no pin would put the guest.
    """
    limit = online
    if guest.kernel is not None and guest.kernel.parent is not None:
        limit &= guest.kernel.parent
    own = (guest.original.emulator or EMPTY) & limit
    return own or (guest.domain.vcpu_cpuset or EMPTY) & limit or limit
