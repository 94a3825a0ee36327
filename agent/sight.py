"""What an observer looks through, and what it sees: seams for host and kernel, and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.cpuset import CpuSet
    from agent.cpusets import Mended
    from agent.domainxml import Domain, Pins
    from agent.errors import EmupoolError
    from agent.snapshot import Guest, Kernel
    from agent.threads import Place
    from agent.topology import Host


class Kernels(Protocol):
    """Finds and reads a guest's threads; `agent.threads.Threads` does."""

    def partition(self, path: str = "/machine") -> CpuSet | None:
        """Return the effective cpuset of a partition."""

    def locate(self, uuid: str, domain_id: int, partition: str | None = None) -> Place | None:
        """Find a running guest."""

    def read(self, place: Place, iothreads: Iterable[int] | None = None) -> Kernel:
        """Return what the kernel holds for it and its `iothreads`; None: whichever it has."""


class Cpusets(Protocol):
    """Gives cpusets back what the kernel cut; `agent.cpusets.Mender` does."""

    def mend(
        self, partitions: Iterable[str], online: CpuSet, *, plugged: bool, act: bool
    ) -> Mended:
        """Look at libvirt's `partitions`, and mend them if it is to `act`."""


class Discovered(Protocol):
    """A host, and what of it could not be understood."""

    @property
    def host(self) -> Host:
        """The host."""

    @property
    def problems(self) -> tuple[str, ...]:
        """One line each."""


class Hosts(Protocol):
    """Reads the host; `agent.sysfs.Sysfs` does."""

    def discover(self) -> Discovered:
        """Return the host as it is now."""

    def refresh(self) -> Discovered:
        """Return the same, if all that can have happened is that pCPUs went on or off line."""

    def online(self) -> CpuSet:
        """Return the pCPUs on line now; cheap."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was last read of one guest."""

    text: str
    domain: Domain
    start: str
    original: Pins
    told: bool  # the persistent definition says the same as `original`
    place: Place | None = None
    occupied: bool = False
    ready: bool = False
    kernel: Kernel | None = None

    @property
    def age(self) -> int:
        """QEMU's start in clock ticks since boot, else the domain id."""
        return self.place.started if self.place else self.domain.id or 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look: the host, libvirt's partition, all guests, and what could not be read."""

    host: Host
    partition: CpuSet | None
    guests: tuple[Guest, ...]
    failures: tuple[tuple[str, EmupoolError], ...] = ()
    untold: frozenset[str] = frozenset()  # whose original only this program knows
    held: frozenset[str] = frozenset()  # that could not be read, since libvirt holds them
    problems: tuple[str, ...] = ()  # of sysfs
