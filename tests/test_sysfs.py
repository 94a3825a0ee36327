"""The reader of /sys, against trees on disk: whole, of odd kernels, damaged and hostile."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.cpuset import CpuSet
from agent.errors import SysfsError
from agent.sysfs import Sysfs
from agent.sysfs.folder import read
from tests.damage import CPU, NODE, assert_weaker, replace
from tests.hosts import (
    TWO_CELLS_EIGHT_CPUS,
    Kernel,
    Machine,
    host,
    write,
)
from tests.test_topology import assert_invariants

if TYPE_CHECKING:
    from collections.abc import Callable


ALL_OFFLINE = Machine(offline=CpuSet.of(0, 1), kernel=Kernel(top_level=False))
SECRET = 777  # what a file outside of the root says


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(TWO_CELLS_EIGHT_CPUS, tmp_path / "root")


def test_ids_reach_up_to_the_limit_of_the_kernel(root: Path) -> None:
    system = root / CPU
    (system / "cpu7").rename(system / "cpu8191")
    shutil.rmtree(root / NODE)
    for name in ("online", "present"):
        (system / name).write_text("0-6,8191\n")
    for name in ("cpu6", "cpu8191"):
        (system / name / "topology/core_cpus_list").write_text("6,8191\n")
    found = Sysfs(root).discover().host
    assert found.online == CpuSet.parse("0-6,8191")
    assert found.cpus[-1].siblings == CpuSet.of(6, 8191)
    assert found.cpus[-1].package == 1


@pytest.mark.parametrize(
    ("spoil", "siblings"),
    [
        pytest.param({}, "0-1", id="the name of today is read first"),
        pytest.param({"core_cpus_list": None}, "0-1", id="then the deprecated one"),
        pytest.param(
            {"core_cpus_list": None, "thread_siblings_list": None}, "0-1", id="then the mask"
        ),
        pytest.param(
            {"core_cpus_list": None, "thread_siblings_list": None, "core_cpus": None},
            "0-1",
            id="then the deprecated mask",
        ),
        pytest.param(
            {"core_cpus_list": "4-5", "thread_siblings_list": ""},
            "0-1",
            id="a mask helps out where the lists are wrong",
        ),
        pytest.param(
            {
                "core_cpus_list": "4-5",
                "thread_siblings_list": "",
                "core_cpus": "0",
                "thread_siblings": "!",
            },
            None,
            id="nothing helps where all are wrong",
        ),
    ],
)
def test_siblings_are_sought_in_all_their_files(
    root: Path, spoil: dict[str, str | None], siblings: str | None
) -> None:
    for name, text in spoil.items():
        file = root / CPU / "cpu0/topology" / name
        file.unlink() if text is None else file.write_text(text)
    first = Sysfs(root).discover().host.cpus[0]
    assert first.siblings == (None if siblings is None else CpuSet.parse(siblings))


@pytest.mark.parametrize(
    ("index", "level", "kind", "sharers"),
    [
        pytest.param(3, "3", "Unified", "0-3", id="as it is"),
        pytest.param(3, "3", "Data", "0-3", id="a data cache will do"),
        pytest.param(3, "3", "Instruction", None, id="an instruction cache will not"),
        pytest.param(3, "2", "Unified", None, id="no cache of level 3"),
        pytest.param(3, "", "Unified", None, id="an unknown level"),
        pytest.param(12, "3", "Unified", "0-3", id="a high index"),
        pytest.param(3, "3", None, None, id="an unknown type"),
    ],
)
def test_the_l3_is_the_cache_of_level_3(
    root: Path, index: int, level: str, kind: str | None, sharers: str | None
) -> None:
    caches = root / CPU / "cpu0/cache"
    (caches / "index3").rename(caches / f"index{index}")
    (caches / f"index{index}/level").write_text(level)
    if kind is None:
        (caches / f"index{index}/type").unlink()
    else:
        (caches / f"index{index}/type").write_text(kind)
    first = Sysfs(root).discover().host.cpus[0]
    assert first.l3 == (None if sharers is None else CpuSet.parse(sharers))


def test_a_fourth_level_does_not_hide_the_third(root: Path) -> None:
    caches = root / CPU / "cpu0/cache"
    shutil.copytree(caches / "index3", caches / "index4")
    (caches / "index4/level").write_text("4\n")
    (caches / "index4/shared_cpu_list").write_text("0\n")
    assert Sysfs(root).discover().host.cpus[0].l3 == CpuSet(range(4))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("cpu8", "0-8", id="a further pCPU"),
        pytest.param("cpu08", "0-7", id="a leading zero"),
        pytest.param("cpu99999", "0-7", id="an id beyond any"),
        pytest.param("cpufreq", "0-7", id="another directory"),
        pytest.param("cpu\u0668", "0-7", id="an arabic digit"),
        pytest.param("cpu-1", "0-7", id="a sign"),
    ],
)
def test_which_directories_are_of_pcpus(root: Path, name: str, expected: str) -> None:
    (root / CPU / name).mkdir()
    for file in ("online", "present"):
        (root / CPU / file).unlink()
    assert str(Sysfs(root).online()) == expected
    assert str(Sysfs(root).discover().host.online) == expected


def test_online_takes_one_file_where_there_is_one(root: Path) -> None:
    (root / CPU / "online").write_text("0,2\n")
    for directory in (root / CPU).glob("cpu?"):
        shutil.rmtree(directory)
    assert Sysfs(root).online() == CpuSet.of(0, 2)


def test_a_switch_that_cannot_be_read_does_not_say_online(root: Path) -> None:
    (root / CPU / "online").unlink()
    replace(root / CPU / "cpu5/online", Path.mkdir)
    found = Sysfs(root).discover()
    assert found.host.online == Sysfs(root).online() == CpuSet.parse("0-4,6-7")
    assert "cpu5/online: '': Is a directory" in found.problems[0]


def test_a_file_that_comes_in_pages_is_read_whole() -> None:
    """Long lists of a live kernel do; here a socket hands out one packet a read.

    A page that is not full is the last: to ask once more would have the kernel print it again.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for page in (b"0," * 2048, b"1," * 4096, b"7", b"8"):
            ours.send(page)
        assert read(theirs.fileno()) == b"0," * 2048 + b"1," * 4096 + b"7"


def test_descriptors_are_closed_whatever_is_wrong(root: Path) -> None:
    (root / CPU / "cpu3/topology/core_id").unlink()
    (root / CPU / "cpu3/topology/core_id").mkdir()
    (root / CPU / "cpu4/cache/index3/level").write_bytes(b"x" * 2**20)
    shutil.rmtree(root / CPU / "cpu5")
    (root / CPU / "cpu5").write_text("")
    (root / NODE / "node1/meminfo").unlink()
    (root / NODE / "node1/meminfo").symlink_to("/etc/passwd")
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    assert len(Sysfs(root).discover().problems) == 3
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda _: None, id="nothing there"),
        pytest.param(Path.touch, id="a file"),
        pytest.param(Path.mkdir, id="an empty directory"),
        pytest.param(lambda path: path.symlink_to(path), id="a loop"),
        pytest.param(lambda path: (path / CPU).mkdir(parents=True), id="no pCPU"),
        pytest.param(lambda path: write(ALL_OFFLINE, path), id="no pCPU that is online"),
    ],
)
def test_what_is_no_host_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    root = tmp_path / "root"
    make(root)
    for ask in (Sysfs(root).discover, Sysfs(root).online):
        with pytest.raises(SysfsError, match="no pCPU is online there") as refused:
            ask()
        assert str(root) in str(refused.value)
        assert "\n" not in str(refused.value)


def test_the_root_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert Sysfs(tmp_path / "link").discover().host == host(TWO_CELLS_EIGHT_CPUS)


def test_a_link_within_the_root_is_followed(root: Path) -> None:
    (root / CPU / "cpu0/topology").rename(root / "topology")
    (root / CPU / "cpu0/topology").symlink_to("../../../../../topology")
    (root / CPU / "cpu1").rename(root / "cpu1")
    (root / CPU / "cpu1").symlink_to(root / "cpu1")
    (root / NODE / "node0/meminfo").rename(root / "meminfo")
    (root / NODE / "node0/meminfo").symlink_to(root / "meminfo")
    found = Sysfs(root).discover()
    assert found.host == host(TWO_CELLS_EIGHT_CPUS)
    assert not found.problems


@pytest.mark.parametrize(
    "path",
    [
        f"{CPU}/cpu0/topology/physical_package_id",
        f"{CPU}/cpu0/topology",
        f"{CPU}/cpu0",
        f"{CPU}/isolated",
        f"{NODE}/node0/meminfo",
        f"{NODE}/node0",
        NODE,
    ],
)
def test_a_link_out_of_the_root_is_not_followed(path: str, root: Path, tmp_path: Path) -> None:
    """The other tree is a host as well, whose figures would be believed."""
    outside = write(Machine(cores=8, memory_bytes=SECRET * 1024), tmp_path / "outside")
    for secret in ("cpu0/topology/physical_package_id", "isolated"):
        (outside / CPU / secret).write_text(str(SECRET))
    replace(root / path, lambda at: at.symlink_to(outside / path))
    found = Sysfs(root).discover()
    assert [line for line in found.problems if "a link that leads out of the root" in line]
    assert_weaker(found.host, host(TWO_CELLS_EIGHT_CPUS))


@pytest.mark.parametrize("path", ["sys", "sys/devices", "sys/devices/system", CPU])
def test_what_leads_to_the_pcpus_may_not_be_a_link_out_of_the_root(
    path: str, root: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / path).parent.mkdir(parents=True)
    (other / path).symlink_to(root / path)
    sysfs = Sysfs(other)
    for ask in (sysfs.discover, sysfs.refresh, sysfs.online):
        with pytest.raises(SysfsError, match="no pCPU is online there"):
            ask()


def test_a_host_that_did_not_change_is_the_same_object(root: Path) -> None:
    sysfs = Sysfs(root)
    first = sysfs.discover()
    assert sysfs.discover() is sysfs.refresh() is first
    (root / CPU / "cpu0/topology/physical_package_id").write_text("7")
    second = sysfs.discover()
    assert second.host != first.host
    assert second.host == Sysfs(root).discover().host


def test_what_is_online_is_not_asked_outside_of_the_root(root: Path, tmp_path: Path) -> None:
    sysfs = Sysfs(root)
    assert sysfs.online() == CpuSet(range(8))
    (root / "sys").rename(tmp_path / "sys")
    (root / "sys").symlink_to(tmp_path / "sys")
    with pytest.raises(SysfsError, match="no pCPU is online there"):
        sysfs.online()


def test_a_list_of_what_is_online_may_not_be_a_link_out_of_the_root(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "online").write_text("0-3\n")
    replace(root / CPU / "online", lambda at: at.symlink_to(tmp_path / "online"))
    assert Sysfs(root).online() == Sysfs(root).discover().host.online == CpuSet(range(8))


def test_a_neighbour_with_a_longer_name_is_outside(root: Path, tmp_path: Path) -> None:
    neighbour = write(Machine(), tmp_path / "rootless")
    file = f"{CPU}/cpu0/topology/core_id"
    (neighbour / file).write_text(str(SECRET))
    replace(root / file, lambda at: at.symlink_to(neighbour / file))
    assert Sysfs(root).discover().host.cpus[0].core is None


@pytest.mark.skipif(not Path("/", CPU).is_dir(), reason="this machine has no /sys")
def test_this_very_machine_is_discovered() -> None:
    found = Sysfs(Path("/")).discover()
    assert_invariants(found.host)
    assert set(os.sched_getaffinity(0)) <= set(found.host.online)
    assert Sysfs(Path("/")).online() == found.host.online
