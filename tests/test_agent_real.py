"""The main job, from outside: real QEMU guests, a real libvirtd, the daemon as a process.

The truth is the kernel's: what `/proc` says of each thread, by its cgroup. This host needs two
pCPUs at least; the tests use 0 and 1 only.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.exposition import assert_lint_free
from tests.runner import processes
from tests.service import Service, on, wait, wait_on

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.guests import Guest
    from tests.libvirtd import Libvirtd

pytestmark = pytest.mark.real

ZERO, ONE, BOTH = frozenset({0}), frozenset({1}), frozenset({0, 1})


def test_two_guests_share_a_pcpu_the_third_makes_it_two_and_a_departure_one_again(
    service: Service, start: Callable[..., Guest]
) -> None:
    first = start("first")
    wait_on(ZERO, first)
    second = start("second", emulatorpin="1")
    wait_on(ZERO, first, second)
    third = start("third")
    wait_on(BOTH, first, second, third)  # `second` in every thread, which began on 1 alone
    wait(lambda: service.pool() == BOTH, "the pool to be told")
    assert service.guest(second.uuid)["original"] == "1"
    first.destroy()
    wait_on(ZERO, second, third)
    service.settle()
    assert service.pool() == ZERO
    row = service.guest(third.uuid)
    assert (row["kernel"], row["live"], row["verified"], row["state"]) == ("0", "0", True, "placed")
    assert service.metric("stuck_threads", cell="0") == 0


def test_a_vcpu_pinned_to_a_pool_pcpu_evicts_the_pool_and_is_itself_not_moved(
    service: Service, start: Callable[..., Guest]
) -> None:
    guest = start("guest")
    wait_on(ZERO, guest)
    claimer = start("claimer", vcpupins={0: "0"})
    wait_on(ONE, guest, claimer)
    assert claimer.masks("vcpu0") == {ZERO}
    assert guest.masks("vcpu0") == {frozenset(range(os.cpu_count() or 2))}
    claimer.destroy()
    service.settle()
    assert service.metric("repins_total", reason="evacuate") == 1
    assert on(ONE, guest)  # its owner is defined still, and will come back to 0


def test_a_guest_that_is_not_managed_is_never_touched(
    service: Service, make_guest: Callable[..., Guest], start: Callable[..., Guest]
) -> None:
    other = make_guest("other", emulatorpin="0-1", metadata_policy="float").define().start()
    nobody = make_guest("nobody").define().start()
    before = other.masks(""), nobody.masks("")
    wait_on(ZERO, start("ours"))
    service.settle()
    assert (other.masks(""), nobody.masks("")) == before
    assert service.guest(nobody.uuid)["managed"] is False
    assert service.repins() == 1


def test_a_foreign_pin_is_undone_and_counted(
    libvirtd: Libvirtd, service: Service, start: Callable[..., Guest]
) -> None:
    guest = start("guest")
    wait_on(ZERO, guest)
    libvirtd.virsh("emulatorpin", guest.name, "1", "--live")
    wait(lambda: service.metric("drift_total", kind="libvirt") == 1, "the drift to be counted")
    wait_on(ZERO, guest)


def test_a_thread_moved_behind_libvirts_back_is_put_right_and_counted(
    service: Service, start: Callable[..., Guest]
) -> None:
    guests = [start(name) for name in ("first", "second", "third")]
    wait_on(BOTH, *guests)
    service.settle()  # else the thread may be moved while its pin is read back, and counts as stuck
    thread = next(t for t in guests[0].threads() if t.role == "emulator" and t.tid != guests[0].pid)
    os.sched_setaffinity(thread.tid, {1})
    wait(lambda: service.metric("drift_total", kind="kernel") == 1, "the drift to be counted")
    wait_on(BOTH, *guests)


def test_a_cpuset_changed_behind_libvirts_back_is_put_right_and_counted(
    service: Service, start: Callable[..., Guest]
) -> None:
    guest = start("guest")
    wait_on(ZERO, guest)
    (guest.cgroup() / "cpuset.cpus").write_text("1")
    wait(lambda: service.metric("drift_total", kind="cgroup") == 1, "the drift to be counted")
    wait_on(ZERO, guest)


def test_metadata_that_changes_a_policy_live_is_followed_both_ways(
    libvirtd: Libvirtd, service: Service, make_guest: Callable[..., Guest]
) -> None:
    guest = make_guest("guest", emulatorpin="1").define().start()

    def label(policy: str) -> None:
        libvirtd.virsh(
            *("metadata", guest.name, "--uri", "urn:emupool:libvirt:1", "--key", "emupool"),
            *("--set", f'<guest policy="{policy}"/>', "--live"),
        )

    label("isolate")
    wait_on(ZERO, guest)
    label("ignore")
    wait_on(ONE, guest)  # as it was started
    service.settle()
    assert service.metric("repins_total", reason="release") == 1
    assert service.repins() == 2


def test_iothreads_follow_if_they_were_pinned_as_the_emulator_threads_were(
    service: Service, start: Callable[..., Guest]
) -> None:
    guest = start("guest", emulatorpin="1", iothreads=2, iothreadpins={1: "1"})
    unpinned = guest.masks("iothread2")
    wait_on(ZERO, guest)
    wait(lambda: guest.masks("iothread1") == {ZERO}, "the pinned iothread to follow")
    service.settle()
    assert guest.masks("iothread2") == unpinned


def test_sighup_with_a_new_ratio_resizes_at_once_and_moves_only_who_must_move(
    service: Service, start: Callable[..., Guest]
) -> None:
    guests = [start(name) for name in ("a", "b", "c", "d")]
    wait_on(BOTH, *guests)
    service.settle()  # an unpinned guest looks like one on both
    before = service.repins()
    service.configure(pool={"emulator_overcommit_ratio": 4, "shrink_delay": 600})
    service.hup()
    wait_on(ZERO, *guests)
    wait(lambda: service.repins() == before + 4, "one pin for each guest")
    service.configure(pool={"emulator_overcommit_ratio": 8})
    service.hup()
    wait(lambda: service.metric("cycles_total", event="reload") == 2, "the second reload")
    service.settle()
    assert service.repins() == before + 4
    assert service.metric("emulator_overcommit_ratio", cell="0") == 8


def test_sighup_with_a_broken_file_changes_nothing_and_says_so(
    service: Service, start: Callable[..., Guest]
) -> None:
    service.configure(pool={"shrink_delay": 600})
    service.hup()
    guests = [start(name) for name in ("a", "b", "c")]
    wait_on(BOTH, *guests)
    guests.pop().destroy()
    service.settle()
    before = service.repins()
    service.configure(pool={"emulator_overcommit_ratio": 0, "sorce": "free"})
    service.hup()
    wait(lambda: service.metric("config_last_reload_successful") == 0, "the reload to fail")
    refused = [e["problem"] for e in service.events() if e["event"] == "config.refused"]
    assert any("pool.emulator_overcommit_ratio" in problem for problem in refused)
    assert any("pool.sorce" in problem and "source" in problem for problem in refused)
    service.settle()
    assert (service.repins(), on(BOTH, *guests)) == (before, True)  # not even its damping ended
    assert service.metric("emulator_overcommit_ratio", cell="0") == 2


def test_a_killed_guest_leaves_its_place_and_comes_back_to_it(
    service: Service, start: Callable[..., Guest]
) -> None:
    guests = [start(name) for name in ("a", "b", "c")]
    wait_on(BOTH, *guests)
    guests[0].kill9()
    wait_on(ZERO, *guests[1:])
    guests[0].start()
    wait_on(BOTH, *guests)
    service.settle()
    assert service.guest(guests[0].uuid)["original"] is None


def test_a_killed_libvirtd_is_followed_again_with_what_happened_meanwhile(
    libvirtd: Libvirtd, service: Service, start: Callable[..., Guest]
) -> None:
    guests = [start(name) for name in ("a", "b", "c")]
    service.settle()
    libvirtd.kill()
    wait(lambda: service.metric("libvirt_up") == 0, "the loss to be noticed")
    assert service.get("/readyz")[0] == 503
    assert on(BOTH, *guests)
    guests[0].kill9()  # nobody will tell
    libvirtd.start()
    wait(service.ready, "the daemon to be ready again")
    wait_on(ZERO, *guests[1:])
    service.settle()
    assert service.metric("libvirt_reconnects_total") >= 1
    wait_on(BOTH, start("d"), *guests[1:])  # it hears again


def test_a_killed_agent_finds_pools_pins_and_originals_again(
    service: Service, start: Callable[..., Guest], make_guest: Callable[..., Guest]
) -> None:
    kept = start("kept", emulatorpin="1")
    transient = make_guest("transient", metadata_policy="isolate", emulatorpin="0-1").create()
    third = start("third")
    wait_on(BOTH, kept, transient, third)
    wait(lambda: transient.uuid in service.state.read_text(), "the state to be written")
    third.destroy()
    wait_on(ZERO, kept, transient)
    service.kill()
    service.start()
    service.settle()
    assert on(ZERO, kept, transient)
    assert service.repins() == 0  # nobody needs to move
    assert service.guest(kept.uuid)["original"] == "1"
    assert service.guest(transient.uuid)["original"] == "0-1"  # nobody else knows
    third.start()
    wait_on(BOTH, kept, transient, third)


def test_release_gives_the_originals_back_and_is_refused_beside_a_daemon(
    service: Service, start: Callable[..., Guest], make_guest: Callable[..., Guest]
) -> None:
    pinned = start("pinned", emulatorpin="1", iothreads=1, iothreadpins={1: "1"})
    plain = make_guest("plain", metadata_policy="isolate").create()
    wait_on(ZERO, pinned, plain)
    wait(lambda: pinned.masks("iothread1") == {ZERO}, "the iothread to follow")
    beside = service.run("release", "--config", str(service.config))
    assert beside.returncode == 1
    assert "lock" in beside.stderr
    assert len(beside.stderr.splitlines()) == 1
    assert service.stop() == 0
    assert on(ZERO, pinned, plain)  # a stop leaves the pins
    done = service.run("release", "--config", str(service.config))
    assert (done.returncode, done.stderr) == (0, "")
    everywhere = frozenset(range(os.cpu_count() or 2))
    assert on(ONE, pinned)
    assert pinned.masks("iothread1") == {ONE}
    assert on(everywhere, plain)
    again = service.run("release", "--config", str(service.config))
    assert (again.returncode, again.stdout) == (0, "")


def test_a_stop_releases_if_it_is_told_to(service: Service, start: Callable[..., Guest]) -> None:
    guest = start("guest", emulatorpin="1")
    wait_on(ZERO, guest)
    service.configure(pool={"on_stop": "release"})
    service.hup()
    wait(lambda: service.metric("cycles_total", event="reload") == 1, "the reload")
    assert service.stop() == 0
    assert on(ONE, guest)


@pytest.mark.usefixtures("service")
def test_the_persistent_definition_is_never_changed(start: Callable[..., Guest]) -> None:
    guests = [start(name, emulatorpin="1", iothreads=1, iothreadpins={1: "1"}) for name in "abc"]
    before = [guest.definition(inactive=True) for guest in guests]
    wait_on(BOTH, *guests)
    guests[0].destroy()
    wait_on(ZERO, *guests[1:])
    assert [guest.definition(inactive=True) for guest in guests] == before


def test_a_dry_run_pins_nothing_and_says_what_it_would(
    libvirtd: Libvirtd, tmp_path: Path, start: Callable[..., Guest]
) -> None:
    guest = start("guest", emulatorpin="1")
    service = Service(libvirtd.uri, tmp_path, pool={"cpus": "0-1"})
    service.start("--dry-run")
    try:
        service.settle()
        steps = [(s["from"], s["to"], s["reason"]) for s in service.status()["steps"]]
        assert steps == [("1", "0", "arrive")]
        assert (on(ONE, guest), service.metric("dry_run"), service.repins()) == (True, 1, 0)
    finally:
        service.kill()


def test_plan_from_libvirt_says_what_a_cycle_would_do_and_does_nothing(
    libvirtd: Libvirtd, tmp_path: Path, start: Callable[..., Guest]
) -> None:
    guest = start("guest", emulatorpin="1")
    service = Service(libvirtd.uri, tmp_path, pool={"cpus": "0-1"})
    planned = service.run("plan", "--json", "--config", str(service.config))
    assert (planned.returncode, planned.stderr) == (0, "")
    document: dict[str, Any] = json.loads(planned.stdout)
    assert [(s["uuid"], s["to"]) for s in document["steps"]] == [(guest.uuid, "0")]
    assert on(ONE, guest)
    asked = service.run("plan", "--json", "--ratio", "0.5", "--config", str(service.config))
    assert json.loads(asked.stdout)["cells"][0]["pool"] == "0-1"


def test_without_libvirt_the_daemon_waits_and_connects_when_it_comes(
    own_libvirtd: Libvirtd, tmp_path: Path
) -> None:
    own_libvirtd.kill()
    service = Service(own_libvirtd.uri, tmp_path, pool={"cpus": "0-1"})
    service.spawn()
    try:
        wait(lambda: service.saw("http.listening"), "the daemon to listen")
        wait(lambda: service.saw("libvirt.away"), "the daemon to say that libvirt is away")
        assert service.get("/healthz")[0] == 200
        assert service.get("/readyz")[0] == 503
        own_libvirtd.start()
        guest = own_libvirtd.guest("late", metadata_policy="isolate").define().start()
        wait(service.ready, "the daemon to be ready")
        wait_on(ZERO, guest)
    finally:
        service.kill()


def test_a_second_daemon_is_refused_by_the_lock(service: Service) -> None:
    second = service.run("run", "--config", str(service.config))
    assert second.returncode == 1
    assert len(second.stderr.splitlines()) == 1
    assert f"process {service.process.pid}" in second.stderr


def test_a_port_in_use_is_one_line_and_status_3(service: Service, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Service("qemu:///system", tmp_path / "other", http={"listen": service.url[7:]})
    refused = other.run("run", "--config", str(other.config))
    lines = [line for line in refused.stderr.splitlines() if not line.startswith("{")]
    assert (refused.returncode, len(lines)) == (3, 1), refused.stderr
    assert service.url[7:] in lines[0]


def test_a_bad_configuration_at_start_tells_every_error_and_is_status_1(
    libvirtd: Libvirtd, tmp_path: Path
) -> None:
    service = Service(libvirtd.uri, tmp_path, pool={"cpus": "0-9999", "min_cpus": -1, "x": 1})
    refused = service.run("run", "--config", str(service.config))
    assert refused.returncode == 1
    assert {line.split(": ")[2] for line in refused.stderr.splitlines()} >= {
        "pool.min_cpus",
        "pool.x",
    }


def test_libvirt_out_of_reach_is_one_line_and_status_3(tmp_path: Path) -> None:
    service = Service(f"qemu+unix:///system?socket={tmp_path}/none", tmp_path)
    refused = service.run("plan", "--config", str(service.config))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (3, 1)
    asked = service.run("status", "--url", "http://127.0.0.1:9")
    assert (asked.returncode, len(asked.stderr.splitlines())) == (3, 1)


def test_what_libvirts_client_says_by_itself_is_kept_out_of_the_log(
    libvirtd: Libvirtd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBVIRT_LOG_FILTERS", "1:remote 1:rpc")  # much; by default, warnings
    with Service(libvirtd.uri, tmp_path) as service:
        service.settle()
        assert service.events()  # each line is one of ours


def test_status_draws_the_running_daemons_pools(
    service: Service, start: Callable[..., Guest]
) -> None:
    guest = start("guest")
    wait_on(ZERO, guest)
    shown = service.run("status", "--url", service.url)
    assert shown.returncode == 0
    assert guest.name in shown.stdout
    document = json.loads(service.run("status", "--json", "--url", service.url).stdout)
    assert document["libvirt"]["connected"] is True
    assert_lint_free(service.get("/metrics")[1])


def test_the_daemon_starts_no_process_and_leaves_only_its_state_and_lock(
    service: Service, start: Callable[..., Guest], tmp_path: Path
) -> None:
    wait_on(ZERO, start("guest"))
    pid = service.process.pid
    assert [child for child, parent, _ in processes() if parent == pid] == []
    assert service.stop() == 0
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"config.toml", "log", "state.json", "state.json.lock", "state.json.seen"}
