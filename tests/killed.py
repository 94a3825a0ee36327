"""Saves of the state file that are killed: `python -m tests.killed FOLDER` prints what was left.

One process, so that a save costs a fork and no start of Python. A child saves `NEW` over `OLD` and
is killed by SIGKILL: before each line that the save runs, after each few bytes that it writes, and
at random. What the file then holds is told by a letter: `o` the old state, `n` the new one, `?`
anything else.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.checkpoint import Checkpoint, Saved
from agent.cpuset import CellId, CpuSet
from agent.domainxml import Pins
from agent.pool import CellMemory, GuestMemory, Memory
from tests.builders import uuid_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from _typeshed import TraceFunction

RANDOM: Final = 300
_TRACED: Final = ("checkpoint.py", "pathlib.py")


def memory(guests: int) -> Memory:
    """Return a memory with the originals of so many guests."""
    known = {uuid_of(n): GuestMemory(f"{n}-{n}", Pins(CpuSet.of(n))) for n in range(guests)}
    return Memory({CellId(0): CellMemory(CpuSet.of(guests))}, known)


OLD: Final = memory(3)
NEW: Final = memory(4)
MANY: Final = memory(200), memory(201)
_MARKS: Final = {"o": (OLD, MANY[0]), "n": (NEW, MANY[1])}


class Kills:
    """Kills children that save, and looks at what they leave in `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> str:
        """Kill before the first line, the second, and so on; the last child lives."""
        found = ""
        for number in count():
            self._begin()
            killed = _child(partial(self._save_until_line, number))
            found += self._found()
            if not killed:
                return found
        raise AssertionError

    def sizes(self, step: int) -> str:
        """Kill when so many bytes of the new file are written; the last child lives."""
        found = ""
        for size in count(0, step):
            self._begin()
            killed = _child(partial(self._save_until_size, size))
            found += self._found()
            if not killed:
                return found
        raise AssertionError

    def chances(self, seed: int) -> str:
        """Kill children that save all the time, at any moment."""
        chance = random.Random(seed)  # noqa: S311 - no secret
        found = ""
        for _ in range(RANDOM):
            reader, writer = os.pipe()
            pid = os.fork()
            if not pid:
                self._save_for_ever(writer)
            os.read(reader, 1)
            end = time.perf_counter() + chance.random() / 500
            while time.perf_counter() < end:
                pass
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reader)
            os.close(writer)
            found += self._found()
        return found

    def _begin(self) -> None:
        """Have the old state in place; what the last child left beside it stays."""
        Checkpoint(self._path, "boot").save(OLD, 1.0)

    def _found(self) -> str:
        saved = Checkpoint(self._path, "boot").load()
        marks = (mark for mark, ones in _MARKS.items() if saved in [Saved(m, 1.0) for m in ones])
        return next(marks, "?")

    def _save(self) -> None:
        Checkpoint(self._path, "boot").save(NEW, 1.0)

    def _save_until_line(self, number: int) -> None:
        left = number

        def trace(frame: FrameType, event: str, _: object) -> TraceFunction | None:
            nonlocal left
            if not frame.f_code.co_filename.endswith(_TRACED):
                return None
            if event == "line":
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            return trace

        sys.settrace(trace)
        self._save()
        sys.settrace(None)

    def _save_until_size(self, size: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        self._save()

    def _save_for_ever(self, writer: int) -> None:
        checkpoint = Checkpoint(self._path, "boot")
        for number in count():
            checkpoint.save(MANY[number % 2], 1.0)
            if not number:
                os.write(writer, b"!")


def _child(work: Callable[[], None]) -> bool:
    """Work in a child; tell whether it was killed."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def main(folder: Path) -> None:
    """Print what each way of killing left, and the names of what lies in `folder` then."""
    kills = Kills(folder / "state.json")
    found = {
        "lines": kills.lines(),
        "sizes": kills.sizes(7),
        "chances": kills.chances(int.from_bytes(os.urandom(4), "big")),
        "beside": sorted(entry.name for entry in folder.iterdir()),
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
