"""The deciding thread's turns, one by one: libvirt comes and goes, and the watchdog is fed."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import pytest

from agent.config import Config
from agent.config.settings import ReconcileSettings, StateSettings
from agent.daemon import Daemon
from agent.errors import Held, HypervisorAway, NotPermitted
from agent.events import CpusUnwatched, LinkFailed, LinkUp, Wake
from agent.parts import Parts
from agent.port import GuestEvent, LinkLost, Topic
from tests.fake import Call, Fake
from tests.logbook import Logbook

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.sysfs import Sysfs
    from agent.threads import Threads


@pytest.fixture
def book() -> Iterator[Logbook]:
    with Logbook() as kept:
        yield kept


@pytest.fixture
def daemon(tmp_path: Path, book: Logbook) -> Daemon:
    assert book.text == ""
    return lonely(tmp_path)


def lonely(folder: Path) -> Daemon:
    """Return a daemon that runs a cycle a day, and has no libvirt yet."""
    host = Fake()
    config = Config(
        state=StateSettings(folder / "state.json"), reconcile=ReconcileSettings(interval=86400)
    )
    return Daemon(config, Parts(host, cast("Sysfs", host), cast("Threads", host)))


def linked(daemon: Daemon) -> Wake:
    return Wake(link=LinkUp(daemon._connector._hypervisor.link(daemon._inbox.put)))


def test_libvirt_away_is_told_once_and_so_is_its_return(daemon: Daemon, book: Logbook) -> None:
    for why in ("refused", "refused again", "timed out"):
        daemon._turn(Wake(failed=LinkFailed(why)))
    for _ in range(2):
        daemon._turn(linked(daemon))
        for why in ("keepalive", "again"):
            daemon._turn(Wake(lost=LinkLost(why)))
            daemon._turn(Wake(failed=LinkFailed("refused")))
    told = [(e["event"], e.get("why")) for e in book.told("libvirt.away", "libvirt.connected")]
    assert told == [
        ("libvirt.away", "refused"),
        ("libvirt.connected", None),
        ("libvirt.away", "keepalive"),
        ("libvirt.connected", None),
        ("libvirt.away", "keepalive"),
    ]


def test_a_cycle_that_finds_libvirt_away_is_told_as_that(daemon: Daemon, book: Logbook) -> None:
    daemon._turn(linked(daemon))
    book.clear()
    cast("Fake", daemon._connector._hypervisor).fail("uuids", HypervisorAway("gone"))
    daemon._turn(Wake(cpus=True))
    assert [(e["event"], e["why"]) for e in book.told()] == [("libvirt.away", "gone")]
    assert daemon.ready() == (False, "libvirt is away")


def test_a_libvirt_that_takes_connections_and_loses_them_is_away_all_the_time(
    daemon: Daemon, book: Logbook
) -> None:
    hypervisor = cast("Fake", daemon._connector._hypervisor)
    for _ in range(5):
        hypervisor.fail("uuids", HypervisorAway("gone"))
        daemon._turn(linked(daemon))
    assert [e["event"] for e in book.told()] == ["libvirt.away"]
    daemon._turn(linked(daemon))
    assert [e["event"] for e in book.told(least="info")][1:2] == ["libvirt.connected"]


def test_a_libvirt_that_denies_what_it_is_asked_is_not_away(daemon: Daemon, book: Logbook) -> None:
    daemon._turn(Wake(failed=LinkFailed("refused")))
    cast("Fake", daemon._connector._hypervisor).fail("uuids", NotPermitted("no"))
    daemon._turn(linked(daemon))
    assert [e["event"] for e in book.told()] == [
        "libvirt.away",
        "cycle.failed",
        "libvirt.connected",
    ]


@pytest.mark.parametrize(
    "answer",
    [Wake(listed=True), Wake(guests={"u": [GuestEvent("u", Topic.READ, 0.0)]})],
    ids=["the list", "a guest"],
)
def test_a_look_that_libvirt_kept_waiting_is_taken_as_soon_as_it_answers(
    daemon: Daemon, answer: Wake
) -> None:
    fake = cast("Fake", daemon._hypervisor)
    fake.fail("uuids", Held("it holds one of them"))
    daemon._turn(linked(daemon))
    assert not daemon.ready()[0]
    daemon._timer.expire(3600)
    daemon._turn(Wake(returned=True))
    assert not daemon.ready()[0]
    daemon._turn(answer)
    assert daemon.ready()[0]
    looks = fake.count("uuids")
    daemon._turn(answer)
    assert fake.count("uuids") == looks, "once"


def test_events_in_between_do_not_make_it_forget_that_look(daemon: Daemon) -> None:
    fake = cast("Fake", daemon._hypervisor)
    daemon._turn(linked(daemon))
    fake.fail("uuids", Held("it holds one of them"))
    daemon._timer.expire()
    daemon._turn(Wake())
    daemon._timer.expire(3600)
    daemon._turn(Wake(returned=True))
    looks = fake.count("uuids")
    daemon._turn(Wake(listed=True))
    assert fake.count("uuids") == looks + 1


def test_cpus_that_nobody_watches_any_more_are_told_and_looked_at(
    daemon: Daemon, book: Logbook
) -> None:
    daemon._turn(linked(daemon))
    wake = Wake()
    wake.add(CpusUnwatched("Bad file descriptor"))
    daemon._turn(wake)
    assert [e["why"] for e in book.told("cpus.unwatched")] == ["Bad file descriptor"]
    assert book.told("cycle.done")[-1]["cause"] == "cpu"


# --- the watchdog --------------------------------------------------------------------------------


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000")
        yield listener


def fed(systemd: socket.socket) -> int:
    """Return how often the watchdog was fed since."""
    heard = []
    with suppress(BlockingIOError):
        while True:
            heard.append(systemd.recv(4096))
    return heard.count(b"WATCHDOG=1")


def test_a_turn_feeds_the_watchdog_whatever_became_of_it(
    systemd: socket.socket, tmp_path: Path
) -> None:
    daemon = lonely(tmp_path)
    hypervisor = cast("Fake", daemon._connector._hypervisor)
    turns = {
        "libvirt is away": Wake(),
        "a full cycle": linked(daemon),
        "nothing came in": Wake(),
        "a cycle that fails": Wake(cpus=True),
        "libvirt goes away": Wake(cpus=True),
    }
    for what, wake in turns.items():
        if what == "a cycle that fails":
            hypervisor.fail("uuids", NotPermitted("no"))
        if what == "libvirt goes away":
            hypervisor.fail("uuids", HypervisorAway("gone"))
        daemon._turn(wake)
        assert fed(systemd) == 1, what


@pytest.mark.parametrize("connected", [True, False])
def test_a_long_interval_does_not_starve_the_watchdog(
    systemd: socket.socket, tmp_path: Path, *, connected: bool
) -> None:
    daemon = lonely(tmp_path)
    if connected:
        daemon._turn(linked(daemon))
    daemon._turn(Wake())
    assert fed(systemd) > 0
    for _ in range(5):
        assert daemon._patience() <= 0.001
        assert not daemon._turn(daemon._inbox.wait(daemon._patience()))
    assert fed(systemd) == 5


def test_a_deciding_thread_that_hangs_starves_the_watchdog(
    systemd: socket.socket, tmp_path: Path
) -> None:
    daemon = lonely(tmp_path)
    hypervisor = cast("Fake", daemon._connector._hypervisor)
    hangs, go_on = threading.Event(), threading.Event()

    def hang(call: Call) -> None:
        if call.name == "uuids":
            hangs.set()
            go_on.wait()

    hypervisor.hook = hang
    turn = threading.Thread(target=daemon._turn, args=(linked(daemon),))
    turn.start()
    try:
        hangs.wait()
        fed(systemd)
        systemd.settimeout(0.2)  # a hundred times the watchdog's
        with pytest.raises(TimeoutError):
            systemd.recv(4096)
        systemd.settimeout(0)
    finally:
        go_on.set()
        turn.join()
    assert fed(systemd) == 1
