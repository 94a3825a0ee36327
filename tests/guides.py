"""The guides of docs/: what they have an operator write and type, and a place to type it in.

A block of a guide is fenced and names its language. Commands (`sh`) are run by the tests as they
stand, but for what this machine calls otherwise; those that cannot be are marked in the line above:

    <!-- not run in tests: needs systemd as init -->
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER: Final = Path(__file__).resolve().parents[1] / "docs"
GUIDES: Final = ("nova", "libvirt")
LANGUAGES: Final = {"sh", "toml", "ini", "yaml", "xml"}

_BLOCK: Final = re.compile(
    r"(?:^<!-- not run in tests: (?P<reason>.+) -->\n)?^```(?P<language>.*)\n(?P<text>[^`]*)^```$",
    re.MULTILINE,
)

SETUP: Final = """
mount -t tmpfs emupool-tests /run
mkdir /run/libvirt /run/emupool
ln -s "$1" /run/libvirt/libvirt-sock
cp -a /etc "$2/etc"
mount --bind "$2/etc" /etc
install -Dm644 "$3" /etc/emupool/config.toml
echo ready
exec cat
"""
"""Makes a mount namespace a compute node; `cat` ends with whoever holds its input."""


class Block(NamedTuple):
    """One block of a guide, and why it is not run, if it is not."""

    section: str  # the heading of the second level above it
    language: str
    text: str
    reason: str | None


def text_of(guide: str) -> str:
    """Return a guide as it is written."""
    return (FOLDER / f"{guide}.md").read_text()


def blocks(text: str, language: str = "") -> list[Block]:
    """Return the blocks of a guide in order, all or those of one language."""
    return [
        Block(chapter.partition("\n")[0], match["language"], match["text"], match["reason"])
        for chapter in re.split(r"^## ", text, flags=re.MULTILINE)
        for match in _BLOCK.finditer(chapter)
        if language in {"", match["language"]}
    ]


def config_of(guide: str, section: str, number: int = 0) -> str:
    """Return one of the configurations that a section has an operator write."""
    return [b.text for b in blocks(text_of(guide), "toml") if b.section == section][number]


def as_here(text: str, here: Mapping[str, str]) -> str:
    """Return `text` with the names and numbers of this machine."""
    for theirs, ours in here.items():
        text = text.replace(theirs, ours)
    return text


class Place:
    """A compute node, as far as commands can tell: libvirt's socket and /etc are where they belong.

    It is a mount namespace, which ends with the test.
    """

    def __init__(self, socket: Path, folder: Path, config: Path) -> None:
        """Take libvirt's socket, a folder to work in, and the configuration to be in force."""
        self._folder = folder
        self._given = [str(path) for path in (socket, folder, config)]

    def __enter__(self) -> Self:
        self._holder = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private", "--"),
                *("bash", "-euc", SETUP, "place", *self._given),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.communicate()

    def run(self, commands: str) -> str:
        """Run commands as root would type them, each of which has to succeed; return the output."""
        there = f"/proc/{self._holder.pid}"  # its root too: we may be in a chroot
        done = subprocess.run(
            [
                *("nsenter", f"--mount={there}/ns/mnt", f"--root={there}/root", "--"),
                *("bash", "-euo", "pipefail", "-c", f'cd "$0"\n{commands}', str(self._folder)),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"},
        )
        assert not done.returncode, f"{commands}{done.stdout}{done.stderr}"
        return done.stdout
