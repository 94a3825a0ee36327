"""The state file: what comes back from it, what else may stand in its place, and the lock."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.checkpoint import (
    VERSION,
    Checkpoint,
    Lock,
    Saved,
    StateError,
    decode,
    load_file,
    read_boot_id,
)
from agent.cpuset import CellId, CpuSet
from agent.domainxml import Pins
from agent.errors import Refused
from agent.pool import NOTHING, CellMemory, GuestMemory, Memory, SetAside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UUID = "5f0ba5ae-7d1c-4ad5-8d6c-0c4ba9d5f0aa"
ROOT = Path(__file__).parent.parent
FULL = Memory(
    {
        CellId(0): CellMemory(CpuSet.of(1, 2), CpuSet.of(3), 10.5, 2, 20.25),
        CellId(70): CellMemory(),
    },
    {
        UUID: GuestMemory(
            "4711-99",
            Pins(CpuSet.of(7), ((1, CpuSet.of(7)), (2, None), (10, CpuSet.of(0, 1)))),
            natural=CellId(0),
            home=CellId(1),
            placed=CpuSet.of(1, 2),
            room_since=30.0,
        ),
        UUID[:-1] + "b": GuestMemory("id-7", Pins(None)),
    },
    (SetAside(4, UUID), SetAside(5, UUID, 40.5)),
)


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow, as on a full disk; the error is EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def descriptors() -> list[Path]:
    return sorted(Path("/proc/self/fd").iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def written(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


# --- what comes back -----------------------------------------------------------------------------


def cpu_sets() -> st.SearchStrategy[CpuSet]:
    return st.sets(st.integers(0, 8191), max_size=5).map(CpuSet)


def times() -> st.SearchStrategy[float | None]:
    return st.none() | st.floats(0, 1e9)


def memories() -> st.SearchStrategy[Memory]:
    """Draw any memory."""
    cell_ids = st.integers(0, 1023).map(CellId)
    sets = st.none() | cpu_sets()
    pins = st.dictionaries(st.integers(1, 99), sets, max_size=4)
    originals = st.builds(
        lambda emulator, threads: Pins(emulator, tuple(sorted(threads.items()))), sets, pins
    )
    homes = st.none() | cell_ids
    cells = st.builds(CellMemory, cpu_sets(), cpu_sets(), times(), st.integers(0, 99), times())
    guests = st.builds(GuestMemory, st.text(), originals, homes, homes, sets, times())
    asides = st.builds(SetAside, st.integers(0, 8191), st.uuids().map(str), times())
    return st.builds(
        Memory,
        st.dictionaries(cell_ids, cells, max_size=4),
        st.dictionaries(st.uuids().map(str), guests, max_size=4),
        st.lists(asides, max_size=3).map(tuple),
    )


@given(memory=memories(), now=st.floats(0, 1e9))
def test_what_was_saved_comes_back(memory: Memory, now: float) -> None:
    path = Path(f"/tmp/emupool-{os.getpid()}.json")
    Checkpoint(path, "boot").save(memory, now)
    assert Checkpoint(path, "boot").load() == load_file(path) == Saved(memory, now)
    path.unlink()


def test_the_file_is_replaced_whole_and_leaves_nothing_beside_it(path: Path) -> None:
    path.write_text("old")
    with path.open() as old:
        Checkpoint(path, "boot").save(FULL, 50.0)
        assert old.read() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o640
    parts = {"cells", "guests", "set_aside", "usage"}
    assert written(path).keys() == {"version", "boot_id", "at"} | parts


def test_a_memory_that_says_the_same_is_not_written_again(path: Path) -> None:
    checkpoint = Checkpoint(path, "boot")
    checkpoint.save(FULL, 50.0)
    first = path.stat().st_ino
    checkpoint.save(Memory(dict(FULL.cells), dict(FULL.guests), FULL.set_aside), 60.0)
    assert path.stat().st_ino == first
    checkpoint.usage = '{"of":"a day"}'
    checkpoint.save(FULL, 60.0)
    assert written(path)["usage"] == {"of": "a day"}
    checkpoint.save(NOTHING, 60.0)
    assert written(path)["guests"] == {}


def test_without_a_file_there_is_no_memory(path: Path) -> None:
    assert Checkpoint(path, "boot").load() is None
    with pytest.raises(StateError, match="no such file"):
        load_file(path)


def test_another_boot_is_another_world(path: Path) -> None:
    Checkpoint(path, "one").save(FULL, 50.0)
    with pytest.raises(StateError, match="another boot"):
        Checkpoint(path, "two").load()
    assert load_file(path).memory == FULL


def test_the_kernels_id_of_this_boot_is_taken(path: Path) -> None:
    Checkpoint(path).save(FULL, 50.0)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert written(path)["boot_id"] == read_boot_id() == boot_id
    assert read_boot_id(path / "nothing") == ""


# --- what is unfit -------------------------------------------------------------------------------


def test_a_file_cut_off_anywhere_is_unfit(path: Path) -> None:
    checkpoint = Checkpoint(path, "boot")
    checkpoint.save(FULL, 50.0)
    text = path.read_bytes().rstrip()
    for length in range(0, len(text), 3):
        path.write_bytes(text[:length])
        with pytest.raises(StateError):
            Checkpoint(path, "boot").load()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0" * 100,
        b"\xff\xfe",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"version": 1}',
        b'{"version": 2, "boot_id": "boot"}',
        b'{"version": 1, "boot_id": "boot", "at": 1, "cells": [], "guests": {}, "set_aside": []}',
        b"[" * 100_000,
        b'{"version": ' + b"9" * 10_000 + b"}",
    ],
    ids=lambda text: repr(text[:40]),
)
def test_garbage_is_unfit(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    with pytest.raises(StateError):
        Checkpoint(path, "boot").load()
    with pytest.raises(StateError):
        load_file(path)


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a document of which one value, anywhere, is any other."""
    document: dict[str, Any] = json.loads(json.dumps(_document()))
    nodes: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:  # noqa: ANN401 - JSON
        keys = value if isinstance(value, dict) else range(len(value)) if _is_list(value) else ()
        for key in keys:
            nodes.append((value, key))
            collect(value[key])

    collect({key: document[key] for key in ("cells", "guests", "set_aside")})
    nodes.append((document, "at"))
    parent, key = draw(st.sampled_from(nodes))
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    odd = st.sampled_from([[], {}, [[]], 10**400, "0-", "9" * 30, "1,2", float("inf")])
    parent[key] = draw(scalars | odd)
    return document


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _document() -> dict[str, Any]:
    path = Path(f"/tmp/emupool-{os.getpid()}-document.json")
    Checkpoint(path, "boot").save(FULL, 50.0)
    found = written(path)
    path.unlink()
    return found


@given(document=damaged())
def test_any_damage_is_unfit_or_gives_a_memory_that_can_be_saved(document: dict[str, Any]) -> None:
    try:
        saved = decode(document)
    except StateError:
        return
    path = Path(f"/tmp/emupool-{os.getpid()}-again.json")
    Checkpoint(path, "boot").save(saved.memory, 60.0)
    assert load_file(path).memory == saved.memory
    path.unlink()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["at", "oversize_since", "smt_since", "room_since"])
def test_a_time_that_is_no_time_is_unfit(path: Path, field: str, number: str) -> None:
    known = {"at": "50.0", "oversize_since": "10.5", "smt_since": "20.25", "room_since": "30.0"}
    Checkpoint(path, "boot").save(FULL, 50.0)
    told = f'"{field}":{known[field]}'
    text = path.read_text().replace(": ", ":")
    assert told in text
    path.write_text(text.replace(told, f'"{field}":{number}'))
    with pytest.raises(StateError):
        Checkpoint(path, "boot").load()


# --- what stands in its place --------------------------------------------------------------------


def make_directory(path: Path) -> None:
    (path / "in the way").mkdir(parents=True)


def make_symlink(path: Path) -> None:
    target = path.with_name("target")
    Checkpoint(target, "boot").save(FULL, 50.0)
    path.symlink_to(target)


def make_garbage(path: Path) -> None:
    path.write_text("garbage")


@pytest.mark.parametrize("make", [make_directory, make_symlink, os.mkfifo, make_garbage])
def test_what_is_unfit_is_set_aside_and_replaced(path: Path, make: Any) -> None:  # noqa: ANN401
    make(path)
    checkpoint = Checkpoint(path, "boot")
    before = descriptors()
    with pytest.raises(StateError):
        checkpoint.load()
    assert descriptors() == before
    checkpoint.set_aside()
    assert path.with_name("state.json.unfit").exists()
    assert checkpoint.load() is None
    checkpoint.save(FULL, 50.0)
    assert checkpoint.load() == Saved(FULL, 50.0)
    assert not path.is_symlink()


def test_a_symlink_is_replaced_and_its_target_is_left_alone(path: Path) -> None:
    target = path.with_name("passwd")
    target.write_text("precious")
    path.symlink_to(target)
    Checkpoint(path, "boot").save(FULL, 50.0)
    assert not path.is_symlink()
    assert target.read_text() == "precious"


@pytest.mark.parametrize("make", [Path.symlink_to, Path.hardlink_to])
def test_what_another_left_where_the_new_file_is_written_is_replaced_and_not_followed(
    path: Path, make: Callable[[Path, Path], None]
) -> None:
    target = path.with_name("passwd")
    target.write_text("precious")
    make(path.with_name("state.json.new"), target)
    checkpoint = Checkpoint(path, "boot")
    checkpoint.save(FULL, 50.0)
    assert target.read_text() == "precious"
    assert checkpoint.load() == Saved(FULL, 50.0)


def test_a_fifo_where_the_new_file_is_written_holds_nobody_up(path: Path) -> None:
    os.mkfifo(path.with_name("state.json.new"))
    checkpoint = Checkpoint(path, "boot")
    checkpoint.save(FULL, 50.0)
    assert checkpoint.load() == Saved(FULL, 50.0)


def test_without_its_directory_nothing_is_saved_and_later_all_is(tmp_path: Path) -> None:
    path = tmp_path / "run" / "state.json"
    checkpoint = Checkpoint(path, "boot")
    assert checkpoint.load() is None
    with pytest.raises(StateError):
        checkpoint.save(FULL, 50.0)
    path.parent.mkdir()
    checkpoint.save(FULL, 50.0)
    assert checkpoint.load() == Saved(FULL, 50.0)


def test_a_directory_that_cannot_be_written_is_told(path: Path) -> None:
    checkpoint = Checkpoint(Path("/proc/emupool/state.json"), "boot")
    assert checkpoint.load() is None
    with pytest.raises(StateError, match=r"/proc/emupool/state\.json: "):
        checkpoint.save(FULL, 50.0)
    checkpoint.set_aside()
    assert not path.exists()


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_beside_it(path: Path) -> None:
    checkpoint = Checkpoint(path, "boot")
    checkpoint.save(FULL, 50.0)
    with full_disk(), pytest.raises(StateError):
        checkpoint.save(NOTHING, 60.0)
    assert checkpoint.load() == Saved(FULL, 50.0)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    checkpoint.save(NOTHING, 70.0)
    assert checkpoint.load() == Saved(NOTHING, 70.0)


# --- the lock ------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one_and_names_its_holder(path: Path) -> None:
    with Lock(path):
        with pytest.raises(Refused, match=rf"\(process {os.getpid()}\)"), Lock(path):
            pass
        with pytest.raises(Refused), Lock(path):
            pass
    with Lock(path) as lock:
        assert lock.path.name == "state.json.lock"
        assert lock.path.read_text() == f"{os.getpid()}\n"


def test_a_lock_makes_its_directory(tmp_path: Path) -> None:
    with Lock(tmp_path / "run" / "emupool" / "state.json"):
        assert (tmp_path / "run" / "emupool").is_dir()


def test_a_lock_ends_with_its_process(path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from agent.checkpoint import Lock\n"
        f"with Lock(Path({str(path)!r})):\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(Refused, match=rf"\(process {other.pid}\)"), Lock(path):
            pass
        other.kill()
    with Lock(path):
        pass


def test_a_lock_is_no_ones_child(path: Path) -> None:
    """A child that lives on must not keep it."""
    with Lock(path), subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        lock = path.with_name("state.json.lock")
        held = Path(f"/proc/{child.pid}/fd").iterdir()
        assert all(entry.readlink() != lock for entry in held)
        child.communicate()


def test_a_lock_where_nothing_can_be_written_is_refused() -> None:
    with pytest.raises(Refused, match="writable"), Lock(Path("/proc/emupool/state.json")):
        pass


def test_a_lock_needs_no_room_on_the_disk(path: Path) -> None:
    with full_disk(), Lock(path), pytest.raises(Refused), Lock(path):
        pass


def test_a_lock_says_nothing_of_a_holder_that_wrote_no_number(path: Path) -> None:
    with Lock(path) as lock:
        lock.path.write_text("garbage\n")
        with pytest.raises(Refused, match="another emupool holds the lock"), Lock(path):
            pass


def test_the_version_of_the_format_is_one() -> None:
    assert VERSION == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="host: only root can make another's files")
def test_what_root_writes_is_left_to_the_daemons_user(tmp_path: Path) -> None:
    """`emupool release` is root's; the next daemon must be able to lock and to read."""
    os.chown(tmp_path, 4711, 4712)
    path = tmp_path / "state.json"
    with Lock(path):
        Checkpoint(path, "this boot").save(FULL, 1.0)
    owners = {(one.name, one.stat().st_uid, one.stat().st_gid) for one in tmp_path.iterdir()}
    assert owners == {("state.json", 4711, 4712), ("state.json.lock", 4711, 4712)}
