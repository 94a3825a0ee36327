"""Version 1 cpusets that the kernel cut: what is given back, what is not, and what is told."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from agent.cpuset import CpuSet
from agent.cpusets import NOTHING_MENDED, Cut, Mended, Mender, bring_back

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL, LESS = CpuSet.parse("0-3"), CpuSet.parse("0-2")
V1 = "30 20 0:30 / /tree rw - cgroup cgroup rw,cpuset"
V2 = "30 20 0:30 / /tree rw - cgroup2 cgroup2 rw"
NAME = "qemu-7-web.libvirt-qemu"


class Tree:
    """A tree of files that looks like cgroups; `unplug` and `plug` do as the kernel does."""

    def __init__(self, root: Path, mount: str = V1) -> None:
        self.root = root
        self.online = ALL
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/mountinfo").write_text(f"{mount}\n")
        self.mender = Mender(root)

    def cgroup(self, path: str, cpus: str = "0-3", *tids: int) -> str:
        directory = self.root / "tree" / path
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cpuset.cpus").write_text(f"{cpus}\n")
        (directory / "tasks").write_text("".join(f"{tid}\n" for tid in tids))
        return str(directory)

    def guest(self, path: str = f"machine/{NAME}", vcpu: str = "3") -> str:
        self.cgroup(f"{path}/emulator", "0-3", 50)
        self.cgroup(f"{path}/vcpu0", vcpu, 51)
        return self.cgroup(path)

    def cpus(self, path: str) -> str:
        return (self.root / "tree" / path / "cpuset.cpus").read_text().strip()

    def unplug(self, cpu: int = 3) -> None:
        self.online -= CpuSet.of(cpu)
        for file in (self.root / "tree").rglob("cpuset.cpus"):
            left = CpuSet.parse(file.read_text().strip()) - CpuSet.of(cpu)
            file.write_text(f"{left}\n")

    def plug(self, cpu: int = 3) -> None:
        self.online |= CpuSet.of(cpu)

    def mend(self, *partitions: str, plugged: bool = False, act: bool = True) -> Mended:
        asked = partitions or ("/machine",)
        return self.mender.mend(asked, self.online, plugged=plugged, act=act)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path)
    made.cgroup("machine")
    return made


def test_a_pcpu_that_comes_back_is_given_back_to_the_partition_and_its_guests(tree: Tree) -> None:
    tree.guest()
    tree.cgroup(f"machine/{NAME}/vcpu1", "2-3")
    assert tree.mend() == NOTHING_MENDED
    tree.unplug()
    assert tree.mend() == NOTHING_MENDED
    assert (tree.cpus("machine"), tree.cpus(f"machine/{NAME}")) == ("0-2", "0-2")
    tree.plug()
    mended = tree.mend()
    machine = str(tree.root / "tree/machine")
    assert mended.given == ((machine, CpuSet.of(3)),)
    assert mended.empty == (f"{machine}/{NAME}/vcpu0",)
    assert mended.left == ()
    assert (tree.cpus("machine"), tree.cpus(f"machine/{NAME}")) == ("0-3", "0-3")
    assert (tree.cpus(f"machine/{NAME}/emulator"), tree.cpus(f"machine/{NAME}/vcpu0")) == (
        "0-2",
        "",
    )
    assert tree.mend() == NOTHING_MENDED


def test_a_pcpu_that_went_and_came_between_two_looks_is_given_back_if_that_was_told(
    tree: Tree,
) -> None:
    tree.mend()
    tree.unplug()
    tree.plug()
    assert tree.mend(plugged=True).given[0][1] == CpuSet.of(3)
    assert tree.cpus("machine") == "0-3"


def test_what_was_given_back_and_is_lost_again_is_given_back_again(tree: Tree) -> None:
    tree.mend()
    for _ in range(3):
        tree.unplug()
        tree.plug()
        assert tree.mend(plugged=True).given[0][1] == CpuSet.of(3)


def test_what_somebody_took_out_while_it_was_on_line_stays_out(tree: Tree) -> None:
    tree.mend()
    tree.cgroup("machine", "0-1")
    assert tree.mend() == NOTHING_MENDED
    tree.unplug()
    tree.mend()
    tree.plug()
    assert tree.mend(plugged=True) == NOTHING_MENDED
    assert tree.cpus("machine") == "0-1"


def test_what_was_lost_before_the_first_look_stays_out(tree: Tree) -> None:
    tree.unplug()
    tree.mend()
    tree.plug()
    assert tree.mend(plugged=True) == NOTHING_MENDED


def test_of_two_pcpus_each_is_given_back_when_it_is_there(tree: Tree) -> None:
    tree.mend()
    tree.unplug(3)
    tree.mend()
    tree.unplug(2)
    tree.mend()
    tree.plug(3)
    assert tree.mend().given[0][1] == CpuSet.of(3)
    tree.plug(2)
    assert tree.mend().given[0][1] == CpuSet.of(2)
    assert tree.cpus("machine") == "0-3"


def test_what_somebody_else_gives_back_first_is_no_longer_ours_to_give(tree: Tree) -> None:
    tree.mend()
    tree.unplug()
    tree.mend()
    tree.plug()
    tree.cgroup("machine", "0-3")
    assert tree.mend() == NOTHING_MENDED
    tree.cgroup("machine", "0-1")
    assert tree.mend() == NOTHING_MENDED


def test_partitions_are_mended_from_the_outermost_and_guests_under_systemd_too(tree: Tree) -> None:
    tree.cgroup("machine/gold.partition")
    inner = r"machine.slice/machine-qemu\x2d7\x2dweb.scope"
    tree.cgroup("machine.slice")
    tree.guest(f"{inner}/libvirt")
    tree.cgroup(inner)
    tree.mend("/machine/gold")
    tree.mend()
    tree.unplug()
    tree.mend("/machine/gold")
    tree.plug()
    given = [directory.partition("/tree/")[2] for directory, _ in tree.mend("/machine/gold").given]
    assert given == ["machine.slice", "machine", "machine/gold.partition"]
    for path in (inner, f"{inner}/libvirt", "machine/gold.partition"):
        assert tree.cpus(path) == "0-3"


def test_in_a_dry_run_it_is_only_told(tree: Tree) -> None:
    tree.mend(act=False)
    tree.unplug()
    tree.mend(act=False)
    tree.plug()
    (cut,) = tree.mend(act=False).left
    assert (cut.cpus, cut.wanted) == (CpuSet.of(3), ALL)
    assert tree.cpus("machine") == "0-2"
    assert tree.mend(act=True).given[0][1] == CpuSet.of(3)


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user who may only read."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_cpuset_that_may_not_be_written_is_told_until_it_is_given_back() -> None:
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tree = Tree(Path(folder))
        machine = tree.cgroup("machine")
        tree.mend()
        tree.unplug()
        tree.mend()
        tree.plug()
        (Path(machine) / "cpuset.cpus").chmod(0o444)
        for _ in range(2):
            with nobody():
                mended = tree.mend()
            assert mended.left == (Cut(machine, CpuSet.of(3), ALL, "Permission denied"),)
            assert (mended.given, tree.cpus("machine")) == ((), "0-2")
        (Path(machine) / "cpuset.cpus").chmod(0o644)
        assert tree.mend().given == ((machine, CpuSet.of(3)),)


def test_a_partition_that_went_is_forgotten(tree: Tree) -> None:
    tree.mend()
    tree.unplug()
    tree.mend()
    (tree.root / "tree/machine/cpuset.cpus").unlink()
    assert tree.mend() == NOTHING_MENDED
    tree.cgroup("machine", "0-2")
    tree.plug()
    assert tree.mend() == NOTHING_MENDED


def test_version_2_mends_itself(tmp_path: Path) -> None:
    tree = Tree(tmp_path, V2)
    tree.cgroup("machine")
    tree.mend()
    tree.unplug()
    tree.mend()
    tree.plug()
    assert tree.mend() == NOTHING_MENDED
    assert tree.cpus("machine") == "0-2"


# threads that a cpuset lost


def belong(tree: Tree, tid: int, *lines: str) -> None:
    place = tree.root / f"proc/{tid}"
    place.mkdir(parents=True)
    (place / "cgroup").write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("lines", "to"),
    [
        pytest.param(
            (f"4:cpu:/machine/{NAME}/emulator", f"3:cpuset:/machine/{NAME}"),
            "emulator",
            id="an emulator thread by the cpu controller's tree",
        ),
        pytest.param(
            (f"3:cpuset:/machine/{NAME}", f"2:cpu,cpuacct:/machine/{NAME}/iothread1"),
            "iothread1",
            id="an iothread",
        ),
        pytest.param((f"2:cpu:/machine/{NAME}/vcpu0",), None, id="a vCPU's is left"),
        pytest.param((f"2:cpu:/machine/x{NAME}/emulator",), None, id="another guest's is left"),
        pytest.param((f"2:cpu:/machine/{NAME}/emulator/x",), None, id="a deeper one is left"),
        pytest.param((), None, id="nobody knows"),
    ],
)
def test_a_thread_goes_back_where_another_tree_has_it(
    tree: Tree, lines: tuple[str, ...], to: str | None
) -> None:
    guest = tree.guest()
    tree.cgroup(f"machine/{NAME}/vcpu0", "")
    tree.cgroup(f"machine/{NAME}/emulator", "0")
    tree.cgroup(f"machine/{NAME}/iothread1", "0")
    tree.cgroup(f"machine/{NAME}", "0-3", 50)
    belong(tree, 50, *lines)
    bring_back(str(tree.root), guest)
    for name in ("emulator", "iothread1", "vcpu0"):
        tasks = (tree.root / f"tree/machine/{NAME}/{name}/tasks").read_text()
        assert tasks == ("50" if name == to else "")


def test_where_no_other_tree_tells_it_is_an_emulator_thread_if_all_others_are_in_place(
    tree: Tree,
) -> None:
    guest = tree.guest()
    tree.cgroup(f"machine/{NAME}/emulator", "0")
    tree.cgroup(f"machine/{NAME}", "0-3", os.getpid())
    belong(tree, os.getpid(), f"3:cpuset:/machine/{NAME}")
    bring_back(str(tree.root), guest)
    tasks = (tree.root / f"tree/machine/{NAME}/emulator/tasks").read_text()
    assert tasks == str(os.getpid())


def test_where_no_other_tree_tells_and_a_vcpu_is_away_nobody_knows_whose_it_is(tree: Tree) -> None:
    guest = tree.guest()
    tree.cgroup(f"machine/{NAME}/vcpu1", "")
    tree.cgroup(f"machine/{NAME}/emulator", "0")
    tree.cgroup(f"machine/{NAME}", "0-3", os.getpid())
    belong(tree, os.getpid(), f"3:cpuset:/machine/{NAME}")
    bring_back(str(tree.root), guest)
    assert (tree.root / f"tree/machine/{NAME}/emulator/tasks").read_text() == ""


def test_a_guest_that_went_meanwhile_is_no_error(tree: Tree) -> None:
    bring_back(str(tree.root), str(tree.root / "tree/machine/gone"))
