"""What is now, as gauges: a pure function from one cycle's values to label values and numbers."""

from __future__ import annotations

from collections import Counter as Tally
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from agent.cpuset import EMPTY, union
from agent.planner import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from agent.accounting import Bill
    from agent.cpuset import CellId, CpuSet
    from agent.planner import InstanceNUMACell, NUMACell, Plan
    from agent.pool import PoolSettings
    from agent.topology import Host, Pcpu

Labels = tuple[str, ...]
Series = tuple[Labels, float]

GAUGES: Final[Mapping[str, tuple[str, Labels]]] = {
    "emulator_overcommit_ratio": ("Guests, by weight, per emulator pCPU.", ("cell",)),
    "pool_cpus": ("Size of the emulator pool.", ("cell",)),
    "pool_guests": ("Managed guests at home in the cell.", ("cell",)),
    "pool_capacity_guests": ("Guests of weight 1 that the pool carries at the ratio.", ("cell",)),
    "pool_occupancy_ratio": ("Weight of the guests by what the pool carries.", ("cell",)),
    "pool_shortage_cpus": ("pCPUs that the pool lacks to keep the ratio.", ("cell",)),
    "pool_busy_ratio": ("Share of time the pool was not idle since the last cycle.", ("cell",)),
    "cell_cpus": ("pCPUs of the cell, by the first state that holds.", ("cell", "state")),
    "cpu_guests": ("Guests whose emulator threads may use this pool pCPU.", ("cell", "cpu")),
    "guests": ("Defined guests by how they stand.", ("state",)),
    "stuck_threads": ("Threads that do not follow their cpuset.", ("cell",)),
    "unverified_guests": ("Guests whose pin the kernel could not confirm.", ("cell",)),
    "billed_cpus": ("pCPUs that guests are billed.", ("cell", "kind")),
    "build_info": ("1, labelled with the version.", ("version",)),
}
"""Help and labels, by name without prefix."""

UNMANAGED: Final = "unmanaged"
NO_CELL: Final = "none"
"""Label of what is billed on a pCPU that the kernel puts in no NUMA cell."""

_CPU_STATES: Final = ("offline", "claimed", "pool", "reserved", "free")
_BILL_KINDS: Final = ("dedicated", "shared", "emulator")


@dataclass(frozen=True, slots=True)
class Shown:
    """By name of the gauge each series' label values and its value."""

    series: Mapping[str, tuple[Series, ...]]


def shown(
    plan: Plan,
    host: Host,
    settings: PoolSettings,
    bills: Iterable[Bill],
    stuck: Mapping[CellId, int],
    unverified: Mapping[CellId, int],
    pools: Mapping[CellId, CpuSet],
) -> Shown:
    """Return what the gauges say of one cycle.

    `stuck` and `unverified` count threads and guests; a cell that is not in them has none.
    `pools` has the pCPUs that carry emulator threads now, those that only linger included.
    """
    cells = [cell.id for cell in plan.cells]
    return Shown(
        {
            **{name: _of_cells(plan.cells, value) for name, value in _OF_CELL.items()},
            "cell_cpus": _cell_cpus(plan, host, settings, pools),
            "cpu_guests": _cpu_guests(plan, pools),
            "guests": standing(plan.guests),
            "stuck_threads": _counted(cells, stuck),
            "unverified_guests": _counted(cells, unverified),
            "billed_cpus": _billed(cells, bills),
        }
    )


def standing(guests: Iterable[InstanceNUMACell]) -> tuple[Series, ...]:
    """Return how many of `guests` are in each state."""
    tally = Tally(str(guest.state or UNMANAGED) for guest in guests)
    return tuple(((state,), float(tally[state])) for state in (*State, UNMANAGED))


def _occupancy(cell: NUMACell) -> float:
    carries = len(cell.emulator_cpus) * cell.ratio
    if not carries:
        return float("inf") if cell.weight else 0.0
    return float(cell.weight / carries)


_OF_CELL: Final[Mapping[str, Callable[[NUMACell], float]]] = {
    "emulator_overcommit_ratio": lambda cell: float(cell.ratio),
    "pool_cpus": lambda cell: float(len(cell.emulator_cpus)),
    "pool_guests": lambda cell: float(cell.guests),
    "pool_capacity_guests": lambda cell: float(len(cell.emulator_cpus) * cell.ratio // 1),
    "pool_occupancy_ratio": _occupancy,
    "pool_shortage_cpus": lambda cell: float(cell.shortage),
}


def _of_cells(cells: Iterable[NUMACell], value: Callable[[NUMACell], float]) -> tuple[Series, ...]:
    return tuple(((str(cell.id),), value(cell)) for cell in cells)


def _counted(cells: Iterable[CellId], counts: Mapping[CellId, int]) -> tuple[Series, ...]:
    return tuple(((str(cell),), float(counts.get(cell, 0))) for cell in cells)


def _cell_cpus(
    plan: Plan, host: Host, settings: PoolSettings, pools: Mapping[CellId, CpuSet]
) -> tuple[Series, ...]:
    pooled = union(pools.values())

    def state(pcpu: Pcpu, reserved: CpuSet) -> str:
        holds = (not pcpu.online, pcpu.id in plan.claimed, pcpu.id in pooled, pcpu.id in reserved)
        return next((s for s, held in zip(_CPU_STATES, holds, strict=False) if held), "free")

    found: list[Series] = []
    for cell in plan.cells:
        reserved = settings.of(cell.id).reserved_cpus
        tally = Tally(state(pcpu, reserved) for pcpu in host.cpus if pcpu.cell == cell.id)
        found += [((str(cell.id), s), float(tally[s])) for s in _CPU_STATES]
    return tuple(found)


def _cpu_guests(plan: Plan, pools: Mapping[CellId, CpuSet]) -> tuple[Series, ...]:
    tally = Tally(cpu for guest in plan.guests for cpu in guest.emulator_pcpus or EMPTY)
    return tuple(
        ((str(cell.id), str(cpu)), float(tally[cpu]))
        for cell in plan.cells
        for cpu in pools.get(cell.id, EMPTY)
    )


def _billed(cells: Iterable[CellId], bills: Iterable[Bill]) -> tuple[Series, ...]:
    sums = {str(cell): dict.fromkeys(_BILL_KINDS, Fraction(0)) for cell in cells}
    for bill in bills:
        cell = NO_CELL if bill.cell is None else str(bill.cell)
        kinds = sums.setdefault(cell, dict.fromkeys(_BILL_KINDS, Fraction(0)))
        for kind in _BILL_KINDS:
            kinds[kind] += getattr(bill, kind)
    return tuple(
        ((cell, kind), float(value))
        for cell, kinds in sums.items()
        for kind, value in kinds.items()
    )
