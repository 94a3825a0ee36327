"""The host as its kernel describes it: pCPUs, cores, L3 domains, NUMA cells.

Terms. `Readings` is what the files of one tree under /sys say, as text; `sysfs` collects it.
`interpret` turns it into a `Host` and the problems met, and `to_json` a host into the answer of
`emupool topology`. `changed` and `touched` tell what has to be read again after a hot-plug event.
The kernel calls a NUMA cell a node.

Invariants of what `interpret` returns:
- pCPUs and cells are sorted by id. Each cell has online pCPUs, and exactly those whose `cell` it
  is: no pCPU is in two.
- `siblings` and `l3` hold online pCPUs only, the pCPU itself among them, and each member of such a
  set that knows its own has the same one.
- What is missing, malformed or contradicted is None (`distances`: no entry), never a guess. All
  but the missing is told in `problems`, a line each. Nothing raises, whatever the files say.

Facts that the rules rest on (Documentation/admin-guide/cputopology.rst, ABI/stable and testing):
- An id of -1 is the default of an architecture that has none. Any other is "hardware's, and
  platform dependent": offsets into a firmware table on arm64, so no upper bound means "none".
- The masks of siblings and caches speak of online pCPUs. What an offline pCPU left behind in its
  own directory is stale, so only its ids are taken.
- The lists of nodes do not keep to online pCPUs, nor to present ones (ppc64).
- A kernel without NUMA has no node, and all memory is equally near to all pCPUs: one cell, 0. With
  nodes, a pCPU in none of them is in no cell: its node is offline.
- A row of `distance` has one column per online node, in order of id.

It costs one pass over the pCPUs with a few set operations each: some milliseconds for 512.
"""

from agent.topology.agreement import ForeignCell, disagreements
from agent.topology.host import Cell, Discovery, Host, Pcpu, to_json
from agent.topology.hotplug import changed, touched
from agent.topology.interpretation import interpret, online_cpus
from agent.topology.readings import (
    Attribute,
    CpuReading,
    NodeReading,
    Readings,
    in_nodes,
    is_l3,
    names_cpu,
)

__all__ = [
    "Attribute",
    "Cell",
    "CpuReading",
    "Discovery",
    "ForeignCell",
    "Host",
    "NodeReading",
    "Pcpu",
    "Readings",
    "changed",
    "disagreements",
    "in_nodes",
    "interpret",
    "is_l3",
    "names_cpu",
    "online_cpus",
    "to_json",
    "touched",
]
