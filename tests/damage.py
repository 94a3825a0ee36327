"""What can be wrong with a tree of files, and what may then be said of its host."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.cpuset import EMPTY
from tests.test_topology import assert_invariants

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.topology import Host

CPU: Final = "sys/devices/system/cpu"
NODE: Final = "sys/devices/system/node"


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Put something else in the place of a file or directory."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    make(path)


def truncate(path: Path) -> None:
    if path.is_file() and not path.is_symlink():
        path.write_bytes(path.read_bytes()[:1])


def loop_of_two(path: Path) -> None:
    other = path.with_name(f"{path.name}.other")
    path.symlink_to(other.name)
    replace(other, lambda at: at.symlink_to(path.name))


# What leaves no text behind that could be taken for a fact.
DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda _: None,
    "empty": Path.touch,
    "rubbish": lambda path: path.write_bytes(b"\xff\x00rubbish\n\x00"),
    "huge": lambda path: path.write_bytes(b"0," * 2**19),
    "a directory": Path.mkdir,
    "a loop": lambda path: path.symlink_to(path.name),
    "a loop of two": loop_of_two,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link up": lambda path: path.symlink_to(".."),
    "a link out": lambda path: path.symlink_to("/proc/self/environ"),
    "a named pipe": os.mkfifo,
    "a word": lambda path: path.write_text("(null)\n"),
}


def paths(tree: Path) -> list[Path]:
    return sorted(path.relative_to(tree) for path in (tree / CPU).parent.rglob("*"))


def assert_weaker(told: Host, truth: Host) -> None:
    """Hold that a host says nothing but the truth, though less of it."""
    assert_invariants(told)
    assert told.online == truth.online
    assert told.isolated in {EMPTY, truth.isolated}
    for cpu, true in zip(told.cpus, truth.cpus, strict=True):
        for name in ("cell", "package", "die", "core", "siblings", "l3"):
            assert getattr(cpu, name) in {None, getattr(true, name)}, (cpu, name)
    cells = {cell.id: cell for cell in truth.cells}
    for cell in told.cells:
        assert cell.cpus <= cells[cell.id].cpus
        assert cell.memory_bytes in {None, cells[cell.id].memory_bytes}
        assert set(cell.distances) <= set(cells[cell.id].distances)
