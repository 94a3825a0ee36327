"""A real libvirtd for the tests, apart from the machine's own; what runs it is tests/runner.py.

    with Libvirtd() as libvirtd:
        guest = libvirtd.guest("a", vcpus=2, emulatorpin="0").define().start()
        assert guest.masks("emulator") == {frozenset({0})}
        libvirtd.kill()
        libvirtd.start()

Needs root, libvirtd and QEMU, but no KVM: `missing()` tells what lacks. Whatever happens to the
test or its process, nothing stays: no process, cgroup, mount, socket.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import libvirt

from tests import runner
from tests.guests import Guest, guest_xml, has_ended, kill9, wait_for_end, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

START_SECONDS: Final = 30.0
# For guests with real-time threads: under cgroup v1 the kernel may give a new cpu cgroup no
# real-time share at all, and such a guest then does not start (EPERM).
REALTIME_CONF: Final = ('cgroup_controllers = ["cpuset", "cpuacct", "memory", "blkio", "devices"]',)

# The binding prints every error to standard error unless told otherwise.
libvirt.registerErrorHandler(lambda *_: None, None)


class HarnessError(RuntimeError):
    """The harness could not do what it was asked; the message has libvirtd's log."""


def missing() -> str | None:
    """Return what this machine lacks to run a private libvirtd, or None."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    for command in ("libvirtd", "qemu-system-x86_64"):
        if shutil.which(command, path=path) is None:
            return f"{command} is not installed: run tools/setup.sh"
    if os.geteuid() != 0:
        return "a private libvirtd needs root"
    return None


def _escaped(name: str) -> str:
    """Write a guest's name as systemd does in a scope's."""
    return name.replace("-", r"\x2d")


class Libvirtd:
    """One private libvirtd with its guests, which outlive it until `stop`."""

    def __init__(self, qemu_conf: Iterable[str] = ()) -> None:
        """Take lines of qemu.conf, such as `cgroup_controllers = ["cpu"]`; they win over ours."""
        self._qemu_conf = tuple(qemu_conf)
        self._runner: subprocess.Popen[str] | None = None
        self._conn: libvirt.virConnect | None = None
        self._daemon: int | None = None
        self._paused = False

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def runner(self) -> int:
        """The pid of the process that has the private mounts."""
        if self._runner is None:
            raise HarnessError("not started")
        return self._runner.pid

    @property
    def home(self) -> Path:
        """The directory of sockets and log, the same in and outside the namespace."""
        return runner.home_of(self.runner)

    @property
    def uri(self) -> str:
        """The URI for clients on this machine; the same over restarts."""
        return f"qemu+unix:///system?socket={self.home}/libvirt-sock"

    @property
    def pid(self) -> int:
        """The pid of libvirtd."""
        if self._daemon is None:
            raise HarnessError("libvirtd does not run")
        return self._daemon

    @property
    def root(self) -> Path:
        """The file system as libvirtd sees it: `root / "run/libvirt/qemu"` has the pid files."""
        return Path(f"/proc/{self.runner}/root")

    @property
    def log(self) -> str:
        """What libvirtd had to complain of."""
        with contextlib.suppress(OSError):
            return (self.home / "libvirtd.log").read_text(errors="replace")
        return ""

    @property
    def conn(self) -> libvirt.virConnect:
        """The harness's own connection, opened anew if libvirtd was restarted."""
        if self._conn is None or not self._conn.isAlive():
            self._conn = libvirt.open(self.uri)
        return self._conn

    def start(self) -> None:
        """Start libvirtd, with the guests that live on from before; return when it answers."""
        if self._daemon is not None:
            raise HarnessError("libvirtd runs already")
        if self._runner is None:
            self._runner = self._start_runner()
        answer, _, rest = self._ask("start").partition(" ")
        if answer != "started":
            raise HarnessError(rest)
        self._daemon = int(rest)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._conn = libvirt.open(self.uri)
            except libvirt.libvirtError as error:
                if has_ended(self._daemon) or time.monotonic() > deadline:
                    raise HarnessError(f"libvirtd does not answer: {error}\n{self.log}") from None
                time.sleep(0.01)
            else:
                return

    def hook(self, text: str) -> None:
        """Have libvirtd call a program at what happens to guests, instead of any other.

        It is put where libvirtd looks for hooks, in its own mount namespace. libvirtd does not see
        that there are any until it starts.
        """
        folder = self.root / "etc/libvirt/hooks/qemu.d"
        is_known = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        hook = folder / "emupool"
        hook.write_text(text)
        hook.chmod(0o755)
        if not is_known:
            self.restart()

    def kill(self) -> None:
        """Kill libvirtd with SIGKILL; its guests live on."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """Stop libvirtd as an init system does; its guests live on."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Stop libvirtd as an init system does, and start it again."""
        self.terminate()
        self.start()

    def pause(self) -> None:
        """Freeze libvirtd: it accepts connections, and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        self._paused = True
        status = Path(f"/proc/{self.pid}/status")
        wait_until(lambda: "State:\tT" in status.read_text(), what="libvirtd stops")

    def resume(self) -> None:
        """Go on after `pause`."""
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def recover(self) -> None:
        """Make libvirtd run and answer, whatever a test did to it."""
        if self._daemon is not None and has_ended(self._daemon):
            self._daemon = None
            self._paused = False
        if self._paused:
            self.resume()
        if self._daemon is None:
            self.start()

    def stop(self) -> None:
        """End libvirtd and all its guests, and remove every trace."""
        if self._runner is None:
            return
        process, self._runner = self._runner, None
        process.communicate()  # closes its input, which tells it to clean up
        self._daemon = None
        self._paused = False
        self._conn = None  # only now: closing it would wait for a libvirtd that is frozen
        if process.returncode != 0:
            raise HarnessError(f"the runner of libvirtd ended with {process.returncode}")

    def guest_name(self, name: str) -> str:
        """Return the full name of a guest that a test calls `name`: unique on this machine."""
        return runner.names_of(self.runner) + name

    def guest(self, name: str, **properties: object) -> Guest:
        """Describe a guest by the arguments of `guest_xml`; `define` or `create` it then."""
        return Guest(self, guest_xml(self.guest_name(name), **properties))  # type: ignore[arg-type]

    def virsh(self, *arguments: str) -> str:
        """Run virsh as an operator would, and return its output; CalledProcessError if it fails."""
        command = ["virsh", "--quiet", "--connect", self.uri, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def cgroups(self) -> list[Path]:
        """Return the cgroups of this libvirtd's guests that exist, over all hierarchies."""
        return [path for _, path in runner.guest_cgroups(lambda pid: pid == self.runner)]

    def remove_all(self, guests: Iterable[Guest]) -> None:
        """End guests and forget them, however far they came; much faster than destroying each."""
        guests = list(guests)
        pids = []
        for guest in guests:
            with contextlib.suppress(FileNotFoundError):
                pids.append(guest.pid)
        kill9(pids)
        wait_until(lambda: not any(guest.is_active() for guest in guests), what="guests end")
        for guest in guests:
            with contextlib.suppress(libvirt.libvirtError):
                guest.undefine()
        # A libvirtd that has just been restarted forgets those of guests that end meanwhile.
        names = {escaped for guest in guests for escaped in (guest.name, _escaped(guest.name))}
        for path in self.cgroups():
            if any(re.search(re.escape(name) + r"\.", path.name) for name in names):
                runner.remove_cgroup(path)

    def _start_runner(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.runner", *self._qemu_conf],
            cwd=runner.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the test run, which then ends the runner
        )
        self._runner = process
        answer = self._read()
        if answer != "ready":
            self._runner = None
            process.communicate()
            raise HarnessError(answer or "the runner of libvirtd ended at once")
        return process

    def _ask(self, line: str) -> str:
        if self._runner is None or self._runner.stdin is None:
            raise HarnessError("not started")
        self._runner.stdin.write(line + "\n")
        self._runner.stdin.flush()
        return self._read()

    def _read(self) -> str:
        if self._runner is None or self._runner.stdout is None:
            raise HarnessError("not started")
        return self._runner.stdout.readline().rstrip("\n")

    def _end(self, number: signal.Signals) -> None:
        pid, self._daemon = self.pid, None
        self._paused = False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            if number != signal.SIGKILL:
                os.kill(pid, signal.SIGCONT)
        wait_for_end(pid)
