"""From cycles to the history of loads, and over a restart by the state file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from agent.advice import Because
from agent.checkpoint import Checkpoint
from agent.config import Config
from agent.config.settings import ReconcileSettings, StateSettings
from agent.cpuset import CellId
from agent.cycle import Cause
from agent.daemon import Daemon
from agent.load import Method, PoolLoad, Used
from agent.metrics import Metrics
from agent.parts import Parts
from agent.pool import NOTHING
from agent.recorder import Recorder
from agent.status import Standing, status
from agent.telling import Teller
from agent.threads import Times
from agent.usage import EmulatorTime, PoolUsage
from tests.fake import Clock, Fake
from tests.killed import NEW, OLD
from tests.logbook import Logbook
from tests.node import HOME, Node, cpus, pools
from tests.schemas import validated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent.load import Slot
    from agent.snapshot import Kernel
    from agent.sysfs import Sysfs
    from agent.threads import Threads

ONE: Final = CellId(1)
SECONDS: Final = 30.0
POOL: Final = {HOME: PoolLoad(1, 0.5)}


class Told:
    """A node whose cycles are told as the daemon tells them, each some seconds after the last.

    In each of its cycles every emulator thread runs 3 s and waits 1 s, every iothread 2 s and 4 s.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.clock = Clock()
        self.recorder = Recorder(clock=self.clock)
        self._looks = 0
        self._teller = Teller(Metrics(), PoolUsage(), EmulatorTime(), self._times, self.recorder)

    def _times(self, _: Kernel) -> Times:
        second = 1_000_000_000 * self._looks
        return Times(((1, 3 * second, 1 * second),), ((2, 2 * second, 4 * second),))

    def cycles(self, number: int, *, iothreads: bool = True) -> None:
        for _ in range(number):
            self._looks += 1
            self.clock.now += SECONDS
            result = self.node.cycle(Cause.RECONCILE)
            self._teller.used(result, iothreads=iothreads)

    def slots(self, cell: CellId = HOME) -> tuple[Slot, ...]:
        self.recorder.close()
        return self.recorder.history.of(cell)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "state.json")
    yield made
    made.stop()


def own_iothread(node: Node) -> str:
    return node.start("a", iothreads=1, iothreadpins={1: "6"})


def follower(node: Node) -> str:
    return node.start("a", iothreads=1, iothreadpins={1: "7"})


def unmanaged(node: Node) -> str:
    return node.start("a", metadata_policy="float")


def left(node: Node) -> str:
    node.rebalancer.reconfigure(pools(reserved_cpus=cpus("0-3")))
    return node.start("a")


COUNTED: Final[dict[str, tuple[Callable[[Node], str], float, float]]] = {
    "a guest in the pool": (lambda node: node.start("a"), 6.0, 2.0),
    "an iothread that follows": (follower, 10.0, 10.0),
    "an iothread that is elsewhere": (own_iothread, 6.0, 2.0),
    "a guest that is not managed": (unmanaged, 0.0, 0.0),
    "a guest that no pool takes": (left, 0.0, 0.0),
}


@pytest.mark.parametrize(("begin", "ran", "waited"), COUNTED.values(), ids=COUNTED)
def test_what_runs_in_a_pool_counts(
    node: Node, begin: Callable[[Node], str], ran: float, waited: float
) -> None:
    begin(node)
    told = Told(node)
    told.cycles(3)
    slots = told.slots() + told.slots(ONE)
    assert sum(slot.ran for slot in slots) == ran
    assert sum(slot.waited for slot in slots) == waited
    assert sum(slot.guests for slot in slots) == (60 if ran else 0)


def test_iothreads_do_not_count_where_they_are_told_to_stay(node: Node) -> None:
    follower(node)
    told = Told(node)
    told.cycles(2, iothreads=False)
    assert [slot.ran for slot in told.slots()] == [3]


def test_a_pool_counts_with_its_pcpus_and_its_guests_with_their_weight(node: Node) -> None:
    for name in ("a", "b", "c"):
        node.start(name)
    node.start("light", metadata_attributes={"cell": "0", "weight": "0.5"})
    told = Told(node)
    told.cycles(2)
    (slot,) = told.slots()
    assert (slot.seconds, slot.guests, slot.weight) == (30, 120, 105)
    assert slot.cpus == 60  # at ratio 2


def test_in_a_dry_run_nobody_is_in_a_pool(tmp_path: Path) -> None:
    node = Node(tmp_path / "state.json", pools(dry_run=True))
    node.start("a")
    told = Told(node)
    told.cycles(2)
    node.stop()
    (slot,) = told.slots()
    assert (slot.ran, slot.cpus, slot.busy) == (3, 0, 0)


def test_a_status_has_the_advice(node: Node) -> None:
    for name in ("a", "b"):
        node.start(name)
    told = Told(node)
    result = node.cycle(Cause.RECONCILE)
    standing = Standing("qemu:///system", True, result)  # noqa: FBT003 - connected

    def advice() -> list[dict[str, Any]]:
        document = status(standing, {}, told.recorder.history)["advice"]
        sent = json.loads(json.dumps({"schema": 1, **document}))
        cells: list[dict[str, Any]] = validated("advice", sent)["cells"]
        return cells

    assert [row["because"] for row in advice()] == [Because.TOO_SHORT, Because.NO_GUESTS]
    told.cycles(12 * 10)  # an hour of slots
    told.recorder.close()
    row, other = advice()
    assert (row["ratio"], row["suggested"], row["because"]) == ("2", "4", Because.SEEN)
    assert row["evidence"]["used_per_weight"] == pytest.approx(0.1)
    assert other["suggested"] is None


# --- the state file ------------------------------------------------------------------------------


def used(ran: float = 1.0) -> list[Used]:
    return [Used("a", "1", HOME, 1.0, ran, 0.5)]


def recalled(path: Path) -> Checkpoint:
    checkpoint = Checkpoint(path, "boot")
    checkpoint.recall(pytest.fail)
    return checkpoint


def test_a_restart_remembers_and_a_killed_daemon_loses_what_is_not_closed(tmp_path: Path) -> None:
    path, clock = tmp_path / "state.json", Clock()
    checkpoint = recalled(path)
    recorder = Recorder(checkpoint, clock=clock)
    inodes = set()
    for _ in range(40):
        clock.now += SECONDS
        known, text = recorder.history, checkpoint.usage
        recorder.look(used(), POOL)
        assert (checkpoint.usage is text) == (recorder.history is known)
        checkpoint.save(OLD, clock.now)
        inodes.add(path.stat().st_ino)
    assert len(recorder.history.of(HOME)) == 4
    assert 0 < len(inodes) <= 5  # the first save, and one for each slot
    killed = Recorder(recalled(path), clock=clock)
    assert killed.history == recorder.history
    recorder.close()
    checkpoint.save(OLD, clock.now)
    assert len(Recorder(recalled(path), clock=clock).history.of(HOME)) == 5
    assert recalled(path).recall(pytest.fail) == OLD


@pytest.mark.parametrize("by", ["a daemon", "a release"])
def test_what_was_recalled_is_kept_by_the_first_save(tmp_path: Path, by: str) -> None:
    path, clock = tmp_path / "state.json", Clock()
    checkpoint = recalled(path)
    recorder = Recorder(checkpoint, clock=clock)
    for _ in range(12):
        clock.now += SECONDS
        recorder.look(used(), POOL)
    recorder.close()
    checkpoint.save(OLD, clock.now)
    again = recalled(path)
    if by == "a daemon":
        Recorder(again, clock=clock)
    again.save(NEW, clock.now)
    assert Recorder(recalled(path), clock=clock).history == recorder.history


@pytest.mark.parametrize(
    "usage",
    ["null", "7", '{"version": 2, "slot": 300.0, "cells": {}}', '{"version": 1, "cells": [[]]}'],
)
def test_a_history_that_is_none_is_lost_and_nothing_else(tmp_path: Path, usage: str) -> None:
    path = tmp_path / "state.json"
    checkpoint = recalled(path)
    checkpoint.usage = usage
    checkpoint.save(OLD, 1.0)
    with Logbook() as book:
        again = recalled(path)
        recorder = Recorder(again)
        warned = book.told("state.unfit")
    assert recorder.history.cells == {}
    assert recalled(path).recall(pytest.fail) == OLD
    assert again.failures == {"unfit": 0, "unsaved": 0}
    assert [event["error"].startswith(f"{path}: usage: ") for event in warned] == (
        [] if usage == "null" else [True]
    )
    again.save(OLD, 2.0)
    assert json.loads(path.read_text())["usage"]["cells"] == {}


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_stop_saves_the_slot_that_is_open_unless_it_was_a_dry_run(
    tmp_path: Path, *, dry_run: bool
) -> None:
    host, path = Fake(), tmp_path / "state.json"

    def begun(checkpoint: Checkpoint) -> Recorder:
        clock = Clock()
        recorder = Recorder(checkpoint, clock=clock)
        for _ in range(2):
            recorder.look(used(), POOL)
            clock.now += SECONDS
        return recorder

    config = Config(state=StateSettings(path), reconcile=ReconcileSettings(dry_run=dry_run))
    parts = Parts(host, cast("Sysfs", host), cast("Threads", host), recorder=begun)
    Daemon(config, parts)._end()
    if dry_run:
        assert not path.exists()
    else:
        assert len(json.loads(path.read_text())["usage"]["cells"][str(HOME)]) == 1


def test_another_method_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    checkpoint = recalled(path)
    Recorder(checkpoint, Method(slot=60.0))
    checkpoint.save(NOTHING, 1.0)
    assert Recorder(recalled(path)).history.cells == {}
