"""Lists and guests that are being started: who asks, what comes of it, and what is let be."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from agent import inotify
from agent.errors import GuestFailed, HypervisorAway
from agent.events import Counted, Inbox
from agent.lookout import GRACE, PACE, Doubt, Lookout
from tests.fake import Fake
from tests.guests import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.events import Wake


class Bench:
    """A lookout over a fake, and a directory where cgroups appear."""

    def __init__(self, folder: Path, pause: float = 0) -> None:
        self.folder = folder
        self.fake = Fake()
        self.inbox = Inbox()
        watch = inotify.watch()
        assert watch is not None
        self.lookout = Lookout(self.fake.roster, self.inbox.put, watch, pause)
        self.lookout.watch([str(folder)])
        self.lookout.start()

    def start(self, name: str, cgroup: str = "qemu-{}-{}.libvirt-qemu") -> tuple[int, str]:
        """Start a guest; its cgroup appears."""
        uuid = self.fake.create(name)
        process = self.fake.guests[uuid].running
        (self.folder / cgroup.format(process.id, name)).mkdir()
        return process.id, uuid

    def wake(self) -> Wake:
        return self.inbox.wait(10)

    def nothing(self) -> bool:
        """Tell whether nothing has come, once all that was asked before is answered."""
        self.lookout.ask()
        wake = self.wake()
        return wake.counted is not None and not wake.starting


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.lookout.stop()


def test_a_list_comes_when_it_is_asked_for_and_not_before(bench: Bench) -> None:
    uuids = [bench.fake.create(name) for name in "abc"]
    ids = {bench.fake.guests[uuid].running.id for uuid in uuids}
    assert bench.fake.count("roster") == 0
    for _ in range(2):
        bench.lookout.ask()
        assert bench.wake().counted == Counted(frozenset(ids))
    assert bench.fake.count("roster") == 1


def test_requests_that_come_while_a_list_is_taken_are_one(bench: Bench) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        entered.set()
        assert go_on.wait(10)

    bench.fake.hook = wait
    bench.lookout.ask()
    assert entered.wait(10)
    for _ in range(100_000):  # more than a pipe holds
        bench.lookout.ask()
    go_on.set()
    bench.lookout.stop()
    wait_until(lambda: not bench.fake.connections, 10, "the lookout to end")
    assert bench.fake.count("active_ids") <= 2


@pytest.mark.parametrize("cgroup", ["qemu-{}-{}.libvirt-qemu", r"machine-qemu\x2d{}\x2d{}.scope"])
def test_a_guest_is_read_when_its_cgroup_appears(bench: Bench, cgroup: str) -> None:
    _, uuid = bench.start("a", cgroup)
    assert bench.wake().starting == {uuid: bench.fake.guests[uuid].xml()}


def test_a_guest_that_has_a_cgroup_in_each_tree_is_read_once(bench: Bench) -> None:
    number, uuid = bench.start("a")
    (bench.folder / rf"machine-qemu\x2d{number}\x2da.scope").mkdir()
    assert set(bench.wake().starting) == {uuid}
    assert bench.nothing()
    assert bench.fake.count("definition") == 1


def test_a_guest_that_is_known_is_not_read(bench: Bench) -> None:
    bench.lookout.known = frozenset({1})
    number, _ = bench.start("a")
    assert number == 1
    assert bench.nothing()
    assert bench.fake.count("definition") == 0


def test_a_guest_whose_start_is_known_by_then_is_not_passed_on(bench: Bench) -> None:
    def announce(_: object) -> None:
        bench.lookout.known = frozenset({1})

    bench.fake.hook = announce
    number, _ = bench.start("a")
    assert number == 1
    assert bench.nothing()
    assert bench.fake.count("definition") == 1


def test_what_is_read_early_is_held_back_while_lists_are_taken(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pause=3600)
    bench.start("a")
    wait_until(lambda: bench.fake.count("definition") == 1, 10, "it to be read")
    assert bench.nothing()
    bench.lookout.stop()


@pytest.mark.parametrize(
    "name",
    [
        "emulator",
        "qemu-x-a.libvirt-qemu",
        "qemu-9999999999-a.libvirt-qemu",
        "lxc-1-a.libvirt-lxc",
        "machine-lxc\\x2d1\\x2da.scope",
    ],
)
def test_what_is_no_guest_of_ours_is_let_be(bench: Bench, name: str) -> None:
    (bench.folder / name).mkdir()
    (bench.folder / "qemu-1-a.libvirt-qemu").touch()
    assert bench.nothing()
    assert bench.fake.count("definition") == 0


def test_a_guest_that_did_not_start_after_all_is_forgotten(bench: Bench) -> None:
    (bench.folder / "qemu-77-a.libvirt-qemu").mkdir()
    assert bench.nothing()
    assert bench.fake.count("definition") == 1
    assert bench.fake.count("roster") == 1


@pytest.mark.parametrize("error", [HypervisorAway("gone"), GuestFailed("odd")])
def test_a_list_that_fails_is_taken_again_when_asked_for(bench: Bench, error: Exception) -> None:
    bench.lookout.ask()
    assert bench.wake().counted is not None
    bench.fake.fail("active_ids", error)  # type: ignore[arg-type]
    bench.lookout.ask()
    wait_until(lambda: bench.fake.count("active_ids") == 2, 10, "the list to fail")
    assert bench.nothing()


def test_after_a_loss_the_next_question_goes_over_a_new_connection(bench: Bench) -> None:
    bench.lookout.ask()
    assert bench.wake().counted is not None
    bench.fake.lose()
    bench.lookout.ask()
    wait_until(lambda: bench.fake.count("active_ids") == 2, 10, "the loss to be noticed")
    _, uuid = bench.start("a")
    assert set(bench.wake().starting) == {uuid}
    assert bench.fake.count("roster") == 2


def test_directories_that_come_later_can_be_watched_again_and_again(bench: Bench) -> None:
    later = bench.folder / "machine"
    bench.lookout.watch([str(later)])
    later.mkdir()
    bench.folder = later
    for _ in range(3):
        bench.lookout.watch([str(later), "/nowhere", str(later)])
    _, uuid = bench.start("a")
    assert set(bench.wake().starting) == {uuid}
    assert bench.nothing()


def test_without_inotify_lists_are_taken_all_the_same() -> None:
    fake, inbox = Fake(), Inbox()
    lookout = Lookout(fake.roster, inbox.put)
    lookout.watch(["/nowhere"])
    lookout.start()
    lookout.ask()
    assert inbox.wait(10).counted == Counted(frozenset())
    lookout.stop()
    wait_until(lambda: not fake.connections, 10, "the lookout to end")


# --- when lists and events disagree --------------------------------------------------------------


def ids(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


def test_a_list_that_agrees_leaves_no_doubt() -> None:
    doubt = Doubt()
    assert not doubt.weigh(ids(1, 2), ids(1, 2), 100.0)
    assert doubt.due is None
    assert not doubt.wants_list(1000.0)


@pytest.mark.parametrize(("known", "counted"), [(ids(1), ids(1, 2)), (ids(1, 2), ids(1))])
def test_a_disagreement_counts_when_it_has_lasted(
    known: frozenset[int], counted: frozenset[int]
) -> None:
    doubt = Doubt()
    assert not doubt.weigh(known, counted, 100.0)
    assert doubt.due == 100.0 + GRACE
    assert not doubt.wants_list(100.0 + GRACE / 2)
    assert not doubt.weigh(known, counted, 100.0 + GRACE / 2)
    assert doubt.due == 100.0 + GRACE
    assert doubt.wants_list(100.0 + GRACE)
    assert not doubt.wants_list(100.0 + GRACE)
    assert doubt.weigh(known, counted, 100.0 + GRACE)


def test_a_disagreement_that_goes_away_is_forgotten() -> None:
    doubt = Doubt()
    doubt.weigh(ids(), ids(1), 100.0)
    doubt.weigh(ids(1), ids(1), 100.1)
    assert not doubt.weigh(ids(), ids(1), 100.0 + GRACE)
    assert doubt.due == 100.0 + 2 * GRACE


def test_each_disagreement_has_its_own_time() -> None:
    doubt = Doubt()
    doubt.weigh(ids(), ids(1), 100.0)
    doubt.weigh(ids(), ids(1, 2), 100.5)
    assert doubt.weigh(ids(), ids(1, 2), 101.0)
    assert doubt.due == 100.5 + GRACE


def test_what_cannot_be_settled_is_told_once() -> None:
    doubt = Doubt()
    assert [doubt.weigh(ids(), ids(1), 100.0 + n * GRACE) for n in range(5)] == [
        False,
        True,
        False,
        False,
        False,
    ]
    assert doubt.due is None
    doubt.weigh(ids(1), ids(1), 200.0)
    assert [doubt.weigh(ids(), ids(1), 300.0 + n * GRACE) for n in range(2)] == [False, True]


def test_what_happens_calls_for_a_list_at_once_and_a_storm_for_one_now_and_then() -> None:
    doubt, asked = Doubt(), []
    for number in range(250):  # something happens each 10 ms, for 2.5 s
        now = 100.0 + number / 100
        doubt.happened(now)
        assert doubt.due is not None
        if doubt.wants_list(now):
            asked.append(now)
    assert asked == [pytest.approx(100.0 + n * PACE, abs=0.011) for n in range(len(asked))]
    assert len(asked) == 3
    assert doubt.wants_list(asked[-1] + PACE)  # for what happened since
    assert doubt.due is None
    doubt.happened(200.0)
    assert doubt.due == 200.0


def test_a_list_that_takes_long_is_not_asked_for_again_and_again() -> None:
    doubt = Doubt()
    doubt.weigh(ids(), ids(1), 100.0)
    assert doubt.wants_list(101.0)
    assert doubt.due == 101.0 + GRACE


def test_a_look_at_everything_settles_all_doubts() -> None:
    doubt = Doubt()
    doubt.weigh(ids(), ids(1), 100.0)
    doubt.happened(100.0)
    doubt.settle()
    assert doubt.due is None
    assert not doubt.weigh(ids(), ids(1), 100.0 + GRACE)
