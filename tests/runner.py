"""The process in which a private libvirtd lives: `python -m tests.runner [QEMU_CONF_LINE...]`.

It has its own mount namespace, with tmpfs over all that libvirt keeps (which is also where real
hosts have /run), so that nothing is shared with a libvirtd of the machine but the cgroups. It
is the reaper of every orphan below it: where PID 1 reaps lazily, libvirtd sees a guest's end
seconds late.

It obeys lines on standard input: `start` starts libvirtd and answers `started PID` or
`failed REASON`. The end of the input ends everything, so the death of a test run does too: all
processes below are killed, and the cgroups of their guests, the sockets and logs are removed.

Guests are to be named with the prefix of `names_of(runner's pid)`. What a killed runner left is
known by it, and swept by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ROOT: Final = Path(__file__).resolve().parent.parent
PRIVATE_DIRS: Final = (
    "/run/libvirt",
    "/etc/libvirt",
    "/var/lib/libvirt",
    "/var/log/libvirt",
    "/var/cache/libvirt",
)
# QEMU's capabilities, probed once in 0.9 s; libvirt checks by itself whether they still hold.
CACHE: Final = ROOT / ".cache" / "libvirt"

DAEMONS: Final = frozenset({"libvirtd", "virtqemud"})

# libvirt migrates between hosts of different UUIDs only.
LIBVIRTD_CONF: Final = """\
unix_sock_dir = "{home}"
host_uuid = "{uuid}"
auth_unix_ro = "none"
auth_unix_rw = "none"
"""
QEMU_CONF: Final = """\
user = "root"
group = "root"
remember_owner = 0
clear_emulator_capabilities = 0
security_driver = "none"
stdio_handler = "file"
namespaces = []
"""

CLONE_NEWNS: Final = 0x00020000
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36

_libc = ctypes.CDLL(None, use_errno=True)


def home_of(runner: int) -> Path:
    """Return the directory of the sockets and logs of a runner, given its pid."""
    return Path(f"/tmp/emt{runner}")


def names_of(runner: int) -> str:
    """Return what the names of all guests of a runner begin with."""
    return f"emt{runner}-"


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str | None = None, flags: int = 0) -> None:
    texts = (None if text is None else text.encode() for text in (source, target, kind))
    _check(_libc.mount(*texts, ctypes.c_ulong(flags), None), f"mount on {target}")


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def isolate(home: Path) -> None:
    """Enter an own mount namespace in which libvirt's directories are empty."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    for path in PRIVATE_DIRS:
        Path(path).mkdir(parents=True, exist_ok=True)
        _mount("emupool-tests", path, "tmpfs")
    CACHE.mkdir(parents=True, exist_ok=True)
    _mount(str(CACHE), "/var/cache/libvirt", None, MS_BIND)
    # libvirtd wants the user of its packaging to exist, even if qemu.conf names another.
    for table, entry in (
        ("passwd", "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin\n"),
        ("group", "libvirt-qemu:x:64055:\n"),
    ):
        original = Path("/etc", table)
        text = original.read_text()
        if not re.search(r"^libvirt-qemu:", text, re.MULTILINE):
            copy = home / table
            copy.write_text(text + entry)
            _mount(str(copy), str(original), None, MS_BIND)


def cgroup_mounts() -> Iterator[Path]:
    """Yield where each cgroup hierarchy of the machine is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount_point, kind, *_ = line.split()
        if kind in {"cgroup", "cgroup2"}:
            yield Path(mount_point)


def partitions() -> list[Path]:
    """Return the directories below which libvirt makes those of guests, where they exist."""
    wanted = (mount / name for mount in cgroup_mounts() for name in ("machine", "machine.slice"))
    return [path for path in wanted if path.is_dir()]


def guest_cgroups(wanted: Callable[[int], bool] = lambda _: True) -> Iterator[tuple[int, Path]]:
    """Yield the cgroups of guests of all runners that are `wanted`, with the runner's pid."""
    for partition in partitions():
        for path in partition.iterdir():
            # systemd escapes the dashes
            match = re.match(r"(?:machine-)?qemu(?:-|\\x2d)\d+(?:-|\\x2d)emt(\d+)\D", path.name)
            if match and wanted(int(match[1])):
                yield int(match[1]), path


def remove_cgroup(path: Path, seconds: float = 5.0) -> None:
    """Kill what is in a cgroup and below it, and remove it."""
    deadline = time.monotonic() + seconds
    while path.exists():
        for directory in (*sorted(path.rglob("*/"), reverse=True), path):
            with contextlib.suppress(OSError):
                for pid in (directory / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):  # busy until its last process is reaped
                directory.rmdir()
        if path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} stays busy")
            time.sleep(0.01)


def remove_partitions() -> None:
    """Remove the empty parents of guests' cgroups, unless a libvirtd may be about to use them."""
    if any(Path(arguments[0]).name in DAEMONS for _, _, arguments in processes()):
        return
    for path in partitions():
        if path.name == "machine":  # the other one is systemd's
            with contextlib.suppress(OSError):
                path.rmdir()


def processes() -> Iterator[tuple[int, int, list[str]]]:
    """Yield pid, parent and arguments of every process of the machine."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                yield int(entry.name), int(parent), arguments


def is_runner(pid: int) -> bool:
    """Tell whether `pid` is a runner that lives, other than this one."""
    try:
        return pid != os.getpid() and b"tests.runner" in Path(
            f"/proc/{pid}/cmdline"
        ).read_bytes().split(b"\0")
    except OSError:
        return False


def sweep() -> None:
    """Remove what runners left that were killed: guests, their cgroups, directories."""
    for pid, _, arguments in processes():
        named = next((text for text in arguments if text.startswith("guest=emt")), "")
        match = re.match(r"guest=emt(\d+)-", named)
        if match and not is_runner(int(match[1])):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for _, path in guest_cgroups(lambda runner: not is_runner(runner)):
        remove_cgroup(path)
    for path in Path("/tmp").glob("emt[0-9]*"):
        if path.name[3:].isdigit() and not is_runner(int(path.name[3:])):
            shutil.rmtree(path, ignore_errors=True)


def reap() -> bool:
    """Take leave of every child that ended; False if there is no child at all."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


class Runner:
    """The libvirtd of one runner, and all that it starts."""

    def __init__(self, home: Path) -> None:
        """Keep everything in `home`, a directory that exists."""
        self._home = home
        self._config = home / "libvirtd.conf"
        self._config.write_text(LIBVIRTD_CONF.format(home=home, uuid=uuid4()))

    def start(self) -> str:
        """Start libvirtd, and return the answer; it is not yet reachable then."""
        with (self._home / "libvirtd.log").open("ab") as log:
            try:
                daemon = subprocess.Popen(
                    ["libvirtd", "--config", self._config, "--pid-file", self._home / "pid"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=die_with_parent,  # noqa: PLW1509 -- this process has one thread
                )
            except OSError as error:
                return f"failed {error}"
        daemon.returncode = 0  # or Popen would wait for it one day: that is for reap() alone
        return f"started {daemon.pid}"

    def stop(self) -> None:
        """Kill every process below, libvirtd first; remove the cgroups of guests, and the home."""
        while reap():
            # libvirtd first: it need not hear of the others' end
            for pid, parent, _ in sorted(
                processes(), key=lambda process: "libvirtd" not in process[2]
            ):
                if parent == os.getpid():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        for _, path in guest_cgroups(lambda runner: runner == os.getpid()):
            remove_cgroup(path)
        remove_partitions()
        shutil.rmtree(self._home, ignore_errors=True)


def say(answer: str) -> None:
    """Answer in one line."""
    sys.stdout.write(answer.replace("\n", " ") + "\n")
    sys.stdout.flush()


def obey(runner: Runner, wake: int) -> None:
    """Carry out the lines of standard input until it ends, reaping all the while."""
    pending = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            if signal.SIGTERM in os.read(wake, 4096):
                return
            reap()
        if 0 in ready:
            chunk = os.read(0, 4096)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                answer = runner.start() if line == b"start" else f"failed unknown line {line!r}"
                say(answer)


def main(arguments: Iterable[str]) -> NoReturn:
    """Run until standard input ends; `arguments` are lines of qemu.conf that go before ours."""
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the test run; its end ends our input
    wake, on_signal = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(on_signal, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    sweep()
    home = home_of(os.getpid())
    home.mkdir(mode=0o755)
    try:
        isolate(home)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        Path("/etc/libvirt/qemu.conf").write_text("\n".join([*arguments, QEMU_CONF]))
        runner = Runner(home)
    except OSError as error:
        shutil.rmtree(home, ignore_errors=True)
        say(f"failed {error}")
        sys.exit(1)
    say("ready")
    try:
        obey(runner, wake)
    finally:
        runner.stop()
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
