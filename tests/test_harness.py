"""The harness itself: it tells the truth, survives what tests do to libvirtd, leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt
import pytest

from tests import runner
from tests.guests import (
    cpu_list,
    guest_xml,
    nova_metadata,
    wait_for_end,
    wait_until,
)
from tests.libvirtd import HarnessError, Libvirtd

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.guests import Guest

MINE = "from tests.libvirtd import Libvirtd\n"


def traces(pid: int) -> list[str]:
    """Return all that is left of a runner, its libvirtd and its guests."""
    home, names = str(runner.home_of(pid)), runner.names_of(pid)
    left = [
        f"process {other}: {' '.join(arguments)[:80]}"
        for other, _, arguments in runner.processes()
        if (other == pid and arguments != [""])  # without arguments: ended, but not yet reaped
        or any(home in text or names in text for text in arguments)
    ]
    left += [f"cgroup {path}" for owner, path in runner.guest_cgroups() if owner == pid]
    left += [f"path {path}" for path in Path("/tmp").glob(f"emt{pid}*")]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return left + [f"mount {line}" for line in mounts if "emupool-tests" in line or home in line]


def test_a_guests_threads_are_told_apart_by_cgroup_with_the_masks_the_kernel_has(
    make_guest: Callable[..., Guest],
) -> None:
    last = max(os.sched_getaffinity(0))
    guest = make_guest(
        "a", vcpus=2, emulatorpin="0", vcpupins={0: str(last)}, iothreads=1, iothreadpins={1: "0"}
    )
    guest.define().start()
    roles = {thread.role for thread in guest.threads()}
    assert roles == {"emulator", "vcpu0", "vcpu1", "iothread1"}
    assert guest.masks() == guest.masks("iothread1") == {frozenset({0})}
    assert guest.masks("vcpu0") == {frozenset({last})}
    main = next(thread for thread in guest.threads() if thread.tid == guest.pid)
    assert (main.role, main.kernel) == ("emulator", False)

    os.sched_setaffinity(guest.pid, {0})
    guest.domain.pinEmulator((False,) * last + (True,), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    assert guest.masks() == {frozenset({last})}
    assert guest.recorded_pin() == {last}


def test_metadata_and_scheduling_survive_libvirts_own_parser(
    make_guest: Callable[..., Guest],
) -> None:
    guest = make_guest(
        "meta",
        vcpus=2,
        numatune="0",
        memnode0="0",
        vcpu_cpuset="0",
        metadata_policy="isolate",
        metadata_attributes={"cell": "0", "weight": "2.5"},
        nova_policy="isolate",
        cputune="<period>100000</period>",
        vnc=True,
    ).define()
    text = guest.definition(inactive=True)
    for part in (
        'policy="isolate" cell="0" weight="2.5"',
        '<nova:extraSpec name="hw:emulator_threads_policy">isolate',
        "<memnode cellid='0' mode='strict' nodeset='0'/>",
        "<period>100000</period>",
        "cpuset='0'>2</vcpu>",
    ):
        assert part in text
    guest.start()
    assert guest.masks() == {frozenset({0})}


def test_guests_outlive_libvirtd_and_are_known_to_the_next_one(
    libvirtd: Libvirtd, make_guest: Callable[..., Guest]
) -> None:
    guest = make_guest("a").create()
    pid = guest.pid
    first = libvirtd.pid
    libvirtd.kill()
    assert guest.masks()
    libvirtd.start()
    assert libvirtd.pid != first
    assert guest.is_active()
    libvirtd.restart()
    assert guest.is_active()
    assert guest.pid == pid
    guest.kill9()
    wait_until(lambda: not guest.is_active())


def test_a_frozen_libvirtd_goes_on_where_it_was(
    libvirtd: Libvirtd, make_guest: Callable[..., Guest]
) -> None:
    guest = make_guest("a").define()
    libvirtd.pause()
    state = Path(f"/proc/{libvirtd.pid}/status").read_text()
    assert "State:\tT" in state
    libvirtd.resume()
    assert libvirtd.virsh("list", "--all", "--name").split() == [guest.name]


def test_the_fixture_mends_what_a_test_left_broken(
    libvirtd: Libvirtd, make_guest: Callable[..., Guest]
) -> None:
    guests = [make_guest("defined").define(), make_guest("transient").create(), make_guest("none")]
    libvirtd.pause()
    os.kill(libvirtd.pid, signal.SIGKILL)
    wait_for_end(libvirtd.pid)
    libvirtd.recover()
    libvirtd.remove_all(guests)
    assert libvirtd.conn.listAllDomains() == []
    assert libvirtd.cgroups() == []


def test_stop_leaves_nothing_of_guests_in_any_state(own_libvirtd: Libvirtd) -> None:
    pid = own_libvirtd.runner
    own_libvirtd.guest("running").define().start()
    own_libvirtd.guest("paused").create(paused=True)
    frozen = own_libvirtd.guest("frozen").create()
    os.kill(frozen.pid, signal.SIGSTOP)
    own_libvirtd.pause()
    assert traces(pid)
    own_libvirtd.stop()
    assert traces(pid) == []


def run_and_report() -> subprocess.Popen[str]:
    """Start a test run of its own, which has a guest, says who it is, and then waits."""
    code = MINE + (
        "import sys\n"
        "libvirtd = Libvirtd()\n"
        "libvirtd.start()\n"
        "libvirtd.guest('a').create()\n"
        "print(libvirtd.runner, flush=True)\n"
        "sys.stdin.read()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=runner.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.real
def test_a_killed_test_run_leaves_nothing() -> None:
    with run_and_report() as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        assert traces(pid)
        process.kill()
    wait_until(lambda: not traces(pid), what=f"nothing is left of {pid}")


@pytest.mark.real
def test_what_a_killed_runner_left_is_swept_by_the_next_one() -> None:
    with run_and_report() as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any("libvirtd" in text for text in traces(pid)))
        assert any("qemu" in text for text in traces(pid))
        process.kill()
    with Libvirtd():
        assert traces(pid) == []


@pytest.mark.real
def test_two_libvirtd_live_side_by_side(
    libvirtd: Libvirtd, own_libvirtd: Libvirtd, make_guest: Callable[..., Guest]
) -> None:
    mine, other = make_guest("a").create(), own_libvirtd.guest("a").create()
    assert mine.name != other.name
    assert [domain.name() for domain in libvirtd.conn.listAllDomains()] == [mine.name]
    own_libvirtd.stop()
    assert mine.masks()


@pytest.mark.real
def test_a_libvirtd_that_cannot_start_says_why() -> None:
    refused = Libvirtd(['user = "nobody-of-that-name"'])
    with pytest.raises(HarnessError, match="nobody-of-that-name"):
        refused.start()
    refused.stop()


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-1,4\n", {0, 1, 4}), ("3", {3}), ("\n", set()), ("0", {0})]
)
def test_cpu_list(text: str, cpus: set[int]) -> None:
    assert cpu_list(text) == cpus


def test_old_nova_wrote_no_extra_specs() -> None:
    old = nova_metadata(extra_specs=False, namespace="http://openstack.org/xmlns/libvirt/nova/1.0")
    assert "extraSpec" not in old
    assert "nova/1.0" in guest_xml("a", metadata=old)


def test_ci_accepts_only_the_skips_that_the_machine_forces(tmp_path: Path) -> None:
    (tmp_path / "test_skips.py").write_text(
        "import pytest\n"
        "def test_forced(): pytest.skip('host: has 2 pCPUs, 4 are needed')\n"
        "def test_lazy(): pytest.skip('not now')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", str(tmp_path)]
    done = subprocess.run(
        [*command, f"--rootdir={tmp_path}", "-c/dev/null"],
        cwd=runner.ROOT,
        env=os.environ | {"CI": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1].startswith("1 failed, 1 skipped")
