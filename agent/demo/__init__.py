"""The demo: the daemon's own pipeline, on guests and a host that exist in memory only.

Hypervisor, observer, policy, planner, transition, pinner and rebalancer are the real ones, woken
by libvirt's events through the same inbox. Not real are the host (`sample`), the guests (libvirt's
in-process test driver) and the kernel, which is not there. No root, no daemon, no state file:
nothing on this machine is touched.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from agent import hypervisor
from agent.cycle import Cause, pending
from agent.demo.sample import SCRIPT, NoKernel, SampleHost, Scene
from agent.demo.stage import Act, Page, Screen, portrait
from agent.demo.witness import Witness
from agent.events import Inbox, Named, PinReturned
from agent.hypervisor.sample import SampleGuests
from agent.observer import Observer
from agent.pinner import Pinner
from agent.pool import CellSettings, PoolSettings
from agent.rebalancer import Rebalancer, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from agent.cycle import CycleResult
    from agent.demo.stage import Stage
    from agent.events import Wake
    from agent.port import Link

PACE: Final = 2.2
"""Seconds that a scene lasts on a terminal."""
RATIO: Final = 2
_PATIENCE: Final = 30.0
"""Seconds after which a scene that does not come to its end is given up."""
_SHORTEST_DELAY: Final = 0.2
_BANNER: Final = f"emupool demo: 8 pCPUs in two cells, emulator_overcommit_ratio = {RATIO}"


def run_demo(
    console: Console, pace: float | None = None, keep: Callable[[str], None] | None = None
) -> int:
    """Play the script, `pace` seconds per scene (by default none in a pipe); exit status.

    `keep` is given an SVG picture of the scene with the most guests.
    """
    live = console.is_terminal and not console.is_dumb_terminal
    if pace is None:
        pace = PACE if live else 0.0
    hypervisor.start_event_loop()
    stage = Screen(console, _BANNER) if live else Page(console, _BANNER)
    witness = Witness()
    with ExitStack() as closing:
        closing.callback(stage.close)
        player = Player(stage, witness, pace, closing)
        finished = all(player.play(scene) for scene in SCRIPT)
    if keep is not None:
        keep(portrait(player.fullest, _BANNER))
    console.print(f"\n{witness.verdict()}", highlight=False, soft_wrap=not live)
    return 0 if finished and witness.content else 1


class Player:
    """Wires the pipeline as the daemon does, and makes things happen to it."""

    def __init__(self, stage: Stage, witness: Witness, pace: float, closing: ExitStack) -> None:
        """Connect, and make the first cycle; what is opened is closed by `closing`."""
        self._stage = stage
        self._witness = witness
        self._pace = pace
        self._inbox = Inbox()
        self._guests = SampleGuests()
        closing.callback(self._guests.close)
        self._expected: set[str] = set()
        libvirt = hypervisor.Libvirt(self._guests.URI, 5, 3)
        kernel = NoKernel()
        pinner = Pinner(libvirt.hand, kernel, lambda: self._inbox.put(PinReturned()))
        closing.callback(pinner.stop)
        observer = Observer(SampleHost(), kernel)
        self._rebalancer = Rebalancer(_settings(pace), observer, pinner, checkpoint=None)
        self._link: Link = libvirt.link(self._inbox.put)
        closing.callback(self._link.close)
        self._act = self.fullest = self._open("An empty host: no guests, no pools.")

    def play(self, scene: Scene) -> bool:
        """Make one thing happen and attend to what follows; False if it comes to no end."""
        self._act = self._next(scene.title)
        self._stage.show(self._act)
        if scene.starts is not None:
            self._expected.add(scene.starts.uuid)
            self._guests.start(scene.starts.xml)
        if scene.stops is not None:
            self._expected.discard(scene.stops.uuid)
            self._guests.stop(scene.stops.uuid)
        finished = self._attend(lambda result: self._is_over(scene, result))
        self._stage.curtain(self._act)
        self.fullest = max(self.fullest, self._act, key=lambda act: len(act.result.guests))
        return finished

    def _open(self, title: str) -> Act:
        result = self._rebalancer.cycle(self._link, Cause.START)
        self._witness.watch(result, self._link)
        act = Act(title, {}, result)
        self._stage.show(act)
        self._stage.curtain(act)
        time.sleep(self._pace)
        return act

    def _next(self, title: str) -> Act:
        before = {cell.id: cell.emulator_cpus for cell in self._act.result.plan.cells}
        return Act(title, before, self._act.result)

    def _attend(self, is_over: Callable[[CycleResult], bool]) -> bool:
        """Turn wakes into cycles for the length of a scene, and on until it is over."""
        end = time.monotonic() + self._pace
        while True:
            over = is_over(self._act.result)
            left = end + (0.0 if over else _PATIENCE) - time.monotonic()
            if left <= 0:
                return over
            self._turn(self._inbox.wait(min(left, self._remaining())))

    def _remaining(self) -> float:
        """Return the seconds until time alone calls for a cycle."""
        deadline = self._rebalancer.deadline
        return _PATIENCE if deadline is None else max(0.0, deadline - time.monotonic())

    def _turn(self, wake: Wake) -> None:
        if wake.guests or wake.returned:
            self._cycle(Cause.EVENT, Named(set(wake.guests), freed=set(wake.guests)))
        elif self._remaining() <= 0:
            self._cycle(Cause.DEADLINE, Named())

    def _cycle(self, cause: Cause, named: Named) -> None:
        result = self._rebalancer.cycle(self._link, cause, named)
        self._witness.watch(result, self._link)
        self._act.goes_on(result)
        self._stage.show(self._act)

    def _is_over(self, scene: Scene, result: CycleResult) -> bool:
        managed = {guest.uuid for guest in result.plan.guests if guest.managed}
        if managed != self._expected or result.errors or pending(result):
            return False
        return not scene.waits or all(
            len(cell.emulator_cpus) == cell.need for cell in result.plan.cells
        )


def _settings(pace: float) -> Settings:
    """Return defaults, but for a ratio and a shrink delay that can be seen at work."""
    delay = max(_SHORTEST_DELAY, 1.5 * pace)
    cells = CellSettings(emulator_overcommit_ratio=Fraction(RATIO), shrink_delay=delay)
    return Settings(PoolSettings(default=cells))
