"""What systemd is given: the unit as its own tools judge it, and as the daemon lives under it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from agent import cli
from agent.admit import ADMIT, ask
from agent.config import Config
from agent.terminal import DEFAULT_CONFIG
from tests.sandbox import UID, allowed, directives
from tests.service import Service, wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guests import Guest
    from tests.libvirtd import Libvirtd

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "systemd"
GUIDE: Final = ROOT / "docs" / "install.md"
NAME: Final = "emupool.service"
TEXT: Final = (FOLDER / NAME).read_text()
UNIT: Final = directives(TEXT)
COMMENTS: Final = " ".join(line[2:] for line in TEXT.splitlines() if line.startswith("# "))
UNITS: Final = Path("/usr/lib/systemd/system")
THRESHOLD: Final = 2.0

EXCEPTIONS: Final = {
    "AmbientCapabilities=": "CAP_SYS_NICE, to set the masks",
    "CapabilityBoundingSet=~CAP_SYS_(NICE|RESOURCE)": "CAP_SYS_NICE, to set the masks",
    "DeviceAllow=": "DeviceAllow=",
    "IPAddressDeny=": "Not set: IPAddressDeny=any",
    "PrivateNetwork=": "Not set: PrivateNetwork=yes",
    "PrivateUsers=": "PrivateUsers=yes",
    "ProcSubset=": "ProcSubset=pid",
    "ProtectProc=": "ProtectProc=invisible",
    "RestrictAddressFamilies=~AF_(INET|INET6)": "AF_INET and AF_INET6 (http)",
    "RestrictAddressFamilies=~AF_NETLINK": "AF_NETLINK (pCPUs)",
    "RestrictAddressFamilies=~AF_UNIX": "AF_UNIX (libvirt, its hook, systemd)",
    "RootDirectory=/RootImage=": "RootDirectory= or RootImage=",
    "SupplementaryGroups=": "libvirt's socket.",
    "SystemCallFilter=~@resources": "Of @resources one call",
}
"""What `systemd-analyze security` finds fault with, and where the unit gives the reason."""

NEEDED: Final = {
    "Type": "notify",
    "ExecReload": "/bin/kill -HUP $MAINPID",
    "Restart": "on-failure",
    "User": "emupool",
    "SupplementaryGroups": "libvirt",
    "AmbientCapabilities": "CAP_SYS_NICE",
    "CapabilityBoundingSet": "CAP_SYS_NICE",
    "RuntimeDirectory": "emupool",
    "RuntimeDirectoryPreserve": "yes",
    "ConfigurationDirectory": "emupool",
}
HARMFUL: Final = {
    *("BindsTo", "PartOf", "Requires", "Requisite", "Wants", "Upholds"),  # see the unit
    *("PrivateUsers", "PrivateNetwork", "ProcSubset", "ProtectProc", "IPAddressDeny"),
    *("RootDirectory", "RootImage", "DynamicUser", "InaccessiblePaths"),
}


def install_steps() -> list[tuple[Path, Path]]:
    """Return what the guide has an operator install, and where to."""
    steps = re.findall(r"^    install -Dm644 (\S+) /(\S+)$", GUIDE.read_text(), re.MULTILINE)
    return [(ROOT / source, Path(target)) for source, target in steps]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root directory with what the guide's steps install, and systemd's own targets."""
    root = tmp_path_factory.mktemp("root")
    for source, target in install_steps():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / target)
    for command in (*UNIT["ExecStart"], *UNIT["ExecReload"]):
        dummy = root / shlex.split(command)[0].removeprefix("/")
        dummy.parent.mkdir(parents=True, exist_ok=True)
        dummy.write_text("#!/bin/sh\n")
        dummy.chmod(0o755)
    own = root / UNITS.relative_to("/")
    own.mkdir(parents=True)
    for target in UNITS.glob("*.target"):
        shutil.copy(target, own)
    return root


def analyze(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", f"--root={root}", *arguments, NAME],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_guide_installs_each_file(installed: Path) -> None:
    assert {source for source, _ in install_steps()} == {
        ROOT / "config.example.toml",
        *FOLDER.iterdir(),
    }
    assert (installed / "etc/systemd/system" / NAME).exists()
    assert "    systemd-sysusers\n" in GUIDE.read_text()


def test_systemd_has_nothing_to_say_against_the_unit(installed: Path) -> None:
    verified = analyze(installed, "verify", "--man=no")
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_verify_would_speak_up(installed: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(installed, root)
    unit = root / "etc/systemd/system" / NAME
    unit.write_text(TEXT.replace("RestartSec=5", "RestartSecs=5"))
    assert "RestartSecs" in analyze(root, "verify", "--man=no").stderr


def test_the_exposure_is_low(installed: Path) -> None:
    threshold = f"--threshold={THRESHOLD * 10:.0f}"
    judged = analyze(installed, "security", "--offline=true", threshold)
    assert (judged.returncode, judged.stderr) == (0, "")
    (exposure,) = re.findall(r"exposure level for \S+: ([0-9.]+) ", judged.stdout)
    assert float(exposure) <= THRESHOLD


def faults(root: Path) -> dict[str, Any]:
    judged = analyze(root, "security", "--offline=true", "--json=short")
    return {row["name"]: row["exposure"] for row in json.loads(judged.stdout) if row["exposure"]}


def test_each_exception_is_known(installed: Path) -> None:
    assert sorted(faults(installed)) == sorted(EXCEPTIONS)


@pytest.mark.parametrize("reason", EXCEPTIONS.values(), ids=EXCEPTIONS)
def test_each_exception_has_its_reason_in_the_unit(reason: str) -> None:
    assert reason in COMMENTS


@pytest.mark.parametrize(("directive", "value"), NEEDED.items(), ids=NEEDED)
def test_the_unit_has_what_the_daemon_needs(directive: str, value: str) -> None:
    assert UNIT[directive] == [value]


def test_the_unit_has_nothing_that_would_blind_or_bind_the_daemon() -> None:
    assert UNIT.keys() & HARMFUL == set()
    after = UNIT["After"][0].split()
    assert {"libvirtd.service", "virtqemud.service", "virtqemud.socket"} <= set(after)


def test_what_the_unit_starts_is_a_command_of_ours() -> None:
    program, command, *options = shlex.split(UNIT["ExecStart"][0])
    assert program == "/usr/bin/emupool"
    context = cli.emupool.commands[command].make_context(command, options)
    assert context.params == {"config_path": DEFAULT_CONFIG, "dry_run": False}
    configuration = Path("/etc", UNIT["ConfigurationDirectory"][0])
    assert DEFAULT_CONFIG.parent == configuration


def test_what_the_daemon_writes_by_default_is_in_its_runtime_directory() -> None:
    run = Path("/run", UNIT["RuntimeDirectory"][0])
    assert Config().state.path.parent == run
    assert Path(Config().admission.socket).parent == run


def test_the_watchdog_outlives_a_libvirtd_that_hangs() -> None:
    libvirt = Config().libvirt
    keepalive = libvirt.keepalive_interval * (libvirt.keepalive_count + 1)
    assert float(UNIT["WatchdogSec"][0]) >= 3 * keepalive


def test_a_start_that_always_fails_is_given_up_and_another_is_not() -> None:
    limit, burst = float(UNIT["StartLimitIntervalSec"][0]), int(UNIT["StartLimitBurst"][0])
    assert float(UNIT["RestartSec"][0]) * burst < limit  # else it is never given up
    assert limit / burst <= 15  # a daemon that lives for as long is always started again


def sysusers(root: Path, *arguments: str) -> str:
    made = subprocess.run(
        ["systemd-sysusers", f"--root={root}", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return made.stderr


def test_the_user_is_made_and_is_a_member_of_libvirts_group(installed: Path) -> None:
    told = sysusers(installed, "--dry-run")
    assert all(line.startswith(("Creating ", "Would write ")) for line in told.splitlines())
    assert not (installed / "etc/passwd").exists()
    sysusers(installed)
    passwd = [line.split(":") for line in (installed / "etc/passwd").read_text().splitlines()]
    groups = {
        line.split(":")[0]: line.split(":")[3]
        for line in (installed / "etc/group").read_text().splitlines()
    }
    assert [(row[0], row[6]) for row in passwd] == [(UNIT["User"][0], "/usr/sbin/nologin")]
    assert groups[UNIT["SupplementaryGroups"][0]] == UNIT["User"][0]
    assert sysusers(installed) == ""  # again: nothing is left to do


# --- the daemon under it -------------------------------------------------------------------------


def test_of_the_resources_only_a_threads_mask_may_be_set() -> None:
    names = allowed(UNIT)
    assert "sched_setaffinity" in names
    assert names & {"sched_setscheduler", "setpriority", "mbind", "mount", "ptrace", "setuid"} == (
        set()
    )


REFUSED: Final = {
    "mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)": "PermissionError",
    "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)": "Address family not supported",
    "os.setuid(65534)": "PermissionError",
    "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))": "PermissionError",
    "os.setpriority(os.PRIO_PROCESS, 0, -1)": "PermissionError",
    "os.chroot('/')": "PermissionError",
    "open('/dev/shm/x', 'w')": "Read-only file system",
    "open('/etc/shadow')": "Permission denied",
    "os.kill(1, 0)": "Operation not permitted",
}


def confine(folder: str) -> tuple[str, ...]:
    """Return the command that confines the one after it as the unit has it."""
    return (sys.executable, "-m", "tests.sandbox", str(FOLDER / NAME), folder)


@pytest.mark.real
def test_the_sandbox_is_one(tmp_path: Path) -> None:
    """It refuses what the unit refuses, so that the test below means something."""
    code = """
import mmap, os, socket, sys
for line in sys.stdin:
    try:
        print("passed", eval(line))
    except OSError as error:
        print(type(error).__name__, error)
"""
    ended = subprocess.run(
        [*confine(str(tmp_path)), sys.executable, "-c", code],
        input="\n".join(REFUSED),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=ROOT,
    )
    said = dict(zip(REFUSED, ended.stdout.splitlines(), strict=True))
    assert {call: words for call, words in said.items() if REFUSED[call] not in words} == {}


@pytest.fixture
def confined(libvirtd: Libvirtd) -> Iterator[Service]:
    """The daemon as the unit confines it, in a folder that it owns."""
    with tempfile.TemporaryDirectory(prefix="emupool-") as name:
        folder = Path(name)
        pool = {"cpus": "0-1", "shrink_delay": 0}
        admission = {"enabled": True, "socket": f"{folder}/door"}
        service = Service(libvirtd.uri, folder, pool=pool, admission=admission)
        for path in (folder, service.config):
            os.chown(path, UID, UID)
        service.within = confine(name)
        libvirtd.home.chmod(0o755)
        with service:
            yield service


def test_the_daemon_does_its_work_confined_as_the_unit_has_it(
    confined: Service, make_guest: Callable[..., Guest]
) -> None:
    def start(name: str) -> Guest:
        properties = {"metadata_policy": "isolate", "metadata_attributes": {"cell": "0"}}
        return make_guest(name, emulatorpin="1", **properties).define().start()

    guests = [start(name) for name in "abc"]  # the third widens the pool: all threads follow
    both = frozenset({0, 1})
    for guest in guests:
        wait(lambda guest=guest: guest.masks() == {both}, "all threads to follow")  # type: ignore[misc]
    confined.settle()
    assert all(confined.guest(guest.uuid)["verified"] for guest in guests)
    confined.configure(log={"level": "info"})
    confined.hup()
    wait(lambda: confined.saw("config.changed"), "the reload")
    definition = guests[0].definition().encode()
    assert ask(f"{confined.state.parent}/door", "prepare", definition, 30.0) == (ADMIT, b"")
    status = Path(f"/proc/{confined.process.pid}/status").read_text()
    assert re.findall(r"^Uid:\t(\d+)|^CapEff:\t(\w+)|^Seccomp:\t(\d)", status, re.MULTILINE) == [
        (str(UID), "", ""),
        ("", f"{1 << 23:016x}", ""),
        ("", "", "2"),
    ]
    assert confined.state.stat().st_uid == UID
    log = confined.events()
    assert confined.stop() == 0
    assert [event for event in log if event["level"] in {"warning", "error"}] == []
