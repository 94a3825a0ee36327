"""Threads by cgroup: layouts in trees of files, affinity on the real kernel of this machine."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
import uuid as uuids
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.cgroups import members
from agent.cpuset import EMPTY, CpuSet
from agent.errors import GuestGone, NotPermitted, SysfsError
from agent.snapshot import Kernel, Thread
from agent.threads import Place, Threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

UUID = "5f0ba5ae-7d1c-4ad5-8d6c-0c4ba9d5f0aa"
OTHER = "5f0ba5ae-7d1c-4ad5-8d6c-0c4ba9d5f0ab"

ROOT_FS = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard"
NO_SOURCE = "29 27 0:30 / /mnt/x\\040-\\040y rw shared:4 - tmpfs  rw"
V1_OTHER = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
V1 = "34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset"
V2 = "41 27 0:38 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"

TREE_V1 = "sys/fs/cgroup/cpuset"
TREE_V2 = "sys/fs/cgroup"
TREE_UNIFIED = "sys/fs/cgroup/unified"
SCOPE = r"machine.slice/machine-qemu\x2d7\x2dweb\x2d1.scope"

two_cpus = pytest.mark.skipif(
    os.sched_getaffinity(0) < {0, 1}, reason="host: may not use pCPUs 0 and 1"
)


class Files:
    """A tree of files that looks like a host's; the threads it names may be real ones."""

    def __init__(self, root: Path, *mounts: str) -> None:
        self.root = root
        self.put("proc/self/mountinfo", "".join(f"{line}\n" for line in (ROOT_FS, *mounts)))
        self.put("proc/self/schedstat", "1 2 3\n")

    def put(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def process(self, pid: int, *argv: str, comm: str = "qemu-kvm", started: int = 4711) -> None:
        self.put(f"proc/{pid}/cmdline", "".join(f"{word}\0" for word in argv))
        rest = " ".join(["S", *(["0"] * 18), str(started), *(["0"] * 30)])
        self.put(f"proc/{pid}/stat", f"{pid} ({comm}) {rest}\n")

    def qemu(self, pid: int, uuid: str = UUID) -> None:
        self.process(pid, "/usr/bin/qemu", "-name", "guest=web", "-uuid", uuid, "-S")

    def guest(self, path: str, version: int, *pids: int, evicted: Sequence[int] = ()) -> None:
        """Write a guest's cgroups at `path`: processes in emulator, and those thrown out of it."""
        listed = "".join(f"{pid}\n" for pid in pids)
        outside = "".join(f"{pid}\n" for pid in evicted)
        self.put(f"{path}/emulator/{'tasks' if version == 1 else 'cgroup.threads'}", listed)
        self.put(f"{path}/vcpu0/{'tasks' if version == 1 else 'cgroup.threads'}", "")
        if version == 1:
            self.put(f"{path}/emulator/cgroup.procs", listed)
        self.put(f"{path}/cgroup.procs", outside if version == 1 else listed)

    def cpus(self, path: str, version: int, asked: str, effective: str) -> None:
        self.put(f"{path}/cpuset.cpus", f"{asked}\n")
        name = "cpuset.effective_cpus" if version == 1 else "cpuset.cpus.effective"
        self.put(f"{path}/{name}", f"{effective}\n")


# --- where libvirt puts things -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mounts", "directory", "version", "partition"),
    [
        pytest.param([V1_OTHER, V1], f"{TREE_V1}/machine", 1, "/machine", id="v1 without systemd"),
        pytest.param([V1], f"{TREE_V1}/machine.slice", 1, "/machine", id="v1 with systemd"),
        pytest.param([V2], f"{TREE_V2}/machine.slice", 2, "/machine", id="v2 with systemd"),
        pytest.param([V2], f"{TREE_V2}/machine", 2, "/machine", id="v2 without systemd"),
        pytest.param([UNIFIED, V1], f"{TREE_V1}/machine", 1, "/machine", id="hybrid, cpuset on v1"),
        pytest.param(
            [NO_SOURCE, V2], f"{TREE_V2}/machine", 2, "/machine", id="mount without source"
        ),
        pytest.param(
            [V1], f"{TREE_V1}/foo.partition/bar.partition", 1, "/foo/bar", id="v1 custom partition"
        ),
        pytest.param(
            [V1], f"{TREE_V1}/machine/gold.partition", 1, "/machine/gold", id="v1 below machine"
        ),
        pytest.param(
            [V1], f"{TREE_V1}/gold.partition/user.partition", 1, "/gold/user", id="v1 user below"
        ),
        pytest.param([V1], f"{TREE_V1}/a.b/_cpu.partition", 1, "/a.b/cpu", id="v1 reserved names"),
        pytest.param(
            [V2], f"{TREE_V2}/machine.slice/machine-gold.slice", 2, "/machine/gold", id="v2 slice"
        ),
        pytest.param(
            [V2], rf"{TREE_V2}/my\x2dvms.slice", 2, "/my-vms", id="systemd escapes the dash"
        ),
        pytest.param([V2], rf"{TREE_V2}/\x2e\xc3\xa4.slice", 2, "/.ä", id="systemd escapes bytes"),
        pytest.param([V2], TREE_V2, 2, "/", id="the root is a partition"),
    ],
)
def test_partition_has_the_effective_cpuset_of_its_cgroup(
    tmp_path: Path, mounts: list[str], directory: str, version: int, partition: str
) -> None:
    files = Files(tmp_path, *mounts)
    files.cpus(directory, version, "0-7", "0-5")
    assert Threads(tmp_path).partition(partition) == CpuSet.parse("0-5")


def test_partition_before_linux_3_17_is_what_was_asked_for(tmp_path: Path) -> None:
    Files(tmp_path, V1).put(f"{TREE_V1}/machine/cpuset.cpus", "0-3\n")
    assert Threads(tmp_path).partition() == CpuSet.parse("0-3")


@pytest.mark.parametrize(
    "path", ["/machine", "/../../etc", "/machine/..", "/a\0b", "/" + "x" * 300, "/\ud800", ""]
)
def test_a_partition_that_is_not_there_is_none(tmp_path: Path, path: str) -> None:
    files = Files(tmp_path, V2)
    files.put(f"{TREE_V2}/cgroup.procs", "")
    files.put("sys/fs/cpuset.cpus.effective", "0-1\n")
    files.put("etc/cpuset.cpus.effective", "0-1\n")
    assert Threads(tmp_path).partition(path) is None


def test_without_any_cgroup_nothing_is_found(tmp_path: Path) -> None:
    for threads in (Threads(tmp_path), Threads(Files(tmp_path).root)):
        assert threads.partition() is None
        assert threads.locate(UUID, 7) is None


def test_a_mount_of_the_whole_tree_is_preferred_and_names_are_unescaped(tmp_path: Path) -> None:
    part = "33 31 0:31 /docker/x /part rw - cgroup cgroup rw,cpuset"
    files = Files(tmp_path, part, V1.replace("/sys/fs/cgroup/cpuset", "/odd\\040place"))
    files.cpus("part/machine", 1, "0", "0")
    files.cpus("odd place/machine", 1, "1", "1")
    assert Threads(tmp_path).partition() == CpuSet.of(1)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("proc/self/mountinfo", "nonsense\n"),
        ("sys/devices/system/cpu/possible", "many\n"),
        (f"{TREE_V1}/machine/cpuset.effective_cpus", "0-\n"),
        (f"{TREE_V1}/machine/qemu-7-a.libvirt-qemu/emulator/cgroup.procs", "1\nx\n"),
        (f"{TREE_V1}/machine/qemu-7-a.libvirt-qemu/emulator/cgroup.procs", "-1\n"),
        ("proc/50/stat", "50 (qemu) S 1\n"),
        ("proc/50/cmdline", "x" * (1 << 24) + "x"),
    ],
)
def test_text_that_cannot_be_understood_names_its_file(
    tmp_path: Path, path: str, text: str
) -> None:
    files = Files(tmp_path, V1)
    files.guest(f"{TREE_V1}/machine/qemu-7-a.libvirt-qemu", 1, 50)
    files.qemu(50)
    files.put(path, text)
    with pytest.raises(SysfsError) as caught:
        look(Threads(tmp_path))
    assert caught.value.path == str(tmp_path / path)


def look(threads: Threads) -> None:
    threads.partition()
    threads.locate(UUID, 7)


# --- which guest it is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mounts", "guest", "version"),
    [
        pytest.param([V1], f"{TREE_V1}/machine/qemu-7-web.libvirt-qemu", 1, id="v1, no systemd"),
        pytest.param([V1], f"{TREE_V1}/{SCOPE}/libvirt", 1, id="v1, systemd"),
        pytest.param([V2], f"{TREE_V2}/{SCOPE}/libvirt", 2, id="v2, systemd"),
        pytest.param([V2], f"{TREE_V2}/{SCOPE}", 2, id="v2, systemd, no inner cgroup"),
        pytest.param([V2], f"{TREE_V2}/machine/qemu-7-web.libvirt-qemu", 2, id="v2, no systemd"),
        pytest.param(
            [V1, UNIFIED], f"{TREE_UNIFIED}/{SCOPE}/libvirt", 2, id="hybrid, libvirt without cpuset"
        ),
    ],
)
def test_a_guest_is_found_in_every_layout(
    tmp_path: Path, mounts: list[str], guest: str, version: int
) -> None:
    files = Files(tmp_path, *mounts)
    files.guest(guest, version, 50)
    files.qemu(50)
    place = Threads(tmp_path).locate(UUID, 7, None)
    path = str(tmp_path / guest)
    assert place == Place(f"{path}/emulator", path, 50, 4711, version)


@pytest.mark.parametrize(
    ("option", "arrived"),
    [
        pytest.param("-incoming", True, id="by migration or restore"),
        pytest.param("-loadvm", True, id="by reverting to a snapshot"),
        pytest.param("guest=-incoming", False, id="started here"),
    ],
)
def test_a_guest_that_did_not_start_here_is_known_by_its_arguments(
    tmp_path: Path, option: str, *, arrived: bool
) -> None:
    files = Files(tmp_path, V1)
    files.guest(f"{TREE_V1}/machine/qemu-7-a.libvirt-qemu", 1, 50)
    files.process(50, "qemu", "-uuid", UUID, option, "defer")
    place = Threads(tmp_path).locate(UUID, 7)
    assert place is not None
    assert place.arrived is arrived


def test_version_1_comes_first_where_a_guest_is_in_both_trees(tmp_path: Path) -> None:
    files = Files(tmp_path, UNIFIED, V1)
    files.guest(f"{TREE_V1}/{SCOPE}/libvirt", 1, 50)
    files.guest(f"{TREE_UNIFIED}/{SCOPE}/libvirt", 2, 50)
    files.qemu(50)
    place = Threads(tmp_path).locate(UUID, 7)
    assert place is not None
    assert place.version == 1


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("qemu-7-web.libvirt-qemu", ["qemu", "-uuid", OTHER]),
        ("qemu-7-web.libvirt-qemu", ["qemu", "-uuid", f"{UUID}0"]),
        ("qemu-7-web.libvirt-qemu", ["qemu", "-name", UUID]),
        ("qemu-7-web.libvirt-qemu", ["qemu", f"-uuid {UUID}"]),
        ("qemu-7-web.libvirt-qemu", []),
        ("qemu-77-web.libvirt-qemu", ["qemu", "-uuid", UUID]),
        ("qemu-70-7-web.libvirt-qemu", ["qemu", "-uuid", UUID]),
        ("lxc-7-web.libvirt-lxc", ["qemu", "-uuid", UUID]),
        ("qemu-7-web.libvirt-lxc", ["qemu", "-uuid", UUID]),
        (r"machine-qemu\x2d77\x2dweb.scope", ["qemu", "-uuid", UUID]),
    ],
)
def test_what_is_not_the_guest_is_not_taken_for_it(
    tmp_path: Path, name: str, argv: list[str]
) -> None:
    files = Files(tmp_path, V1)
    files.guest(f"{TREE_V1}/machine/{name}", 1, 50)
    files.process(50, *argv)
    assert Threads(tmp_path).locate(UUID, 7) is None


def test_two_libvirtd_with_the_same_ids_are_told_apart(tmp_path: Path) -> None:
    files = Files(tmp_path, V1)
    for pid, (name, uuid) in enumerate([("a", OTHER), ("b", UUID), ("\n-uuid", OTHER)], 50):
        files.guest(f"{TREE_V1}/machine/qemu-7-{name}.libvirt-qemu", 1, pid)
        files.qemu(pid, uuid)
    threads = Threads(tmp_path)
    mine, others = threads.locate(UUID, 7), threads.locate(OTHER, 7)
    assert mine is not None
    assert mine.pid == 51
    assert others is not None
    assert others.pid in {50, 52}


def test_workers_and_helpers_beside_qemu_are_passed_over(tmp_path: Path) -> None:
    files = Files(tmp_path, V1)
    files.guest(f"{TREE_V1}/machine/qemu-7-a.libvirt-qemu", 1, 30, 31, 32, 50)
    files.process(30)  # vhost worker
    files.process(31, "swtpm", "socket")
    files.process(50, "qemu", "-uuid", UUID, comm="q) S 9 (9 9", started=99)
    place = Threads(tmp_path).locate(UUID, 7)  # 32 has ended
    assert place is not None
    assert (place.pid, place.started) == (50, 99)


def test_a_guest_thrown_out_of_its_empty_cpuset_is_found(tmp_path: Path) -> None:
    files = Files(tmp_path, V1)
    files.guest(f"{TREE_V1}/machine/qemu-7-a.libvirt-qemu", 1, evicted=[os.getpid()])
    files.cpus(f"{TREE_V1}/machine/qemu-7-a.libvirt-qemu/emulator", 1, "", "")
    files.qemu(os.getpid())
    threads = Threads(tmp_path)
    place = threads.locate(UUID, 7)
    assert place is not None
    kernel = threads.read(place)
    assert (kernel.threads, kernel.cpus, kernel.parent) == ((), EMPTY, None)
    assert not threads.settle(place, CpuSet.of(0)).verified


# --- reading -------------------------------------------------------------------------------------


def own_place(files: Files, *tids: int) -> tuple[Threads, Place]:
    """Place real threads in a version 2 guest of files, this process as QEMU."""
    guest = f"{TREE_V2}/{SCOPE}/libvirt"
    files.guest(guest, 2, *(tids or (os.getpid(),)))
    path = str(files.root / guest)
    files.qemu(os.getpid())
    return Threads(files.root), Place(f"{path}/emulator", path, os.getpid(), 4711, 2)


def test_threads_that_ended_and_foreign_namespaces_are_left_out(tmp_path: Path) -> None:
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    threads, place = own_place(Files(tmp_path, V2), 0, ended.pid, os.getpid())
    assert [thread.tid for thread in threads.read(place).threads] == [os.getpid()]
    assert threads.read(place).threads[0].cpus == CpuSet(os.sched_getaffinity(0))


def test_iothreads_are_told_by_number_and_foreign_names_ignored(tmp_path: Path) -> None:
    files = Files(tmp_path, V2)
    threads, place = own_place(files)
    numbers = [33, 10, 2, 7, 21, 100, 5]
    for name in (*numbers, "", "1x", "3\n"):
        files.put(f"{TREE_V2}/{SCOPE}/libvirt/iothread{name}/cgroup.threads", f"{os.getpid()}\n")
    found = threads.read(place).iothreads
    assert [(number, len(inner)) for number, inner in found] == [(n, 1) for n in sorted(numbers)]
    known = threads.read(place, [10, 2, 99]).iothreads  # 99 has no cgroup (any more)
    assert known == tuple(one for one in found if one[0] in {2, 10})


def test_a_list_of_threads_that_comes_in_pieces_is_read_to_its_end(tmp_path: Path) -> None:
    """The kernel fills a page at most, and one may end with a line."""
    (tmp_path / "tasks").write_text("".join(f"{tid:07d}\n" for tid in range(1, 2001)))
    assert members(1, str(tmp_path)) == tuple(range(1, 2001))


def test_a_guest_is_gone_with_its_cgroup_or_its_process(tmp_path: Path) -> None:
    files = Files(tmp_path, V2)
    threads, place = own_place(files, 0)
    assert threads.read(place).threads == ()  # it lives, in another cgroup
    files.process(place.pid, "sh", started=4712)  # the id was used again
    for call in (threads.read, lambda it: threads.settle(it, CpuSet.of(0))):
        with pytest.raises(GuestGone):
            call(place)
    (Path(place.emulator) / "cgroup.threads").unlink()
    files.qemu(place.pid)
    with pytest.raises(GuestGone):
        threads.read(place)


def test_times_are_told_by_kind_and_none_without_schedstat(tmp_path: Path) -> None:
    files = Files(tmp_path, V2)
    threads, _ = own_place(files, 8, os.getpid())
    files.put(f"proc/{os.getpid()}/schedstat", "100 20 3\n")
    files.put("proc/9/schedstat", "7 5 1\n")
    mine, ended, inner = (Thread(tid, CpuSet.of(0)) for tid in (os.getpid(), 8, 9))
    kernel = Kernel(None, None, (mine, ended), ((1, (inner,)),))
    times = threads.times(kernel)
    assert times is not None
    assert times.emulator == ((os.getpid(), 100, 20),)
    assert times.iothreads == ((9, 7, 5),)
    (tmp_path / "proc/self/schedstat").unlink()
    assert Threads(tmp_path).times(kernel) is None


# --- a process to act on -------------------------------------------------------------------------

PROGRAM = """
import os, sys, threading
ends = {}
def run(end, born):
    ends[threading.get_native_id()] = (end, threading.current_thread())
    born.set()
    end.wait()
for line in sys.stdin:
    word, *rest = line.split()
    if word == "start":
        born = threading.Event()
        thread = threading.Thread(target=run, args=(threading.Event(), born), daemon=True)
        thread.start(); born.wait()
        print(thread.native_id, flush=True)
    elif word == "setuid":
        os.setuid(int(rest[0]))
        print("done", flush=True)
    else:
        end, thread = ends.pop(int(rest[0]))
        end.set(); thread.join()
        print("ended", flush=True)
"""


class Process:
    """A stand-in for QEMU that starts and ends threads on demand."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        command = [sys.executable, "-S", "-c", PROGRAM, "-name", "x", "-uuid", uuid, "-S"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.worker = self.start()

    def ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()

    def start(self) -> int:
        return int(self.ask("start"))

    def end(self, tid: int) -> None:
        self.ask(f"end {tid}")

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process(str(uuids.uuid4()))
    yield made
    made.kill()


def outside(files: Files, process: Process, *cpuset: str) -> tuple[Threads, Place]:
    """Place `process` in a guest of files, where the kernel does not help to hold its threads."""
    threads, place = own_place(files, process.pid, process.worker)
    if cpuset:
        files.cpus(f"{TREE_V2}/{SCOPE}/libvirt/emulator", 2, *cpuset)
    for tid in (process.pid, process.worker):
        os.sched_setaffinity(tid, {0})
    return threads, Place(place.emulator, place.guest, process.pid, 4711, 2)


@two_cpus
@pytest.mark.parametrize(
    ("cpuset", "target"),
    [
        pytest.param([], "0", id="no cpuset controller"),
        pytest.param(["", "0"], "0", id="v2 cpuset that only inherits"),
        pytest.param(["0-1", "0-1"], "0", id="somebody else's cpuset"),
        pytest.param(["0", "0-1"], "0", id="v2 nothing left, so all of the parent"),
        pytest.param(["0", ""], "0", id="no CPU in force"),
    ],
)
def test_nothing_is_loosened_where_no_cpuset_would_hold_it(
    tmp_path: Path, process: Process, cpuset: list[str], target: str
) -> None:
    threads, place = outside(Files(tmp_path, V2), process, *cpuset)
    settled = threads.settle(place, CpuSet.parse(target))
    assert (settled.verified, settled.stuck, settled.permitted) == (False, (), True)
    assert os.sched_getaffinity(process.worker) == {0}
    if not cpuset or not cpuset[0]:
        threads.loosen(place)
        assert os.sched_getaffinity(process.worker) == {0}


@two_cpus
@pytest.mark.parametrize(
    ("cpuset", "target"),
    [
        pytest.param(["0-1", "0-1"], "0-1", id="as asked for"),
        pytest.param(["0-3", "0-1"], "0-1", id="in force as asked for, and more asked for once"),
        pytest.param(["0-3", "0-1"], "0-3", id="a CPU of it went off line since"),
    ],
)
def test_threads_are_loosened_where_the_cpuset_is_the_target(
    tmp_path: Path, process: Process, cpuset: list[str], target: str
) -> None:
    files = Files(tmp_path, V2)
    files.put("sys/devices/system/cpu/possible", "0-1\n")
    threads, place = outside(files, process, *cpuset)
    settled = threads.settle(place, CpuSet.parse(target))
    assert (settled.verified, settled.stuck) == (True, ())
    assert os.sched_getaffinity(process.worker) == {0, 1}


@two_cpus
def test_possible_cpus_are_the_kernels_and_stuck_threads_are_told(
    tmp_path: Path, process: Process
) -> None:
    files = Files(tmp_path, V2)
    files.put("sys/devices/system/cpu/possible", "1,500\n")  # ids with a gap
    threads, place = outside(files, process, "0-1", "0-1")
    settled = threads.settle(place, CpuSet.parse("0-1"))
    assert os.sched_getaffinity(process.worker) == {1}
    assert settled.stuck == tuple(sorted((process.pid, process.worker)))


@two_cpus
@pytest.mark.parametrize(
    ("counts", "stuck"),
    [
        pytest.param([1, 2, 3, 4], 3, id="one born in each of three rounds, the last after it"),
        pytest.param([2, 2, 4, 4], 2, id="no third round once nobody is new"),
    ],
)
def test_threads_born_meanwhile_are_loosened_in_at_most_three_rounds(
    tmp_path: Path, process: Process, counts: list[int], stuck: int
) -> None:
    threads, place = outside(Files(tmp_path, V2), process, "0-1", "0-1")
    tids = [process.pid, *(process.start() for _ in range(3))]
    for tid in tids:
        os.sched_setaffinity(tid, {0})
    with feed(Path(place.emulator) / "cgroup.threads", [tids[:count] for count in counts]):
        settled = threads.settle(place, CpuSet.parse("0-1"))
    assert settled.stuck == tuple(sorted(tids[stuck:]))
    assert os.sched_getaffinity(tids[stuck - 1]) == {0, 1}


@contextmanager
def feed(path: Path, readings: list[list[int]]) -> Iterator[None]:
    """Put a pipe at `path`, so that each reading gets what is next."""
    path.unlink()
    os.mkfifo(path)

    def write() -> None:
        for tids in readings:
            with path.open("w") as pipe:  # waits for a reader; the next one gets a new pipe
                path.unlink()
                os.mkfifo(path)
                pipe.write("".join(f"{tid}\n" for tid in tids))

    threading.Thread(target=write, daemon=True).start()
    yield


@two_cpus
@pytest.mark.skipif(os.getuid() != 0, reason="host: takes root to have a capability to give up")
def test_without_cap_sys_nice_threads_are_stuck_and_it_is_said(
    tmp_path: Path, process: Process
) -> None:
    threads, place = outside(Files(tmp_path, V2), process, "0-1", "0-1")
    process.ask("setuid 65534")  # its owner would need no capability
    with ThreadPoolExecutor(1, initializer=drop, initargs=(CAP_SYS_NICE,)) as pool:
        settled = pool.submit(threads.settle, place, CpuSet.parse("0-1")).result()
        loosened = pool.submit(threads.loosen, place)
    stuck = tuple(sorted((process.pid, process.worker)))
    assert (settled.verified, settled.stuck, settled.permitted) == (True, stuck, False)
    with pytest.raises(NotPermitted, match=f"thread {stuck[0]}$"):
        loosened.result()
    threads.loosen(place)
    assert os.sched_getaffinity(process.worker) == {0, 1}


def test_what_may_not_be_read_is_not_permitted(tmp_path: Path) -> None:
    threads, place = own_place(Files(tmp_path, V2))
    with ThreadPoolExecutor(1, initializer=drop, initargs=CAPS_DAC) as pool:
        Path(place.guest).chmod(0o111)
        with pytest.raises(NotPermitted, match="libvirt: Permission denied"):
            pool.submit(threads.read, place).result()
        (Path(place.emulator) / "cgroup.threads").chmod(0)
        with pytest.raises(NotPermitted, match=r"cgroup\.threads: Permission denied"):
            pool.submit(threads.read, place).result()
        Path(place.guest).chmod(0o755)


CAPS_DAC = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
CAP_SYS_NICE = 23


def drop(*capabilities: int) -> None:
    """Take capabilities from the effective set of this thread, and of no other."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for capability in capabilities:
        sets[0] &= ~(1 << capability)
    assert libc.capset(header, sets) == 0


# --- on this machine's kernel --------------------------------------------------------------------


class Cgroups:
    """Real cgroups of a guest, below a partition of our own."""

    def __init__(self, mount: str) -> None:
        self.partition = f"/emupool-test-{os.getpid()}-{time.monotonic_ns()}"
        self.top = Path(f"{mount}{self.partition}.partition")
        self.guest = self.top / "qemu-7-a b.libvirt-qemu"
        self.emulator = self.guest / "emulator"

    def make(self, *below: str, mems: str = "0") -> None:
        for path in (self.top, self.guest, *(self.guest / name for name in below)):
            path.mkdir()
            if (path / "cpuset.mems").exists():
                (path / "cpuset.mems").write_text(mems)
                (path / "cpuset.cpus").write_text("0-1")

    def sweep(self) -> None:
        for path in sorted(self.top.rglob("*/"), reverse=True):
            if path.is_dir():
                path.rmdir()
        self.top.rmdir()


def move(tid: int, cgroup: Path, file: str = "tasks") -> None:
    (cgroup / file).write_text(str(tid))


@pytest.fixture
def cgroups(process: Process) -> Iterator[Cgroups]:
    mount = "/sys/fs/cgroup/cpuset"
    if os.getuid() != 0 or not os.access(f"{mount}/cpuset.effective_cpus", os.R_OK):
        pytest.skip("host: takes root and a cpuset controller on cgroup v1")
    made = Cgroups(mount)
    made.make("emulator", "vcpu0", "iothread1")
    move(process.pid, made.emulator, "cgroup.procs")
    yield made
    process.kill()
    made.sweep()


def pin(cgroup: Path, main: int | None, cpus: str) -> None:
    """Do what virDomainPinEmulator does: the cpuset, and the mask of the main thread alone."""
    (cgroup / "cpuset.cpus").write_text(cpus)
    if main is not None:
        os.sched_setaffinity(main, CpuSet.parse(cpus))


def find(cgroups: Cgroups, uuid: str) -> tuple[Threads, Place]:
    threads = Threads()
    place = threads.locate(uuid, 7, cgroups.partition)
    assert place is not None
    return threads, place


@two_cpus
def test_a_real_guest_is_located_and_read(cgroups: Cgroups, process: Process) -> None:
    threads, place = find(cgroups, process.uuid)
    started = place.started / os.sysconf("SC_CLK_TCK")
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert (place.pid, place.version) == (process.pid, 1)
    assert (place.emulator, place.guest) == (str(cgroups.emulator), str(cgroups.guest))
    assert 0 <= uptime - started < 60
    pin(cgroups.emulator, None, "1")
    kernel = threads.read(place)
    assert (kernel.cpus, kernel.parent) == (CpuSet.of(1), CpuSet.of(0, 1))
    assert threads.partition(cgroups.partition) == CpuSet.of(0, 1)
    assert [thread.tid for thread in kernel.threads] == [process.pid, process.worker]
    assert {thread.cpus for thread in kernel.threads} == {CpuSet.of(1)}
    assert kernel.iothreads == ((1, ()),)
    assert threads.locate(OTHER, 7, cgroups.partition) is None
    assert threads.locate(process.uuid, 8, cgroups.partition) is None


@two_cpus
def test_the_widening_trap_is_sprung_and_settle_repairs_it(
    cgroups: Cgroups, process: Process
) -> None:
    threads, place = find(cgroups, process.uuid)
    pin(cgroups.emulator, process.pid, "0")
    born = process.start()
    pin(cgroups.emulator, process.pid, "0-1")
    before = {thread.tid: thread.cpus for thread in threads.read(place).threads}
    assert before[process.pid] == CpuSet.of(0, 1)
    if kernel_release() >= (6, 2):
        assert before[born] == CpuSet.of(0)
    settled = threads.settle(place, CpuSet.of(0, 1))
    assert (settled.verified, settled.stuck, settled.permitted) == (True, (), True)
    assert os.sched_getaffinity(born) == {0, 1}


def kernel_release() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


@two_cpus
def test_after_settling_narrow_later_threads_follow_every_pin(
    cgroups: Cgroups, process: Process
) -> None:
    threads, place = find(cgroups, process.uuid)
    pin(cgroups.emulator, process.pid, "0")
    assert threads.settle(place, CpuSet.of(0)).verified
    later = process.start()
    assert os.sched_getaffinity(later) == {0}
    for cpus in ("0-1", "1", "0-1"):
        pin(cgroups.emulator, None, cpus)
        assert {thread.cpus for thread in threads.read(place).threads} == {CpuSet.parse(cpus)}


@two_cpus
def test_taskset_behind_our_back_is_seen_and_repaired(cgroups: Cgroups, process: Process) -> None:
    threads, place = find(cgroups, process.uuid)
    subprocess.run(["taskset", "-a", "-p", "1", str(process.pid)], check=True, capture_output=True)
    assert {thread.cpus for thread in threads.read(place).threads} == {CpuSet.of(0)}
    assert threads.settle(place, CpuSet.of(1)).stuck == (process.pid, process.worker)
    settled = threads.settle(place, CpuSet.of(0, 1))
    assert (settled.verified, settled.stuck) == (True, ())
    assert {thread.cpus for thread in settled.kernel.threads} == {CpuSet.of(0, 1)}


@two_cpus
def test_iothreads_are_settled_apart(cgroups: Cgroups, process: Process) -> None:
    threads, place = find(cgroups, process.uuid)
    iothread = cgroups.guest / "iothread1"
    assert not threads.settle_iothread(place, 1, CpuSet.of(0, 1)).verified  # nobody in there
    assert not threads.settle_iothread(place, 2, CpuSet.of(0, 1)).verified
    move(process.worker, iothread)
    for tid in (process.pid, process.worker):
        os.sched_setaffinity(tid, {0})
    settled = threads.settle_iothread(place, 1, CpuSet.of(0))
    assert (settled.verified, settled.stuck) == (False, ())
    settled = threads.settle_iothread(place, 1, CpuSet.of(0, 1))
    assert (settled.verified, settled.stuck) == (True, ())
    assert os.sched_getaffinity(process.worker) == {0, 1}
    assert os.sched_getaffinity(process.pid) == {0}
    os.sched_setaffinity(process.worker, {0})
    threads.loosen(place)
    assert os.sched_getaffinity(process.worker) == {0}
    threads.loosen_iothread(place, 1)
    assert os.sched_getaffinity(process.worker) == {0, 1}


@two_cpus
def test_a_main_thread_outside_its_cpuset_is_not_verified(
    cgroups: Cgroups, process: Process
) -> None:
    threads, place = find(cgroups, process.uuid)
    move(process.pid, cgroups.guest)
    assert threads.locate(process.uuid, 7, cgroups.partition) == place
    assert [thread.tid for thread in threads.read(place).threads] == [process.worker]
    assert not threads.settle(place, CpuSet.of(0, 1)).verified


def test_threads_may_end_at_any_moment_while_one_looks(cgroups: Cgroups, process: Process) -> None:
    threads, place = find(cgroups, process.uuid)
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            process.end(process.start())

    churning = threading.Thread(target=churn)
    churning.start()
    counts, files = set[int](), open_files()
    try:
        rounds = 0
        while rounds < 300 or len(counts) == 1:
            rounds += 1
            kernel = threads.settle(place, CpuSet.of(0, 1)).kernel
            counts.add(len(kernel.threads))
            assert threads.times(kernel) is not None
    finally:
        stop.set()
        churning.join()
    assert counts <= {2, 3, 4}  # one that ends may be on the list for a moment more
    assert open_files() == files


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_killed_guest_is_gone(cgroups: Cgroups, process: Process) -> None:
    threads, place = find(cgroups, process.uuid)
    process.kill()
    for call in (threads.read, lambda it: threads.settle(it, CpuSet.of(0, 1))):
        with pytest.raises(GuestGone):
            call(place)
    assert threads.locate(process.uuid, 7, cgroups.partition) is None


def test_a_cgroup_removed_after_the_open_is_gone(tmp_path: Path, cgroups: Cgroups) -> None:
    threads, place = own_place(Files(tmp_path, V2))
    with (cgroups.guest / "vcpu0/tasks").open() as tasks:
        (cgroups.guest / "vcpu0").rmdir()
        listed = Path(place.emulator) / "cgroup.threads"
        listed.unlink()
        listed.symlink_to(f"/proc/self/fd/{tasks.fileno()}")
        with pytest.raises(OSError, match="No such device"):
            listed.read_text()
        with pytest.raises(GuestGone):
            threads.read(place)


def test_times_grow_with_work(cgroups: Cgroups, process: Process) -> None:
    threads, place = find(cgroups, process.uuid)
    before = threads.times(threads.read(place))
    for _ in range(50):
        process.end(process.start())
    after = threads.times(threads.read(place))
    assert before is not None
    assert after is not None
    # One that has ended may be on the kernel's list for a moment longer.
    assert {process.pid, process.worker} <= {tid for tid, _, _ in after.emulator}
    assert after.emulator[0][0] == process.pid
    assert after.emulator[0][1] > before.emulator[0][1]
    assert after.emulator[0][2] >= before.emulator[0][2]


def test_a_real_version_2_guest_without_cpuset_is_read_but_not_verified(process: Process) -> None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mount = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    if os.getuid() != 0 or mount is None or not os.path.ismount("/sys/fs/cgroup/cpuset"):
        pytest.skip("host: takes root and cgroup v2 beside a cpuset controller on v1")
    made = Cgroups(mount)
    made.make("emulator", "vcpu0")
    try:
        for name in ("emulator", "vcpu0"):
            (made.guest / name / "cgroup.type").write_text("threaded")
        move(process.pid, made.guest, "cgroup.procs")
        move(process.pid, made.emulator, "cgroup.threads")
        move(process.worker, made.guest / "vcpu0", "cgroup.threads")
        threads, place = find(made, process.uuid)
        assert (place.pid, place.version, place.guest) == (process.pid, 2, str(made.guest))
        kernel = threads.read(place)
        assert (kernel.cpus, kernel.parent) == (None, None)
        assert [thread.tid for thread in kernel.threads] == [process.pid]
        assert not threads.settle(place, CpuSet(os.sched_getaffinity(0))).verified
    finally:
        process.kill()
        made.sweep()
