"""Any history: guests come, go and are meddled with, daemons die; in the end all is as it should.

The model knows of each start of a guest what it was started with, and nothing of how pools are
chosen: that is the planner's, whose own tests hold it to its rules.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from agent.cpuset import EMPTY, CpuSet
from agent.cycle import Cause
from agent.errors import GuestFailed, HypervisorAway, NotPermitted, SysfsError, TargetRefused
from agent.transition import followers
from tests.effort import examples
from tests.node import DELAY, Node, isolated, pools

if TYPE_CHECKING:
    from agent.cycle import CycleResult

NAMES = ("a", "b", "c", "d", "e")
ERRORS = [TargetRefused("no"), GuestFailed("odd"), NotPermitted("no"), HypervisorAway("gone")]

names = st.sampled_from(NAMES)
some_cpus = st.sets(st.integers(0, 7), min_size=1, max_size=4).map(CpuSet)


class Life(RuleBasedStateMachine):
    """One host and a succession of daemons."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="emupool-")
        self.node = Node(Path(self.directory.name, "state.json"))
        self.originals: dict[int, CpuSet | None] = {}  # by the number of a start
        self.uuids = {name: self.node.define(name) for name in NAMES}
        for uuid in self.uuids.values():
            self.node.fake.undefine(uuid)

    def teardown(self) -> None:
        self.node.stop()
        self.directory.cleanup()

    @initialize(ratio=st.integers(1, 3))
    def configure(self, ratio: int) -> None:
        self.node.rebalancer.reconfigure(pools(ratio))
        self.node.settings = pools(ratio)

    # guests

    def running(self, name: str) -> bool:
        guest = self.node.fake.guests.get(self.uuids[name])
        return guest is not None and guest.process is not None

    def started(self, name: str, original: CpuSet | None) -> None:
        self.originals[self.node.fake.guests[self.uuids[name]].running.id] = original

    @rule(
        name=names,
        pin=st.sampled_from(["4", "5", "6-7"]),
        claim=st.none() | st.integers(0, 3),
        transient=st.booleans(),
        threads=st.integers(0, 2),
        managed=st.booleans() | st.just(value=True),
    )
    def start(
        self,
        name: str,
        pin: str,
        claim: int | None,
        threads: int,
        *,
        transient: bool,
        managed: bool,
    ) -> None:
        if self.running(name):
            return
        properties = {
            "emulatorpin": pin,
            "iothreads": threads,
            "iothreadpins": dict.fromkeys(range(1, threads + 1), pin),
            "metadata_policy": "isolate" if managed else "ignore",
        }
        if transient:
            self.node.fake.guests.pop(self.uuids[name], None)
            self.node.create(name, claim=claim, **properties)
        else:
            self.node.start(name, claim=claim, **properties)
        self.started(name, CpuSet.parse(pin))

    @rule(name=names, persist=st.none() | st.sampled_from(["4", "5"]))
    def arrive(self, name: str, persist: str | None) -> None:
        if not self.running(name):
            self.node.fake.guests.pop(self.uuids[name], None)
            uuid = self.node.fake.migrate_in(name, **isolated(None, {"emulatorpin": "3"}))
            self.node.react()
            self.node.fake.finish(uuid, **({} if persist is None else {"emulatorpin": persist}))
            self.started(name, None if persist is None else CpuSet.parse(persist))

    @rule(name=names)
    def stop(self, name: str) -> None:
        if self.running(name):
            self.node.fake.destroy(self.uuids[name])

    @rule(name=names, policy=st.sampled_from(["isolate", "ignore"]))
    def label(self, name: str, policy: str) -> None:
        if self.running(name):
            self.node.fake.label(self.uuids[name], policy, cell="0")

    # meddlers: only with guests that the daemon knows, else nobody could know what was before

    def known(self, name: str) -> bool:
        uuid = self.uuids[name]
        seen = self.node.observer.live(uuid)
        return (
            self.running(name)
            and seen is not None
            and seen.id == self.node.fake.guests[uuid].running.id
            and uuid in self.node.rebalancer._memory.guests
        )

    @rule(name=names, to=some_cpus)
    def pin(self, name: str, to: CpuSet) -> None:
        if self.known(name) and to <= self.node.fake.online():
            self.node.fake.pin(self.uuids[name], to)

    @rule(name=names, to=some_cpus)
    def taskset(self, name: str, to: CpuSet) -> None:
        if self.known(name):
            self.node.fake.guests[self.uuids[name]].running.taskset(to)

    @rule(name=names, to=some_cpus)
    def write_cpuset(self, name: str, to: CpuSet) -> None:
        if self.known(name):
            self.node.fake.guests[self.uuids[name]].running.cpusets["emulator"] = to

    @rule(name=names)
    def spawn(self, name: str) -> None:
        if self.running(name):
            self.node.fake.guests[self.uuids[name]].running.spawn()

    # faults

    @rule(name=names)
    def become_busy(self, name: str) -> None:
        if self.uuids[name] not in self.node.fake._holds:
            self.node.hold(self.uuids[name]).refuse()

    @rule(name=names)
    def become_free(self, name: str) -> None:
        if self.uuids[name] in self.node.fake._holds:
            self.node.fake.free(self.uuids[name])

    @rule(name=names, error=st.sampled_from(ERRORS), call=st.sampled_from(["emulator", "iothread"]))
    def fail_a_pin(self, name: str, error: TargetRefused, call: str) -> None:
        self.node.fake.fail(f"pin_{call}", error, self.uuids[name])

    @rule(name=names, call=st.sampled_from(["xml", "read"]))
    def fail_a_look(self, name: str, call: str) -> None:
        self.node.fake.fail(call, SysfsError("/sys", "?", "odd"), self.uuids[name])

    @rule(copies=st.integers(0, 2))
    def tell(self, copies: int) -> None:
        self.node.fake.copies = copies

    @rule(off=st.sets(st.integers(0, 7), max_size=3).map(CpuSet))
    def unplug(self, off: CpuSet) -> None:
        self.node.fake.unplug(off)

    # the daemon

    @rule()
    def react(self) -> None:
        self.node.react()

    @rule(cause=st.sampled_from([Cause.RECONCILE, Cause.CPU, Cause.RELOAD]))
    def cycle(self, cause: Cause) -> None:
        self.node.cycle(cause)

    @rule(seconds=st.sampled_from([1.0, 5.0, DELAY, 100.0]))
    def wait(self, seconds: float) -> None:
        self.node.wait(seconds)

    @rule()
    def reconnect(self) -> None:
        self.node.rebalancer.reconnected()
        self.node.cycle(Cause.RECONNECT)

    @rule(pins=st.integers(0, 3))
    def die(self, pins: int) -> None:
        """Be killed after so many more pins, and be started again."""
        self.node.die(pins)
        self.node.boot()
        self.node.cycle(Cause.START)

    # in the end

    @rule()
    def calm_down(self) -> None:
        """Let all faults end, and the daemon look around."""
        for uuid in tuple(self.node.fake._holds):
            self.node.fake.free(uuid)
        self.node.fake._faults.clear()
        self.node.fake.copies = 1
        self.node.cycle()
        self.node.wait(2 * DELAY + 1)
        self.node.assert_settled()
        self.check(self.node.cycle())

    def check(self, result: CycleResult) -> None:
        planned = {guest.uuid: guest for guest in result.plan.guests}
        for guest in result.guests:
            if not guest.active:
                continue
            fake = self.node.fake.guests[guest.uuid]
            wanted = planned[guest.uuid]
            if guest.uuid in result.memory.guests:
                assert guest.original.emulator == self.originals[fake.running.id]
                kept = result.memory.guests[guest.uuid]
                assert kept.original.emulator == guest.original.emulator
            if wanted.emulator_pcpus is None:
                continue
            assert EMPTY < wanted.emulator_pcpus <= result.host.online - result.plan.claimed
            assert self.node.placed(guest.uuid) == wanted.emulator_pcpus
            for thread in followers(guest, guest.original):
                assert self.node.fake.masks(guest.uuid, thread.id) == {wanted.emulator_pcpus}

    @precondition(lambda self: not self.node.fake._holds)
    @rule()
    def release(self) -> None:
        """Give everything back, as an operator does who removes the daemon; and start anew."""
        self.calm_down()
        ours = self.node.cycle().memory.guests
        self.node.rebalancer.release(self.node.link)
        for uuid in ours:
            guest = self.node.fake.guests[uuid]
            original = self.originals[guest.running.id] or EMPTY
            if original & self.node.fake.online():
                assert self.node.fake.record(uuid) == original & self.node.fake.online()
            if guest.persistent is None and original:  # nobody can tell any more
                self.originals[guest.running.id] = self.node.fake.record(uuid)
        self.node.boot()
        self.node.cycle(Cause.START)


TestLife = pytest.mark.soak(Life.TestCase)
TestLife.settings = hypothesis_settings(max_examples=examples(300, 10_000), stateful_step_count=30)
