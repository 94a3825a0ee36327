"""A host with one daemon's parts over tests/fake.py, and what a test of cycles asks of them.

Both clocks stand still, that of the cycles and that of the pins: time passes where a test says so,
and a call is overdue where a test holds its guest.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from agent.checkpoint import Checkpoint
from agent.cpuset import CellId, CpuSet
from agent.cycle import Cause, pending
from agent.errors import EmupoolError, HypervisorAway
from agent.events import Inbox, Named, PinReturned
from agent.observer import Observer
from agent.pinner import Pinner
from agent.policy import GuestSettings
from agent.pool import NOTHING, CellSettings, PoolSettings, PoolSource
from agent.port import Topic
from agent.rebalancer import Rebalancer, Settings
from tests.fake import Call, Clock, Fake

if TYPE_CHECKING:
    from pathlib import Path

    from agent.cycle import CycleResult
    from agent.placing import InstanceNUMACell
    from agent.port import GuestEvent
    from agent.transition import Reason
    from tests.fakeguest import Hold

HOME = CellId(0)
DELAY = 30.0


def pools(ratio: int = 2, *, dry_run: bool = False, **pool: object) -> Settings:
    """Return settings of pools of free pCPUs; `pool` are fields of CellSettings."""
    cell = CellSettings(Fraction(ratio), PoolSource.FREE, shrink_delay=DELAY)
    return Settings(
        PoolSettings(default=replace(cell, **pool)),  # type: ignore[arg-type]
        GuestSettings(),
        dry_run=dry_run,
    )


class Node:
    """A host of two cells (pCPUs 0-3 and 4-7, two to a core), and the parts of one daemon."""

    def __init__(
        self, state: Path, settings: Settings | None = None, fake: Fake | None = None
    ) -> None:
        self.fake = fake or Fake()
        self.clock = Clock()
        self.path = state
        self.settings = settings or pools()
        self.started = False
        self.daemons: list[Pinner] = []
        self.boot()

    def boot(self) -> None:
        """Start a daemon; what was before it is forgotten, but for the state file."""
        self.inbox = inbox = Inbox()
        self.pin_clock = Clock()
        self.fake.connections.clear()
        self.pinner = Pinner(
            self.fake.hand, self.fake, lambda: inbox.put(PinReturned()), 1, self.pin_clock
        )
        self.daemons.append(self.pinner)
        checkpoint = Checkpoint(self.path, "this boot")
        saved = checkpoint.load()
        self.observer = Observer(self.fake, self.fake)
        self.rebalancer = Rebalancer(
            self.settings,
            self.observer,
            self.pinner,
            checkpoint,
            saved.memory if saved is not None else NOTHING,
            self.clock,
            self.fake,
        )
        self.link = self.fake.link(self.inbox.put)
        if not self.started:
            self.started = True
            self.cycle(Cause.START)

    def die(self, after: int) -> None:
        """Run a cycle that is killed after so many pins; the state file stays as it was then."""
        self.fake.pins.clear()
        left = [self._state()]

        def watch(call: Call) -> None:
            if call.name.startswith("pin_"):
                if len(self.fake.pins) <= after:
                    left[0] = self._state()
                if len(self.fake.pins) >= after:
                    raise HypervisorAway("killed")

        self.fake.hook = watch
        with suppress(EmupoolError):
            self.rebalancer.cycle(self.link, Cause.RECONCILE)
        self.fake.hook = lambda _: None
        self.pinner.stop()
        self.path.unlink(missing_ok=True)
        if left[0] is not None:
            self.path.write_bytes(left[0])

    def _state(self) -> bytes | None:
        return self.path.read_bytes() if self.path.exists() else None

    def stop(self) -> None:
        for hold in tuple(self.fake._holds.values()):
            hold.refuse()
        for pinner in self.daemons:
            pinner.stop()

    # guests: at home in cell 0, and started on a pCPU of cell 1

    def start(self, name: str, *, claim: int | None = None, **properties: object) -> str:
        return self.fake.start(self.define(name, claim=claim, **properties))

    def define(self, name: str, *, claim: int | None = None, **properties: object) -> str:
        return self.fake.define(name, **isolated(claim, properties))

    def create(self, name: str, *, claim: int | None = None, **properties: object) -> str:
        return self.fake.create(name, **isolated(claim, properties))

    def hold(self, uuid: str) -> Hold:
        """Let pins of a guest wait; whoever waits for them finds that they are overdue."""
        return self.fake.hold(uuid, self._pass)

    def _pass(self) -> None:
        self.pin_clock.now += 1

    # cycles

    def cycle(self, cause: Cause = Cause.RECONCILE, *named: str) -> CycleResult:
        """Run one cycle; whatever it does, time alone must not call for another one at once."""
        self.fake.log.clear()
        self.fake.pins.clear()
        result = self.rebalancer.cycle(self.link, cause, Named(set(named)))
        self.check_patience()
        return result

    def patience(self) -> float | None:
        """Return the seconds until time alone calls for a cycle."""
        deadline = self.rebalancer.deadline
        return None if deadline is None else deadline - self.clock.now

    def check_patience(self) -> None:
        assert (self.patience() or 1) > 0

    def react(self) -> CycleResult | None:
        """Do what the daemon does with all that came in; None: nothing."""
        wake = self.inbox.wait(0)
        named = Named.of(wake, self._is_echo)
        if not named.guests and not wake.returned:
            return None
        self.fake.log.clear()
        self.fake.pins.clear()
        result = self.rebalancer.cycle(self.link, Cause.EVENT, named)
        self.check_patience()
        return result

    def foresee(self, uuid: str) -> CycleResult:
        """Do what the daemon does with a guest's definition before its start is announced."""
        self.fake.log.clear()
        early = {uuid: self.fake.guests[uuid].xml()}
        return self.rebalancer.cycle(self.link, Cause.EVENT, Named({uuid}, early=early))

    def reacted(self) -> CycleResult:
        result = self.react()
        assert result is not None
        return result

    def _is_echo(self, event: GuestEvent) -> bool:
        return event.topic is Topic.TUNABLE and self.rebalancer.expected(event.uuid, event.tuned)

    def returned(self) -> CycleResult:
        """Wait until a call that was given up on returns, and do what the daemon does then."""
        wake = self.inbox.wait(10)
        while not wake.returned:
            wake = self.inbox.wait(10)
            assert wake.returned or wake.guests
        self.fake.log.clear()
        return self.rebalancer.cycle(self.link, Cause.EVENT)

    def wait(self, seconds: float) -> CycleResult | None:
        """Let time pass, cycling as the deadline says; return the last cycle."""
        end, result = self.clock.now + seconds, None
        for _ in range(1000):
            deadline = self.rebalancer.deadline
            if deadline is None or deadline > end:
                self.clock.now = end
                return result
            self.clock.now = deadline
            result = self.cycle(Cause.DEADLINE)
        raise AssertionError("it cycles for ever")

    # what is

    def pool(self, result: CycleResult, cell: CellId = HOME) -> CpuSet:
        return next(one.emulator_cpus for one in result.plan.cells if one.id == cell)

    def placed(self, uuid: str) -> CpuSet:
        """Return where the emulator threads are, as libvirt and the kernel agree."""
        (mask,) = self.fake.masks(uuid)
        assert self.fake.record(uuid) == mask
        return mask

    def assert_settled(self) -> None:
        """Nothing is left to do, whoever looks."""
        for cause in (Cause.RECONCILE, Cause.RECONNECT, Cause.START):
            if cause is not Cause.RECONCILE:
                self.rebalancer.reconnected()
            result = self.cycle(cause)
            assert result.steps == ()
            assert self.fake.pins == []
            assert pending(result) == ()


def isolated(claim: int | None, properties: dict[str, object]) -> dict[str, object]:
    own: dict[str, object] = {
        "metadata_policy": "isolate",
        "metadata_attributes": {"cell": "0"},
        "emulatorpin": "7",
    }
    if claim is not None:
        own["vcpupins"] = {0: str(claim)}
    return own | properties


def cpus(text: str) -> CpuSet:
    return CpuSet.parse(text)


def planned(result: CycleResult, uuid: str) -> InstanceNUMACell:
    return next(guest for guest in result.plan.guests if guest.uuid == uuid)


def reasons(result: CycleResult) -> list[Reason]:
    return [outcome.step.reason for outcome in result.outcomes if outcome.error is None]


def failed(result: CycleResult) -> list[tuple[str, type]]:
    return [(uuid, type(error)) for uuid, error in result.errors]
