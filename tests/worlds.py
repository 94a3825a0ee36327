"""A world: a host, its guests and settings, and what the daemon would remember of them.

Plans are made in it (`plan`) and carried out step by step (`carry_out`); each answer is a new
world. No libvirt, no kernel, no clock: `later` is how time passes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agent import transition
from agent.cycle import remember
from agent.planner import Plan, Question, State, plan
from agent.pool import NOTHING, Memory, PoolSettings
from agent.transition import Kind, Present, Step
from tests.builders import EIGHT, ISOLATE, guest, obedient, pool_settings, uuid_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.cpuset import CpuSet
    from agent.policy import Policy
    from agent.snapshot import Guest
    from agent.topology import Host


@dataclass(frozen=True, slots=True)
class World:
    """A host with guests, and what the daemon would remember; `plan` and `carry_out` move it on."""

    host: Host
    guests: tuple[Guest, ...] = ()
    settings: PoolSettings = field(default_factory=PoolSettings)
    memory: Memory = NOTHING
    now: float = 1000.0
    manage: frozenset[Policy] = ISOLATE
    partition: CpuSet | None = None
    damped: bool = True

    @property
    def question(self) -> Question:
        return Question(
            host=self.host,
            settings=self.settings,
            manage=self.manage,
            guests=self.guests,
            memory=self.memory,
            now=self.now,
            partition=self.partition,
            damped=self.damped,
        )

    def plan(self) -> Plan:
        return plan(self.question)

    @property
    def present(self) -> Present:
        return Present(self.host.online, self.memory.guests, self.settings.iothreads)

    def steps(self, decided: Plan | None = None) -> tuple[Step, ...]:
        return transition.diff(decided or self.plan(), self.guests, self.present)

    def carry_out(self, decided: Plan, steps: Sequence[Step], done: int | None = None) -> World:
        """Return the world after the first `done` of `steps`, as the daemon would remember it."""
        finished = steps if done is None else steps[:done]
        undone = frozenset(step.uuid for step in steps[len(finished) :])
        memory = remember(decided.memory, decided, self.memory, self.guests, undone)
        return replace(self, guests=after(self.guests, finished), memory=memory)

    def settle(self) -> World:
        """Return the world after one whole cycle."""
        decided = self.plan()
        return self.carry_out(decided, self.steps(decided))

    def later(self, seconds: float) -> World:
        return replace(self, now=self.now + seconds)

    def having(self, *guests: Guest) -> World:
        """Return the world with exactly these guests."""
        return replace(self, guests=guests)

    def find(self, number: int) -> Guest:
        return next(one for one in self.guests if one.uuid == uuid_of(number))

    def without(self, number: int) -> World:
        return replace(self, guests=tuple(g for g in self.guests if g.uuid != uuid_of(number)))

    def changed(self, other: Guest) -> World:
        """Return the world in which the guest of that UUID is `other`."""
        same = (other if one.uuid == other.uuid else one for one in self.guests)
        return replace(self, guests=tuple(same))


def after(guests: Iterable[Guest], steps: Iterable[Step]) -> tuple[Guest, ...]:
    """Return the guests after `steps`, with a kernel that obeyed if there was one to see."""
    found = {one.uuid: one for one in guests}
    for step in steps:
        before = found[step.uuid]
        if step.kind is Kind.EMULATOR:
            now = replace(before, domain=replace(before.domain, emulator=step.to))
            if now.kernel is not None:
                now = replace(now, kernel=obedient(step.to, now.kernel.parent))
        else:
            threads = tuple(
                replace(thread, cpus=step.to) if thread.id == step.iothread else thread
                for thread in before.domain.iothreads
            )
            now = replace(before, domain=replace(before.domain, iothreads=threads))
        found[step.uuid] = now
    return tuple(found.values())


def pools(decided: Plan) -> dict[int, str]:
    """Return the pool of each cell, in the kernel's notation."""
    return {int(cell.id): str(cell.emulator_cpus) for cell in decided.cells}


def target(decided: Plan, number: int) -> str | None:
    """Return what a guest may use, in the kernel's notation."""
    planned = next(one for one in decided.guests if one.uuid == uuid_of(number))
    return None if planned.emulator_pcpus is None else str(planned.emulator_pcpus)


def pool(world: World) -> str:
    """Return the pool of the first cell."""
    return str(world.plan().cells[0].emulator_cpus)


def states(decided: Plan) -> dict[int, State | None]:
    return {int(one.uuid[-12:], 16): one.state for one in decided.guests}


def brief(steps: tuple[Step, ...]) -> list[tuple[int, str, str]]:
    """Return number, reason and target of each step."""
    return [(int(step.uuid[-12:], 16), step.reason, str(step.to)) for step in steps]


def placed(*numbers: int, pool: str = "2-3", **keys: Any) -> World:  # noqa: ANN401 - of `guest`
    """Return a world whose guests, started on 7, were placed on `pool`."""
    settings = pool_settings(ratio=1, cpus=pool, min_cpus=2)
    started = tuple(guest(number, emulator="7", **keys) for number in numbers)
    return World(EIGHT, started, settings).settle()
