"""Watches the demo from outside: believes libvirt's own record, and no plan."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from agent import domainxml
from agent.cpuset import EMPTY, union
from agent.cycle import pending
from agent.transition import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.cpuset import CellId
    from agent.cycle import CycleResult
    from agent.port import Link


class Witness:
    """Counts what was seen."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.sizes: dict[CellId, list[int]] = {}  # of each pool, whenever it changed
        self.cycles = 0  # after which libvirt was asked
        self.evacuated = 0
        self.pins = 0
        self.wrong = 0  # pins that libvirt does not confirm
        self.intruders = 0  # guests with emulator threads on a claimed pCPU

    def watch(self, result: CycleResult, link: Link) -> None:
        """Take a cycle in; once no step is left to take, compare it with what libvirt says."""
        for cell in result.plan.cells:
            sizes = self.sizes.setdefault(cell.id, [])
            if sizes[-1:] != [len(cell.emulator_cpus)]:
                sizes.append(len(cell.emulator_cpus))
        done = (outcome.step for outcome in result.outcomes if outcome.error is None)
        self.evacuated += sum(step.reason is Reason.EVACUATE for step in done)
        if not pending(result):
            self.cycles += 1
            self._ask(result, link)

    def _ask(self, result: CycleResult, link: Link) -> None:
        domains = {uuid: domainxml.parse(link.xml(uuid)) for uuid in link.uuids()}
        claimed = union(domain.claims for domain in domains.values())
        for guest in result.plan.guests:
            if guest.managed and guest.uuid in domains:
                pinned = domains[guest.uuid].emulator or EMPTY
                self.pins += 1
                self.wrong += not pinned or pinned != guest.emulator_pcpus
                self.intruders += not pinned.isdisjoint(claimed)

    @property
    def content(self) -> bool:
        """Whether all was seen that was to be seen, and nothing else."""
        told = " ".join(self._changes())
        moved = "grew" in told and "shrank" in told and self.evacuated > 0
        return moved and self.pins > 0 and not self.wrong and not self.intruders

    def verdict(self) -> str:
        """Return what was seen, in one line."""
        somebody = f"{self.intruders} times somebody" if self.intruders else "nobody"
        return (
            f"Seen: {'; '.join(self._changes()) or 'no pool changed'}; {self.evacuated} evacuated; "
            f"{somebody} on a claimed pCPU after any of {self.cycles} cycles; "
            f"{self.pins - self.wrong} of {self.pins} pins confirmed by libvirt."
        )

    def _changes(self) -> Iterator[str]:
        """Yield how each pool grew and shrank, from one size above 0 to another."""
        for cell, sizes in sorted(self.sizes.items()):
            changes = [(before, after) for before, after in pairwise(sizes) if before and after]
            if changes:
                verbs = (f"{'grew' if b < a else 'shrank'} {b} -> {a}" for b, a in changes)
                yield f"cell {cell}'s pool {', '.join(verbs)}"
