"""Files below a root, read one directory at a time so that no link leads out of it.

A name is opened relative to its directory, and no link is followed by the system call. Where a
copy of a host has a link, it is resolved first and must stay below the root.
"""

from __future__ import annotations

import errno
import os
from typing import Final, Self

from agent.errors import SysfsError

# The longest list of pCPUs that the kernel can print, each second of 8192, is 20 KiB; any other
# attribute is a page at most.
_MAX_BYTES: Final = 1 << 18
# The kernel hands out a page at a time: less than the smallest page is the end of the file, and
# more than this at once would be a new mapping for each buffer.
_PAGE: Final = 1 << 12
_AT_ONCE: Final = 1 << 16

# A named pipe in a copy must not block; on files the flag means nothing.
FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
DIRECTORY: Final = FILE | os.O_DIRECTORY

# What the kernel says of an attribute whose pCPU or node went away after the open.
_GONE: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
# What an open says of a link: the second if a directory was asked for.
_MAYBE_LINK: Final = frozenset({errno.ELOOP, errno.ENOTDIR})


class Folder:
    """An open directory. Names below it are opened relative to it; one without a file is absent."""

    __slots__ = ("_fd", "_top", "path")

    def __init__(self, top: str, path: str, fd: int | None) -> None:
        """Own `fd`. Both paths are free of links; nothing outside of `top` is read."""
        self._top = top
        self.path = path
        self._fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def enter(self, name: str) -> Folder:
        """Open the directory `name`, an absent one if there is none; SysfsError if it is wrong."""
        path, fd = self._open(name, DIRECTORY)
        return Folder(self._top, path, fd)

    def text(self, name: str) -> str | None:
        """Return the text of the file `name`, None if there is none; SysfsError if it is wrong."""
        path, fd = self._open(name, FILE)
        if fd is None:
            return None
        try:
            raw = read(fd)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise SysfsError(path, "", _reason(error)) from error
        finally:
            os.close(fd)
        if len(raw) > _MAX_BYTES:
            raise SysfsError(path, _decode(raw[:80]), f"longer than {_MAX_BYTES} bytes")
        return _decode(raw)

    def folders(self) -> tuple[str, ...]:
        """Return the names of its directories, and of its links, wherever they lead."""
        if self._fd is None:
            return ()
        try:
            with os.scandir(self._fd) as entries:
                return tuple(
                    entry.name
                    for entry in entries
                    if entry.is_symlink() or entry.is_dir(follow_symlinks=False)
                )
        except OSError as error:
            raise SysfsError(self.path, "", _reason(error)) from error

    def _open(self, name: str, flags: int) -> tuple[str, int | None]:
        """Return the path and the descriptor of `name`, None for it if there is no such thing."""
        path = f"{self.path}/{name}"
        if self._fd is None:
            return path, None
        try:
            return path, os.open(name, flags, dir_fd=self._fd)
        except OSError as error:
            if error.errno in _GONE:
                return path, None
            target = self._target(path) if error.errno in _MAYBE_LINK else path
            if target == path:
                raise SysfsError(path, "", _reason(error)) from error
        return target, open_resolved(target, flags)

    def _target(self, path: str) -> str:
        """Return what a link leads to, `path` itself if it is none; SysfsError if it is outside."""
        target = os.path.realpath(path)
        if target != self._top and not target.startswith(self._top.rstrip("/") + "/"):
            raise SysfsError(path, target, "a link that leads out of the root is not followed")
        return target


def open_resolved(path: str, flags: int) -> int | None:
    """Open a path that has no links in it, None if there is nothing."""
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise SysfsError(path, "", _reason(error)) from error


def read(fd: int) -> bytes:
    """Read to the end, or a little over the limit; the kernel gives a page at a time."""
    text = part = os.read(fd, _AT_ONCE)
    while len(part) >= _PAGE and len(text) <= _MAX_BYTES:
        part = os.read(fd, _AT_ONCE)
        text += part
    return text


def _decode(raw: bytes) -> str:
    # Linux 5.15-rc ended its list files with a NUL; others have read "\0\n" when empty.
    return raw.decode("ascii", "replace").strip("\0\t\n ")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
