"""What a scenario is given: the host, its guests, and the question whether all is in order."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from lab.inside import host, judge, systemd
from lab.inside.guests import Guest, Node
from lab.inside.judge import Rules
from lab.inside.waiting import SECONDS, wait_in_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lab.inside.agent import Agent, Table
    from lab.inside.host import Cpus

Figures = dict[str, object]

_AT_ONCE = 2  # guests that start; an emulated host has as many pCPUs in truth


class Libvirtd(Protocol):
    """A libvirtd that is ended and started."""

    @property
    def pid(self) -> int:
        """Return its process."""

    def restart(self) -> None:
        """End it as systemd does, and start it again; its guests live on."""

    def kill(self) -> None:
        """Kill it."""

    def start(self) -> None:
        """Start it again."""


class Lab:
    """The host that scenarios run on, one after the other; each begins where the last one ended."""

    slowness = 10.0
    """How much more time things take than on a host that is not emulated."""

    def __init__(
        self,
        machine: str,
        *,
        full: bool,
        agent: Agent | None = None,
        libvirtd: Libvirtd | None = None,
        node: Node | None = None,
    ) -> None:
        """Take the machine's name; `full` scenarios do more of the same.

        Whoever has no systemd brings an agent, a libvirtd and its node.
        """
        self.machine = machine
        self.full = full
        self.agent = agent or systemd.Unit()
        self.libvirtd = libvirtd or systemd.Libvirtd()
        self.node = node or Node()
        self.guests: dict[str, Guest] = {}
        self.rules = Rules()
        self.cells = host.cells()

    # the agent

    def use(
        self,
        ratio: str,
        tables: Mapping[str, Table] = MappingProxyType({}),
        *,
        interval: int | None = None,
        **pool: object,
    ) -> None:
        """Have the agent run with this ratio, and judge by it; `tables` are more of its file."""
        cpus = host.parse(str(pool["cpus"])) if "cpus" in pool else None
        single = cpus is not None and bool(cpus & host.isolated())
        self.rules = Rules(Fraction(ratio), cpus, single=single)
        self.agent.use(ratio, tables, interval, **pool)

    # guests

    def guest(self, number: int, cell: int | None = None) -> Guest:
        """Return the guest of a number: the same in each run."""
        dice = random.Random(number)
        home = sorted(self.cells)[number % len(self.cells)] if cell is None else cell
        cpus = sorted(self.cells[home])
        mine = dice.sample(self.tenants(home), dice.choice((1, 1, 2)))
        original = frozenset({dice.choice(cpus)} - set(mine)) or frozenset({cpus[-1]})
        others = frozenset(dice.sample(cpus, 2))
        return Guest(
            name=f"guest-{number}",
            cell=home,
            claims=tuple(mine),
            original=original,
            iothread=dice.choice((None, original, original, others)),
            policy=dice.choice(("isolate",) * 7 + ("ignore",)),
        )

    def newcomer(self, *, follows: bool = False) -> Guest:
        """Return a managed guest that is not there yet; its iothread `follows` if asked."""
        found = (g for g in map(self.guest, itertools.count(400)) if g.name not in self.guests)
        return next(guest for guest in found if (guest.follows if follows else guest.managed))

    def tenants(self, cell: int) -> list[int]:
        """Return the pCPUs of a cell that vCPUs are pinned to: the lower half of its cores."""
        cpus = sorted(self.cells[cell])
        return cpus[: len(cpus) // 2]

    def start(self, guest: Guest, *, persistent: bool = False) -> Guest:
        """Start a guest."""
        self.node.start(guest, persistent=persistent)
        self.guests[guest.name] = guest
        return guest

    def end(self, guest: Guest) -> None:
        """End a guest."""
        self.node.destroy(guest)
        del self.guests[guest.name]

    def populate(self, number: int) -> list[Guest]:
        """Have the first so many guests run, and no others; those that run already go on."""
        wanted = {guest.name: guest for guest in map(self.guest, range(number))}
        running = self.node.running()
        for name in running - wanted.keys():
            self.node.link.lookupByName(name).destroy()
        with ThreadPoolExecutor(_AT_ONCE) as starters:
            list(starters.map(self.node.start, (g for n, g in wanted.items() if n not in running)))
        self.guests = wanted
        return list(wanted.values())

    def clear(self) -> None:
        """Leave the host as a scenario may expect it: no guests, all pCPUs on line."""
        host.all_online()
        self.node.clear()
        self.guests = {}

    @property
    def present(self) -> Sequence[Guest]:
        """Return the guests that should be there."""
        return tuple(self.guests.values())

    # judging

    def settle(self, what: str = "all pins to be right", seconds: float = SECONDS) -> float:
        """Wait until nothing is wrong with any pin, and return the seconds."""
        return wait_in_order(self.complaints, what, seconds)

    def complaints(self) -> list[str]:
        """Return all that is wrong with any pin now."""
        return judge.complaints(self.node, self.present, self.rules, self.agent.metrics)

    def pool(self, cell: int) -> Cpus:
        """Return where the emulator threads of a cell's guests are."""
        return frozenset().union(
            *(
                thread.cpus
                for guest in self.present
                if guest.managed and guest.cell == cell
                for thread in self.node.threads(guest)
                if thread.role == "emulator"
            )
        )

    def pins(self) -> int:
        """Return how many threads are judged."""
        return sum(len(self.node.threads(guest)) for guest in self.present)
