"""Bad configuration files on the command line: the exit status, and one line for each error."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from agent import terminal
from agent.config import MAX_BYTES, Config, load
from agent.errors import ConfigError
from tests import hosts
from tests.badconfig import BYTES, ONE_KEY, SEVERAL_KEYS, SEVERAL_MISTAKES
from tests.commands import Commands

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES: dict[str, bytes] = {
    **{name: f"{key} = {value}".encode() for name, (key, value, _) in ONE_KEY.items()},
    **{name: text.encode() for name, (text, _) in SEVERAL_KEYS.items()},
    **{name: content for name, (content, _) in BYTES.items()},
    **{name: text.encode() for name, (text, _) in SEVERAL_MISTAKES.items()},
}
UNREADABLE = "/proc/self/mem"
"""Nobody can read its first byte, not even root."""


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as started:
        yield started


def refused(commands: Commands, path: object, *more: object) -> list[str]:
    """Return what `check-config` says of a bad file, which `run` must say likewise."""
    checked = commands.run("check-config", path, *more)
    assert (checked.returncode, checked.stdout) == (1, "")
    if not more:
        ran = commands.run("run", "--config", path)
        assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", checked.stderr)
    lines = checked.stderr.removesuffix("\n").split("\n")
    assert all(line.isprintable() and line.startswith("emupool: ") for line in lines), lines
    return lines


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_every_error_of_a_bad_file_is_one_whole_line(
    commands: Commands, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    told = [f"emupool: {path}: {p.path}: {p.value}: {p.remedy}" for p in caught.value.problems]
    assert refused(commands, path) == told
    assert max(map(len, told)) < 400 + len(str(path))


def test_a_file_that_is_none_is_refused_and_nobody_waits_for_it(
    commands: Commands, tmp_path: Path
) -> None:
    fifo, large, loop, server = (tmp_path / name for name in ("fifo", "large", "loop", "socket"))
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    with large.open("wb") as file:
        file.truncate(100_000_000)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(server))
        for path, value in {
            tmp_path / "absent": "No such file or directory",
            tmp_path: "Is a directory",
            loop: "Too many levels of symbolic links",
            fifo: "not a regular file",
            server: "No such device or address",
            "/dev/zero": "not a regular file",
            UNREADABLE: "Input/output error",
            large: f"over {MAX_BYTES} bytes",
        }.items():
            (line,) = refused(commands, path)
            assert line.startswith(f"emupool: {path}: file: {value}: ")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u2028b", "a\udcffb"])
def test_the_name_of_a_file_breaks_no_line(commands: Commands, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("a = 1\nb = 1")
    lines = refused(commands, path)
    assert [line.split(": ")[2] for line in lines] == ["a", "b"]
    path.write_text("")
    good = commands.run("check-config", path)
    assert (good.returncode, good.stderr, good.stdout.count("\n")) == (0, "", 1)
    assert good.stdout[:-1].isprintable()


def test_without_a_file_of_the_default_name_there_are_the_defaults(tmp_path: Path) -> None:
    dangling, loop, long = tmp_path / "dangling", tmp_path / "loop", tmp_path / ("x" * 300)
    dangling.symlink_to(tmp_path / "absent")
    loop.symlink_to(loop)
    assert terminal.load(None, tmp_path / "absent") == Config()
    for path in (dangling, loop, long, tmp_path):  # but one that cannot be read is no such case
        with pytest.raises(ConfigError):
            terminal.load(None, path)


def test_what_a_host_lacks_is_told_too_when_a_host_is_given(
    commands: Commands, tmp_path: Path
) -> None:
    hosts.write(hosts.TWO_CELLS_EIGHT_CPUS, tmp_path / "root")
    path = tmp_path / "config.toml"
    path.write_text('pool.cpus = "0-9"\npool.cell.7.min_cpus = 2\npool.cell.1.cpus = "0,4"\n')
    assert commands.run("check-config", path).returncode == 0
    lines = refused(commands, path, "--sysfs-root", tmp_path / "root")
    absent = "this host has no such NUMA cell with a pCPU: it has 0, 1"
    assert lines == [
        f"emupool: {path}: pool.cpus: '0-9': 8-9 is not present: this host has 0-7",
        f"emupool: {path}: pool.cell.7: 7: {absent}",
        f"emupool: {path}: pool.cell.1.cpus: '0,4': 0 is not in cell 1, which has 4-7",
    ]
