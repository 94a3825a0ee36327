"""The guests that were seen running since the host was booted: a file beside the state file.

A line for each, after one that names the boot, so that one more guest is one more line. It is a
hint, as the state file is: of a line that is torn, or a file of another boot, nothing is taken,
and what cannot be written is only forgotten by the next start of this program.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

LIMIT: Final = 16384
"""Guests that are remembered; of more, those that were seen first are forgotten."""
_LINE: Final = 37
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # nor wait for what is no file


class Guestbook:
    """Who was seen, and the start of each that was seen last; one thread calls it."""

    def __init__(self, path: Path, boot_id: str) -> None:
        """Go on from the file at `path`, if it is of this boot and can be read."""
        self._path = path
        self._boot_id = boot_id
        self._lines = 0  # in the file; 0: it is to be written anew
        self.starts: dict[str, str] = {}
        """The last start of each guest by UUID, empty for one that only the file knows."""
        self._read()

    def enter(self, running: dict[str, str]) -> None:
        """Take in which guests run, as their starts by UUID; OSError if that cannot be kept."""
        news = [uuid for uuid, start in running.items() if self.starts.get(uuid) != start]
        unknown = [uuid for uuid in news if uuid not in self.starts]
        for uuid in news:
            self.starts.pop(uuid, None)
            self.starts[uuid] = running[uuid]  # as the newest
        for uuid in list(self.starts)[: max(0, len(self.starts) - LIMIT)]:
            del self.starts[uuid]
        if unknown or (self.starts and not self._lines):
            self._write(unknown)

    def _read(self) -> None:
        try:
            with os.fdopen(os.open(self._path, os.O_RDONLY | _FLAGS)) as file:
                boot, *lines = file.read(_LINE * (2 * LIMIT + 2)).splitlines() or [""]
        except (OSError, UnicodeDecodeError):
            return
        if boot == self._boot_id:
            known = [line for line in lines if _UUID.match(line)]
            self.starts = dict.fromkeys(known[-LIMIT:], "")

    def _write(self, unknown: list[str]) -> None:
        """Add lines, or write the file anew: at first, and when half of it is of no use."""
        anew = not self._lines or self._lines + len(unknown) > 2 * LIMIT
        uuids = list(self.starts) if anew else unknown
        lines = len(uuids) if anew else self._lines + len(unknown)
        text = "".join(f"{uuid}\n" for uuid in uuids)
        self._lines = 0  # should this fail
        if anew:
            temporary = self._path.with_name(f"{self._path.name}.new")
            temporary.unlink(missing_ok=True)  # of another user, perhaps
            _put(temporary, f"{self._boot_id}\n{text}", os.O_CREAT | os.O_EXCL)
            temporary.replace(self._path)
        else:
            _put(self._path, text, os.O_APPEND)
        self._lines = lines


def _put(path: Path, text: str, flags: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | _FLAGS | flags, 0o640), "w") as file:
        file.write(text)
