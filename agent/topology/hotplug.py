"""What can have changed after pCPUs went on or off line, so that the rest need not be read again.

A pCPU's directory tells of itself, of who shares its core and of who shares its L3: it can change
only if one of these came or went. Ids are the hardware's. Where firmware renumbers what runs (a
partition of POWER or s390 that is moved), the next full discovery tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.cpuset import EMPTY, CpuSet, union
from agent.topology.interpretation import online_cpus
from agent.topology.readings import Understanding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.topology.host import Host
    from agent.topology.readings import CpuReading, Readings

_SHARED: Final = ("siblings", "l3")  # sets of a reading, and of what it comes to


def changed(host: Host, now: Readings) -> CpuSet:
    """Return the pCPUs that went on or off line since `host` was read."""
    online = online_cpus(now)
    return (online - host.online) | (host.online - online)


def touched(changed: CpuSet, new: Iterable[CpuReading], host: Host) -> CpuSet:
    """Return whose own files can have changed because `changed` went on or off line.

    They are those that shared a core or an L3 with one of them in `host`, or share it now, which
    is what the `new` readings of the changed say. One that does not say it may share with any.
    """
    reader = Understanding(())
    tells = {name for name in _SHARED if any(getattr(cpu, name) for cpu in host.cpus)}
    sets = []
    for reading in new:
        for name in _SHARED:
            told = reader.cpus(getattr(reading, name))
            if told is None and name in tells and reading.id not in host.online:
                return CpuSet(cpu.id for cpu in host.cpus)
            sets.append(told or EMPTY)
    known = (cpus for cpu in host.cpus for cpus in (cpu.siblings, cpu.l3) if cpus is not None)
    return union((changed, *sets, *(cpus for cpus in known if not cpus.isdisjoint(changed))))
