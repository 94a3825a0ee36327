"""The sample: a host of two cells and eight pCPUs, guests for it, and the order of events.

The host goes through the constructor that a real one goes through: texts as a kernel would have
them, interpreted by `topology`. libvirt's test driver knows eight pCPUs and no more. It has no
processes either, so there is no kernel to follow a pin: `NoKernel`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent import topology
from agent.cpuset import CellId
from agent.domainxml import OWN_NAMESPACE
from agent.snapshot import Kernel, Settled
from agent.topology import Attribute, CpuReading, NodeReading, Readings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.cpuset import CpuSet
    from agent.threads import Place
    from agent.topology import Discovery

_CELLS: Final = 2
_CELL_CPUS: Final = 4
_CPUS: Final = _CELLS * _CELL_CPUS
_NOTHING: Final = Kernel(cpus=None, parent=None, threads=(), iothreads=())


class SampleHost:
    """Two sockets, each a cell of two cores with two threads."""

    def discover(self) -> Discovery:
        """Return the host."""
        return topology.interpret(_readings())

    def refresh(self) -> Discovery:
        """Return the same: nothing comes or goes."""
        return self.discover()

    def online(self) -> CpuSet:
        """Return its pCPUs."""
        return topology.online_cpus(_readings())


class NoKernel:
    """What the test driver has of threads: none."""

    def partition(self, path: str = "/machine") -> CpuSet | None:
        """Return None: there is no cgroup."""
        del path
        return None

    def locate(self, uuid: str, domain_id: int, partition: str | None = None) -> Place | None:
        """Return None: there is no process."""
        del uuid, domain_id, partition
        return None

    def read(self, place: Place, iothreads: Iterable[int] | None = None) -> Kernel:
        """Return nothing; no place exists to ask about."""
        del place, iothreads
        return _NOTHING

    def settle(self, place: Place, target: CpuSet) -> Settled:
        """Return that nothing was settled."""
        del place, target
        return Settled(_NOTHING, verified=False, stuck=(), permitted=False)

    def settle_iothread(self, place: Place, iothread: int, target: CpuSet) -> Settled:
        """Return that nothing was settled."""
        del iothread
        return self.settle(place, target)


@dataclass(frozen=True, slots=True)
class SampleGuest:
    """A guest of one vCPU that may run on `cpus`; a single pCPU is a claim."""

    name: str
    cell: CellId
    cpus: str
    realtime: bool = False

    @property
    def uuid(self) -> str:
        """The same in each run."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{OWN_NAMESPACE}#{self.name}"))

    @property
    def xml(self) -> str:
        """Its definition, with a policy in its own metadata."""
        scheduler = "<vcpusched vcpus='0' scheduler='fifo' priority='1'/>" if self.realtime else ""
        return f"""\
<domain type='test'>
  <name>{self.name}</name>
  <uuid>{self.uuid}</uuid>
  <metadata><e:guest xmlns:e='{OWN_NAMESPACE}' policy='isolate'/></metadata>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <cputune><vcpupin vcpu='0' cpuset='{self.cpus}'/>{scheduler}</cputune>
  <numatune><memnode cellid='0' mode='strict' nodeset='{self.cell}'/></numatune>
  <os><type>hvm</type></os>
  <cpu><numa><cell id='0' cpus='0' memory='64' unit='MiB'/></numa></cpu>
</domain>"""


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing that happens; none of both is the passing of time."""

    title: str
    starts: SampleGuest | None = None
    stops: SampleGuest | None = None

    @property
    def waits(self) -> bool:
        """Whether it is over when time alone has changed the pools."""
        return self.starts is None and self.stops is None


_WEB_1: Final = SampleGuest("web-1", CellId(0), "0")
_WEB_2: Final = SampleGuest("web-2", CellId(0), "1")
_BATCH: Final = SampleGuest("batch", CellId(0), "0-3")
_RADIO: Final = SampleGuest("radio", CellId(1), "4", realtime=True)
_DB: Final = SampleGuest("db", CellId(1), "6")

SCRIPT: Final = (
    Scene("web-1 starts in cell 0 and claims pCPU 0.", starts=_WEB_1),
    Scene("web-2 claims pCPU 1. At ratio 2 both fit on one pool pCPU.", starts=_WEB_2),
    Scene("batch starts in cell 0, unpinned. For a third guest the pool grows.", starts=_BATCH),
    Scene("radio starts in cell 1 with a real-time vCPU on pCPU 4.", starts=_RADIO),
    Scene("db claims pCPU 6, which is in the pool: evacuate.", starts=_DB),
    Scene("batch leaves. The pool keeps its size for the shrink delay ...", stops=_BATCH),
    Scene("... and gives a pCPU back when that has passed."),
    Scene("web-2 leaves. One guest in cell 0 still needs one pCPU.", stops=_WEB_2),
)


def _readings() -> Readings:
    """Return what a kernel's files would say."""
    return Readings(
        cpus=tuple(_cpu(cpu) for cpu in range(_CPUS)),
        nodes=tuple(_node(cell) for cell in range(_CELLS)),
        online=Attribute("online", f"0-{_CPUS - 1}"),
        present=Attribute("present", f"0-{_CPUS - 1}"),
    )


def _cpu(cpu: int) -> CpuReading:
    cell, core = cpu // _CELL_CPUS, cpu // 2
    return CpuReading(
        id=cpu,
        package=Attribute("physical_package_id", str(cell)),
        core=Attribute("core_id", str(core % 2)),
        siblings=Attribute("core_cpus_list", f"{core * 2}-{core * 2 + 1}"),
        l3=Attribute("shared_cpu_list", _list(cell)),
    )


def _node(cell: int) -> NodeReading:
    distances = ("10 21", "21 10")
    return NodeReading(
        id=CellId(cell),
        cpus=Attribute("cpulist", _list(cell)),
        meminfo=Attribute("meminfo", f"Node {cell} MemTotal:       67108864 kB"),
        distance=Attribute("distance", distances[cell]),
    )


def _list(cell: int) -> str:
    return f"{cell * _CELL_CPUS}-{(cell + 1) * _CELL_CPUS - 1}"
