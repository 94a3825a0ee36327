"""A pCPU of this machine goes off line and comes back, under real guests; runs last of all.

Under cgroup version 1 the kernel takes it out of every cpuset for ever, so whatever happens the
last lines put it back on line, repair what libvirt made, and prove it by a pin.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from agent.cpuset import CpuSet
from tests.service import Service, wait, wait_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guests import Guest
    from tests.libvirtd import Libvirtd

CPU: Final = 1
SWITCH: Final = Path(f"/sys/devices/system/cpu/cpu{CPU}/online")
ONLINE: Final = Path("/sys/devices/system/cpu/online")
ALL: Final = CpuSet.parse(ONLINE.read_text().strip())
ZERO, ONE = frozenset({0}), frozenset({1})


def switchable() -> bool:
    """Tell whether this kernel lets the pCPU go."""
    try:
        SWITCH.write_text(SWITCH.read_text())
    except OSError:
        return False
    return True


pytestmark = [
    pytest.mark.real,
    pytest.mark.last,
    pytest.mark.skipif(not switchable(), reason=f"host: pCPU {CPU} cannot go off line"),
]


def partition(guest: Guest) -> Path:
    """Return the cgroup that holds the guests of libvirt's default partition."""
    above = guest.cgroup()
    while above.name not in {"machine", "machine.slice"}:
        above = above.parent
    return above


def given(directory: Path) -> CpuSet:
    """Return the cpuset that a cgroup was given."""
    return CpuSet.parse((directory / "cpuset.cpus").read_text().strip())


def repair(machine: Path) -> None:
    """Give every cpuset down to the guests' own all pCPUs; version 2 needs no repair."""
    for directory in (machine, *machine.glob("*qemu*"), *machine.glob("*qemu*/libvirt")):
        if (directory / "tasks").exists():
            (directory / "cpuset.cpus").write_text(ONLINE.read_text())


@contextmanager
def unplugged() -> Iterator[None]:
    """Have the pCPU off line meanwhile; all is as before afterwards, whatever happens."""
    try:
        SWITCH.write_text("0")
        yield
    finally:
        SWITCH.write_text("1")


@pytest.fixture
def machine(start: Callable[..., Guest]) -> Iterator[Path]:
    """The partition's cgroup; whole again after the test."""
    directory = partition(start("first", metadata_policy="ignore"))
    yield directory
    SWITCH.write_text("1")
    repair(directory)


@pytest.fixture
def single(libvirtd: Libvirtd, tmp_path: Path) -> Iterator[Service]:
    """Run the daemon with a pCPU for each guest, and one pCPU each."""
    pool = {"cpus": "0-1", "emulator_overcommit_ratio": 1, "placement": "single"}
    with Service(libvirtd.uri, tmp_path, pool=pool) as running:
        yield running


def test_guests_leave_a_pcpu_that_goes_off_line_and_return_when_it_is_back(
    libvirtd: Libvirtd, single: Service, machine: Path, start: Callable[..., Guest]
) -> None:
    stays = start("stays")
    wait_on(ZERO, stays)
    leaves = start("leaves")
    wait_on(ONE, leaves)
    threads = {thread.tid for thread in leaves.threads() if thread.role == "emulator"}
    single.settle()
    with unplugged():
        wait_on(ZERO, stays, leaves)
        wait(lambda: single.metric("pool_shortage_cpus", cell="0") == 1, "the shortage to be told")
        # Its cpuset ran empty, which under version 1 throws its threads out of their cgroup.
        wait(
            lambda: threads <= {t.tid for t in leaves.threads() if t.role == "emulator"}, "all back"
        )
        assert single.guest(leaves.uuid)["verified"]
        assert single.metric("cell_cpus", cell="0", state="offline") == 1
    wait_on(ONE, leaves)
    wait_on(ZERO, stays)
    wait(lambda: single.metric("pool_shortage_cpus", cell="0") == 0, "the end of the shortage")
    assert given(machine) in {ALL, CpuSet()}  # version 2 need not have been given any
    assert threads <= {t.tid for t in leaves.threads() if t.role == "emulator"}
    # What libvirt is asked to do there works again, and so does a start.
    libvirtd.virsh(
        "emulatorpin", start("pinned", emulatorpin="1", metadata_policy="ignore").name, "1"
    )
    single.settle()
    assert single.status()["steps"] == []


def test_what_a_vcpu_lost_is_told_and_not_touched(
    libvirtd: Libvirtd, single: Service, machine: Path, start: Callable[..., Guest]
) -> None:
    claimer = start("claimer", vcpupins={0: "1"}, metadata_policy="ignore")
    guest = start("guest")
    wait_on(ZERO, guest)
    single.settle()
    version_1 = (machine / "tasks").exists()
    with unplugged():
        wait(lambda: single.metric("cell_cpus", cell="0", state="offline") == 1, "it to be seen")
    wait(lambda: single.metric("cell_cpus", cell="0", state="offline") == 0, "it to be seen")
    if version_1:
        wait(lambda: single.saw("cpuset.mended"), "the repair to be told")
        event = single.saw("cpuset.mended")
        assert event is not None
        assert [Path(one).name for one in event["unpinned"]] == ["vcpu0"]
        assert claimer.masks("vcpu0") == set()  # where the kernel put it, until somebody pins it
        libvirtd.virsh("vcpupin", claimer.name, "0", "1", "--live")
    wait_on(ZERO, guest)


def test_a_dry_run_mends_nothing_and_says_what_to_write(
    libvirtd: Libvirtd, tmp_path: Path, machine: Path, start: Callable[..., Guest]
) -> None:
    if not (machine / "tasks").exists():
        pytest.skip("host: cgroup version 2 mends itself")
    with Service(
        libvirtd.uri, tmp_path, pool={"cpus": "0-1"}, reconcile={"dry_run": True}
    ) as watching:
        start("guest")
        watching.settle()
        with unplugged():
            wait(lambda: watching.metric("cell_cpus", cell="0", state="offline") == 1, "it seen")
        wait(lambda: watching.saw("fault.began"), "the cut to be told")
        event = watching.saw("fault.began")
        assert event is not None
        assert event["about"] == ["cpuset", str(machine)]
        assert f"write {ALL} to its cpuset.cpus" in event["text"]
        assert given(machine) == ALL - CpuSet.of(CPU)
        repair(machine)
        wait(lambda: watching.saw("fault.ended"), "the end of it to be told")


def test_afterwards_a_guest_can_be_pinned_there(
    libvirtd: Libvirtd, machine: Path, start: Callable[..., Guest]
) -> None:
    guest = start("proof", emulatorpin="0", vcpupins={0: "1"})
    libvirtd.virsh("emulatorpin", guest.name, "1", "--live")
    assert guest.recorded_pin() == ONE
    assert guest.masks("vcpu0") == {ONE}
    assert CpuSet.parse(ONLINE.read_text().strip()) == ALL
    repair(machine)
