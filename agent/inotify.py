"""Directories that appear: the kernel's inotify, which the standard library does not speak.

See inotify(7). It works on cgroups, whoever makes them. Events that overflow the kernel's queue,
and directories that are gone, are nothing to worry about: who asks has other ways to learn.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_IN_CREATE: Final = 0x100
_IN_ONLYDIR: Final = 0x01000000
_IN_ISDIR: Final = 0x40000000
_HEAD: Final = struct.Struct("iIII")  # watch, mask, cookie, length of the name
_BUFFER: Final = 1 << 16


def watch() -> Watch | None:
    """Return a watch of nothing yet, None where the kernel has none to give."""
    try:
        return Watch()
    except OSError:
        return None


class Watch:
    """Names of directories that appear in the watched ones."""

    def __init__(self) -> None:
        """OSError where the kernel has no inotify, or no more of it to give."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")

    def fileno(self) -> int:
        """Return what to poll."""
        return int(self._fd)

    def watch(self, directories: Iterable[str]) -> None:
        """Watch these as well; one that is watched already stays so, one that is not there is not.

        Any thread may call it.
        """
        for directory in directories:
            path = os.fsencode(directory)
            self._libc.inotify_add_watch(self._fd, path, _IN_CREATE | _IN_ONLYDIR)

    def names(self) -> Iterator[str]:
        """Yield the names of the directories that appeared since; never waits."""
        try:
            events = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(events):
            _, mask, _, length = _HEAD.unpack_from(events, offset)
            offset += _HEAD.size
            if mask & _IN_CREATE and mask & _IN_ISDIR:
                yield os.fsdecode(events[offset : offset + length].rstrip(b"\0"))
            offset += length
