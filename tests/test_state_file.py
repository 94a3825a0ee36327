"""Whatever stands where the state file should be, the daemon starts, says so once, and goes on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from agent.checkpoint import (
    LONGEST,
    VERSION,
    Checkpoint,
    Lock,
    StateError,
    load_file,
    read_boot_id,
)
from agent.errors import Refused
from agent.pool import NOTHING
from tests.killed import NEW, OLD
from tests.service import Service, wait

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[[Path], object]

ROOT: Final = Path(__file__).parent.parent
DRIVER: Final = "test:///default"  # libvirt's own, in the daemon's process: no guest, no root
NOBODY: Final = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="host: not root, which may change owners")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "state.json"


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- what is unfit -------------------------------------------------------------------------------


def good(path: Path) -> str:
    Checkpoint(path).save(OLD, 1.0)
    return path.read_text()


def truncated(path: Path) -> None:
    path.write_text(good(path)[:-20])


def of_another_boot(path: Path) -> None:
    path.write_text(good(path).replace(read_boot_id(), "another"))


def of_another_version(path: Path) -> None:
    path.write_text(good(path).replace(f'"version": {VERSION}', f'"version": {VERSION + 1}'))


def linked(path: Path) -> None:
    good(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def writable_by_all(path: Path) -> None:
    good(path)
    path.chmod(0o666)


def foreign(path: Path) -> None:
    good(path)
    os.chown(path, NOBODY, NOBODY)


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def filled(path: Path) -> None:
    (path / "a file").mkdir(parents=True)


def device(path: Path) -> None:
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero, which never ends


UNFIT: Final[dict[str, tuple[Make, str]]] = {
    "empty": (Path.touch, "no JSON"),
    "truncated": (truncated, "no JSON"),
    "garbage": (lambda path: path.write_bytes(b"\xff" * 999), "no text|no JSON"),
    "of another boot": (of_another_boot, "of another boot"),
    "of another version": (of_another_version, "not of version 1"),
    "a directory": (filled, "no regular file"),
    "a symbolic link to a file": (linked, "a symbolic link"),
    "a symbolic link to nothing": (lambda path: path.symlink_to("nothing"), "a symbolic link"),
    "a symbolic link to a device": (lambda path: path.symlink_to("/dev/zero"), "a symbolic link"),
    "a symbolic link to itself": (lambda path: path.symlink_to(path), "a symbolic link"),
    "a FIFO": (os.mkfifo, "no regular file"),
    "larger than any state": (huge, f"1099511627776 bytes are more than {LONGEST}"),
    "writable by everybody": (writable_by_all, r"not trusted: everybody may write it \(mode 0666"),
}
UNFIT_AS_ROOT: Final[dict[str, tuple[Make, str]]] = {
    "of a foreign user": (foreign, "not trusted: it belongs to user 65534"),
    "a device": (device, "no regular file"),
}
ROWS: Final = [
    *(pytest.param(*row, id=name) for name, row in UNFIT.items()),
    *(pytest.param(*row, id=name, marks=as_root) for name, row in UNFIT_AS_ROOT.items()),
]


@pytest.mark.parametrize(("make", "why"), ROWS)
def test_what_is_unfit_is_told_once_counted_set_aside_and_replaced(
    path: Path, make: Make, why: str
) -> None:
    make(path)
    inode, before = path.lstat().st_ino, names(path.parent)
    told: list[str] = []
    checkpoint = Checkpoint(path)
    assert checkpoint.recall(told.append) == NOTHING
    (line,) = told
    assert re.fullmatch(rf"{path}: it.*({why}).*; kept as state\.json\.unfit", line)
    assert checkpoint.failures == {"unfit": 1, "unsaved": 0}
    assert path.with_name("state.json.unfit").lstat().st_ino == inode
    checkpoint.save(NEW, 2.0)
    assert Checkpoint(path).recall(told.append) == NEW
    assert names(path.parent) == sorted([*before, "state.json.unfit"])
    assert len(told) == 1


@pytest.mark.parametrize(
    "name", ["of another boot", "a directory", "a FIFO", "larger than any state"]
)
def test_a_daemon_starts_on_what_is_unfit(tmp_path: Path, name: str) -> None:
    path = tmp_path / "state.json"
    make, why = UNFIT[name]
    make(path)
    with Service(DRIVER, tmp_path) as service:
        events = [event for event in service.events() if event["level"] == "warning"]
        assert [event["event"] for event in events] == ["state.unfit"]
        assert re.search(why, events[0]["error"])
        assert service.status()["counters"]['emupool_state_errors_total{reason="unfit"}'] == 1
        wait(lambda: path.is_file() and not path.is_symlink(), "the state to be saved")
        assert json.loads(path.read_text())["version"] == VERSION


def test_a_file_cut_off_at_any_byte_is_unfit(path: Path) -> None:
    text = good(path).rstrip()
    for length in range(len(text)):
        path.write_text(text[:length])
        with pytest.raises(StateError):
            Checkpoint(path).load()


def test_a_hard_link_is_as_good_as_a_file_and_its_other_name_is_left_alone(path: Path) -> None:
    good(path)
    path.with_name("other").hardlink_to(path)
    checkpoint = Checkpoint(path)
    assert checkpoint.recall(pytest.fail) == OLD
    checkpoint.save(NEW, 2.0)
    assert Checkpoint(path.with_name("other")).recall(pytest.fail) == OLD
    assert Checkpoint(path).recall(pytest.fail) == NEW


def test_of_many_unfit_files_the_first_ones_and_the_last_are_kept(path: Path) -> None:
    for number in range(9):
        path.write_text(str(number))
        Checkpoint(path).recall(lambda _: None)
    kept = {entry.name: entry.read_text() for entry in path.parent.iterdir()}
    assert kept == {"state.json.unfit": "0", "state.json.unfit.1": "1", "state.json.unfit.2": "8"}


def test_a_directory_among_the_kept_ones_is_no_obstacle(path: Path) -> None:
    filled(path.with_name("state.json.unfit.2"))
    for number in range(4):
        path.write_text(str(number))
        assert Checkpoint(path).set_aside() is not None
    assert path.with_name("state.json.unfit").read_text() == "0"
    assert path.with_name("state.json.unfit.1").read_text() == "3"


def test_what_cannot_be_set_aside_is_told_and_blocks_nothing(path: Path) -> None:
    for name in ("state.json", "state.json.unfit", "state.json.unfit.1", "state.json.unfit.2"):
        filled(path.with_name(name))
    told: list[str] = []
    checkpoint = Checkpoint(path)
    assert checkpoint.recall(told.append) == NOTHING
    assert told == [f"{path}: it is no regular file; it cannot be set aside"]
    with pytest.raises(StateError, match=r"state\.json: not saved: Is a directory"):
        checkpoint.save(NEW, 2.0)
    assert len(names(path.parent)) == 4


def test_a_plan_takes_any_file_that_an_operator_names_and_waits_for_none(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    good(elsewhere)
    elsewhere.chmod(0o666)
    path.symlink_to("elsewhere")
    assert load_file(path).memory == OLD
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StateError, match=f"{path}: it is no regular file"):
        load_file(path)


# --- what cannot be written ----------------------------------------------------------------------


def in_a_mount(options: str, then: str = "true") -> tuple[str, ...]:
    """Return a command to run others by, in a mount namespace with a tmpfs on `run`."""
    script = (
        f'mount -t tmpfs none run && {{ {then}; }} && mount -o remount,{options} run && exec "$@"'
    )
    return "unshare", "--mount", "sh", "-ec", script, "sh"


FILL: Final = "mount -o remount,size=64k run; cat /dev/zero > run/filler 2>&- || true"
UNWRITABLE: Final = {
    "a full file system": (in_a_mount("size=64k", FILL), "No space left on device"),
    "a read-only file system": (in_a_mount("ro"), "Read-only file system"),
    "a read-only one with a lock": (in_a_mount("ro", "touch run/state.json.lock"), "Read-only"),
}


@as_root
@pytest.mark.parametrize(("within", "why"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_a_state_that_cannot_be_written_is_a_warning_and_a_counter(
    path: Path, monkeypatch: pytest.MonkeyPatch, within: tuple[str, ...], why: str
) -> None:
    monkeypatch.chdir(path.parent.parent)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    service = Service(DRIVER, path.parent.parent, within=within, state={"path": str(path)})
    with service:
        service.settle()
        status = service.status()
        assert status["counters"]['emupool_state_errors_total{reason="unsaved"}'] >= 1
        (warning,) = status["warnings"]
        assert (warning["guest"], warning["field"]) == (None, "state file")
        assert warning["text"].startswith(f"{path}: not saved: {why}")
        began = [event for event in service.events() if event["event"] == "fault.began"]
        assert [event["about"] for event in began] == [["state", "file"]]
        assert service.stop() == 0


@pytest.mark.parametrize("make", [filled, None], ids=["a directory", "no directory for it"])
def test_what_is_in_the_way_of_the_new_file_is_named(path: Path, make: Make | None) -> None:
    checkpoint = Checkpoint(path)
    in_the_way = path.with_name("state.json.new")
    if make is not None:
        make(in_the_way)
    else:
        path.parent.rmdir()
    with pytest.raises(StateError, match=rf"{path}: not saved: .* \({in_the_way}\)"):
        checkpoint.save(NEW, 1.0)
    assert checkpoint.failures == {"unfit": 0, "unsaved": 1}


def test_a_state_that_could_not_be_read_again_is_not_written(path: Path) -> None:
    good(path)
    large = type(NEW)(NEW.cells, {"x" * LONGEST: NEW.guests[next(iter(NEW.guests))]})
    with pytest.raises(StateError, match="more than"):
        Checkpoint(path).save(large, 2.0)
    assert Checkpoint(path).recall(pytest.fail) == OLD


def immutable(path: Path, *, on: bool) -> None:
    ended = subprocess.run(["chattr", "+i" if on else "-i", path], capture_output=True, check=False)
    if ended.returncode:
        pytest.skip("host: its file system has no immutable files")


@as_root
def test_an_immutable_file_is_kept_and_told(path: Path) -> None:
    good(path)
    immutable(path, on=True)
    try:
        checkpoint = Checkpoint(path)
        assert checkpoint.recall(pytest.fail) == OLD
        with pytest.raises(StateError, match="not saved: Operation not permitted"):
            checkpoint.save(NEW, 2.0)
        assert names(path.parent) == ["state.json"]
        assert checkpoint.set_aside() is None
    finally:
        immutable(path, on=False)
    checkpoint.save(NEW, 3.0)
    assert checkpoint.recall(pytest.fail) == NEW


# --- whose it is ---------------------------------------------------------------------------------


@as_root
def test_what_root_writes_beside_a_service_belongs_to_that(path: Path) -> None:
    os.chown(path.parent, NOBODY, NOBODY)
    with Lock(path) as lock:
        Checkpoint(path).save(OLD, 1.0)
    for made in (path, lock.path):
        assert (made.stat().st_uid, made.stat().st_gid) == (NOBODY, NOBODY)
    assert Checkpoint(path).recall(pytest.fail) == OLD


def test_nobody_else_can_open_the_lock_and_hold_it(path: Path) -> None:
    with Lock(path) as lock:
        assert lock.path.stat().st_mode & 0o777 == 0o600


# --- killed at any moment ------------------------------------------------------------------------


def test_a_save_that_is_killed_leaves_the_old_state_or_the_new_one_whole(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.killed", tmp_path],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=100,
    )
    found = json.loads(ended.stdout)
    assert re.fullmatch("o{50,}n+", found["lines"])
    assert re.fullmatch("o{50,}n", found["sizes"])
    assert re.fullmatch("[on]{300}", found["chances"])
    assert set(found["beside"]) <= {"state.json", "state.json.new"}


# --- the lock ------------------------------------------------------------------------------------


def other_name(lock: Path) -> None:
    lock.with_name("precious").write_text("precious")
    lock.hardlink_to(lock.with_name("precious"))


BAD_LOCKS: Final[dict[str, tuple[Make, str]]] = {
    "a directory": (filled, "Is a directory: remove it"),
    "a symbolic link": (linked, "symbolic links: remove the link"),
    "a FIFO": (os.mkfifo, "it is no regular file of one name: remove it"),
    "another name of a file": (other_name, "it is no regular file of one name: remove it"),
}


@pytest.mark.parametrize(("make", "why"), BAD_LOCKS.values(), ids=BAD_LOCKS)
def test_a_lock_that_cannot_be_made_is_one_line_that_says_what_to_do(
    path: Path, make: Make, why: str
) -> None:
    lock = path.with_name("state.json.lock")
    make(lock)
    descriptors = len(names(Path("/proc/self/fd")))
    with pytest.raises(Refused) as refusal, Lock(path):
        pass
    assert str(refusal.value).startswith(f"{lock}: ")
    assert str(refusal.value).endswith(why)
    assert len(names(Path("/proc/self/fd"))) == descriptors
    for entry in path.parent.glob("precious"):
        assert entry.read_text() == "precious"


def refused(folder: Path, before: str, within: tuple[str, ...] = ()) -> str:
    """Do something in a process of its own, and return what it is told that takes the lock then."""
    code = (
        "import os\n"
        "from pathlib import Path\n"
        "from agent.checkpoint import Lock\n"
        "from agent.errors import Refused\n"
        "lock = Lock(Path('state.json'))\n"
        f"{before}\n"
        "try:\n"
        "    Lock(lock.path.with_name('state.json')).__enter__()\n"
        "except Refused as refusal:\n"
        "    print(refusal)\n"
    )
    return subprocess.run(
        [*within, sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def a_file_for_a_directory(path: Path) -> None:
    path.parent.rmdir()
    path.parent.touch()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        pytest.param(a_file_for_a_directory, "state.path needs a writable directory", id="a file"),
        pytest.param(
            lambda path: filled(path.with_name("state.json.lock")), "remove it", id="a directory"
        ),
    ],
)
def test_a_daemon_without_a_lock_ends_with_status_1_and_one_line(
    path: Path, make: Make, why: str
) -> None:
    make(path)
    service = Service(DRIVER, path.parent.parent, state={"path": str(path)})
    ended = service.run("run", "--config", str(service.config))
    assert ended.returncode == 1
    assert re.fullmatch(rf"emupool: {path.parent}.*: {why}\n", ended.stderr)


@as_root
def test_a_lock_that_is_not_ours_to_open_says_who_may(path: Path) -> None:
    with Lock(path):
        pass
    assert refused(path.parent, f"os.setuid({NOBODY})") == (
        "state.json.lock: Permission denied: run this as root or as the user of the service\n"
    )


@as_root
@pytest.mark.parametrize("then", ["true", "touch run/state.json.lock"], ids=["without", "with"])
def test_on_a_read_only_file_system_the_lock_holds_all_the_same(path: Path, then: str) -> None:
    within = (*in_a_mount("ro", then), "env", "-C", "run")
    text = refused(path.parent.parent, "lock.__enter__()", within)
    assert text == "state.json.lock: another emupool holds the lock: stop it first\n"
