"""What each guest is billed, exactly.

As the ratio's proposers meant it: a claim counts 1, any other vCPU 1/cpu_overcommit_ratio, and a
guest whose emulator threads are in a pool `weight/emulator_overcommit_ratio` more. A vCPU is
billed in the cell of the lowest pCPU of its mask, the emulator share in the pool's cell at that
cell's ratio.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from agent.cpuset import CellId
    from agent.planner import InstanceNUMACell, Plan
    from agent.snapshot import Guest
    from agent.topology import Host

_NONE: Final = Fraction(0)


@dataclass(frozen=True, slots=True)
class BillingSettings:
    """The `[billing]` table."""

    cpu_overcommit_ratio: Fraction = Fraction(16)


@dataclass(frozen=True, slots=True)
class Bill:
    """What one guest owes in one cell, in pCPUs; the cell is None where its pCPU has none."""

    uuid: str
    cell: CellId | None
    dedicated: Fraction = _NONE
    shared: Fraction = _NONE
    emulator: Fraction = _NONE

    @property
    def total(self) -> Fraction:
        """The sum of the three kinds."""
        return self.dedicated + self.shared + self.emulator


def account(
    host: Host, settings: BillingSettings, plan: Plan, guests: Iterable[Guest]
) -> tuple[Bill, ...]:
    """Return the bills of all active guests, by UUID and cell, empty ones left out."""
    planned = {guest.uuid: guest for guest in plan.guests}
    ratios = {cell.id: cell.ratio for cell in plan.cells}
    cells = {pcpu.id: pcpu.cell for pcpu in host.cpus}
    anywhere = cells.get(host.online.first()) if host.online else None
    bills = [
        bill
        for guest in guests
        if guest.active
        for bill in _bills(guest, planned[guest.uuid], settings, ratios, cells, anywhere)
    ]
    return tuple(
        sorted(bills, key=lambda bill: (bill.uuid, -1 if bill.cell is None else bill.cell))
    )


def _bills(
    guest: Guest,
    planned: InstanceNUMACell,
    settings: BillingSettings,
    ratios: Mapping[CellId, Fraction],
    cells: Mapping[int, CellId | None],
    anywhere: CellId | None,
) -> Iterator[Bill]:
    """Yield one bill per cell; a vCPU without a mask is billed in the cell `anywhere`."""
    dedicated: Counter[CellId | None] = Counter()
    shared: Counter[CellId | None] = Counter()
    for vcpu in guest.domain.vcpus:
        cell = anywhere if vcpu.cpus is None else cells.get(vcpu.cpus.first())
        (shared if vcpu.claim is None else dedicated)[cell] += 1
    pooled = planned.emulator_pcpus is not None and not planned.evacuated
    home = planned.cell if pooled else None
    for cell in {*dedicated, *shared} | ({home} if home is not None else set()):
        yield Bill(
            guest.uuid,
            cell,
            dedicated=Fraction(dedicated[cell]),
            shared=shared[cell] / settings.cpu_overcommit_ratio,
            emulator=planned.weight / ratios[cell] if cell is not None and cell == home else _NONE,
        )
