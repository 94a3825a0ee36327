"""The state file: what was intended, for the next start of this program to begin from.

It holds intent (originals, homes, pools, damping clocks), never what can be read from the host, and
beside that what threads used. It is a hint: whatever is wrong with it, it is set aside and the
memory is rebuilt. The clocks are monotonic seconds since boot, so a file of another boot is of no
use, and the guests it speaks of are gone as well. It is replaced atomically; there is no fsync,
because what would lose an unsynced file also ends every guest it speaks of.

Trusted is a regular file of root, of this user or of the directory's owner, who could replace it
anyway, unless everybody may write it. So root's `release` and a service with a user of its own can
follow each other; what root writes belongs to that owner, too. Links are never followed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from agent.cpuset import CellId, CpuSet
from agent.domainxml import Pins
from agent.errors import EmupoolError, Refused
from agent.pool import NOTHING, CellMemory, GuestMemory, Memory, SetAside

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

VERSION: Final = 1
LONGEST: Final = 16 * 1024 * 1024
"""Bytes of a state file; a thousand guests have a third of a megabyte."""
_KEPT: Final = (".unfit", ".unfit.1", ".unfit.2")
_REMEDIES: Final = {
    errno.EISDIR: "remove it",
    errno.ELOOP: "remove the link",
    errno.EACCES: "run this as root or as the user of the service",
    errno.EPERM: "run this as root or as the user of the service",
}
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class StateError(EmupoolError):
    """The state file cannot be used or written; `str` says why."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a state file says, and the monotonic time at which it was written."""

    memory: Memory
    at: float
    partition: CpuSet | None = None  # of libvirt; told by files that are made for a replay only
    usage: Any = None  # JSON; what agent.loadtext makes of it is no matter of the memory


NO_STATE: Final = Saved(NOTHING, 0.0)


class Checkpoint:
    """The state file at `path`."""

    def __init__(self, path: Path, boot_id: str | None = None) -> None:
        """Use `path`; `boot_id` is this boot's, read from the kernel when not given."""
        self.path = path
        self._boot_id = boot_id if boot_id is not None else read_boot_id()
        self._saved: tuple[Memory, str] | None = None
        self.failures = {"unfit": 0, "unsaved": 0}  # times it could not be used, nor be written
        self.usage = "null"  # JSON text beside the memory: as recalled, and as the next save has it

    def counters(self) -> dict[str, float]:
        """Return how often the file was unfit or could not be written; no metric has it."""
        told = self.failures.items()
        return {f'emupool_state_errors_total{{reason="{why}"}}': times for why, times in told}

    def recall(self, warn: Callable[[str], None]) -> Memory:
        """Return what was saved; an unfit file is told to `warn`, set aside and forgotten."""
        try:
            saved = self.load()
        except StateError as error:
            kept = self.set_aside()
            warn(f"{error}; " + (f"kept as {kept.name}" if kept else "it cannot be set aside"))
            return NOTHING
        self.usage = json.dumps(saved.usage if saved is not None else None, separators=(",", ":"))
        return saved.memory if saved is not None else NOTHING

    def load(self) -> Saved | None:
        """Return what was saved in this boot, None if nothing; StateError if the file is unfit."""
        try:
            text = _read(self.path, os.O_NOFOLLOW, _distrust)
            return None if text is None else _saved(self.path, text, self._boot_id)
        except StateError:
            self.failures["unfit"] += 1
            raise

    def set_aside(self) -> Path | None:
        """Move an unfit file out of the way, for an operator to look at; None if it stays.

        Of many the first ones are kept, and the last: they must not fill a directory.
        """
        slots = [self.path.with_name(self.path.name + suffix) for suffix in _KEPT]
        free = [slot for slot in slots if not os.path.lexists(slot)]
        for slot in free or reversed(slots):
            with suppress(OSError):
                return self.path.replace(slot)
        return None

    def save(self, memory: Memory, now: float) -> None:
        """Replace the file if it holds not `memory` and `usage`; StateError if that fails."""
        if self._saved == (memory, self.usage):
            return
        body = f'{json.dumps(_encode(memory), separators=(",", ":"))[:-1]},"usage":{self.usage}}}'
        head = json.dumps({"version": VERSION, "boot_id": self._boot_id, "at": now})
        try:
            _replace(self.path, f"{head[:-1]},{body[1:]}\n")
        except OSError as error:
            self.failures["unsaved"] += 1
            name = error.filename2 or error.filename
            where = f" ({name})" if name else ""
            raise StateError(f"{self.path}: not saved: {error.strerror}{where}") from error
        self._saved = memory, self.usage


class Lock:
    """The lock beside the state file: one daemon, or one `release`, per host."""

    def __init__(self, state: Path) -> None:
        """Lock `state`.lock; nothing is opened yet."""
        self.path = state.with_name(state.name + ".lock")
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Take the lock; Refused if another process has it or it cannot be made."""
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._open()
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder()
            self._close()
            text = f"{self.path}: another emupool{holder} holds the lock: stop it first"
            raise Refused(text) from None
        except OSError as error:
            self._close()
            remedy = _REMEDIES.get(error.errno or 0, "state.path needs a writable directory")
            text = f"{error.filename or self.path}: {error.strerror}: {remedy}"
            raise Refused(text) from error
        with suppress(OSError):  # a full disk is no reason not to start
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the lock back; the file stays, since removing it would race the next owner."""
        self._close()

    def _open(self) -> None:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            # Nobody else may open it: whoever reads a file can also lock it.
            self._descriptor = os.open(self.path, flags | os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            # What is there can be locked all the same, and a state that cannot be saved is a hint.
            there = self.path if self.path.exists() else self.path.parent
            self._descriptor = os.open(there, flags | os.O_RDONLY)
            return
        if not _is_plain(os.fstat(self._descriptor)):
            self._close()
            raise Refused(f"{self.path}: it is no regular file of one name: remove it")
        _give_to_owner_of(self.path.parent, self._descriptor)

    def _holder(self) -> str:
        text = b""
        with suppress(OSError):  # a directory's
            text = os.pread(self._descriptor, 20, 0).strip()
        return f" (process {int(text)})" if text.isdigit() else ""

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_boot_id(path: Path = _BOOT_ID) -> str:
    """Return the kernel's id of this boot, "" where it has none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def load_file(path: Path) -> Saved:
    """Return what any state file says, of whatever boot, for planning from files."""
    text = _read(path)
    if text is None:
        raise StateError(f"{path}: no such file")
    return _saved(path, text)


def encode(saved: Saved, boot_id: str) -> str:
    """Return the text of a state file that says `saved`."""
    head = {"version": VERSION, "boot_id": boot_id, "at": saved.at}
    partition = {} if saved.partition is None else {"partition": str(saved.partition)}
    return json.dumps({**head, **partition, **_encode(saved.memory)}, indent=1) + "\n"


def decode(document: dict[str, Any]) -> Saved:
    """Return the memory that a document holds; StateError if it is not one of ours."""
    try:
        memory = Memory(
            {CellId(int(cell)): _cell(value) for cell, value in document["cells"].items()},
            {str(uuid): _guest(value) for uuid, value in document["guests"].items()},
            tuple(_aside(value) for value in document["set_aside"]),
        )
        partition = _set(document.get("partition"))
        return Saved(memory, _seconds(document["at"]), partition, document.get("usage"))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StateError(f"it is damaged: {type(error).__name__} {error}") from error


def _read(
    path: Path, follow: int = 0, distrust: Callable[[Path, os.stat_result], str] | None = None
) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | follow)
    except FileNotFoundError:
        return None
    except OSError as error:
        why = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise StateError(f"{path}: {why}") from error
    try:
        found = os.fstat(descriptor)
        why = _unfit(found) or (distrust(path.parent, found) if distrust else "")
        if why:
            raise StateError(f"{path}: {why}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(LONGEST).decode()
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise StateError(f"{path}: it is no text") from None
    finally:
        os.close(descriptor)  # a directory's too, which cannot be made a file


def _unfit(found: os.stat_result) -> str:
    if not stat.S_ISREG(found.st_mode):
        return "it is no regular file"
    if found.st_size > LONGEST:
        return f"its {found.st_size} bytes are more than {LONGEST}"
    return ""


def _distrust(directory: Path, found: os.stat_result) -> str:
    if found.st_mode & stat.S_IWOTH:
        return f"it is not trusted: everybody may write it (mode {found.st_mode & 0o7777:04o})"
    if found.st_uid not in {0, os.geteuid(), directory.stat().st_uid}:
        return f"it is not trusted: it belongs to user {found.st_uid}"
    return ""


def _is_plain(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def _give_to_owner_of(directory: Path, descriptor: int) -> None:
    """Let a file that root makes belong to the service's user, if the directory does."""
    owner = directory.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        with suppress(OSError):
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _saved(path: Path, text: str, boot_id: str | None = None) -> Saved:
    """Return what the text of `path` says; it must be of the boot, if that is given."""
    try:
        return decode(_document(text, boot_id))
    except StateError as error:
        raise StateError(f"{path}: {error}") from error


def _document(text: str, boot_id: str | None) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateError(f"it is no JSON: {error}") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise StateError(f"it is not of version {VERSION}")
    if boot_id is not None and document.get("boot_id") != boot_id:
        raise StateError("it is of another boot")
    return document


def _replace(path: Path, text: str) -> None:
    if len(text) > LONGEST:
        raise OSError(errno.EFBIG, f"{len(text)} bytes are more than {LONGEST}")
    # One name, whoever writes: the lock lets only one, and what a killed one left is not heaped up.
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(temporary, flags, 0o640), "w") as file:
            _give_to_owner_of(path.parent, file.fileno())
            file.write(text)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def _encode(memory: Memory) -> dict[str, Any]:
    return {
        "cells": {
            str(cell): {
                "cpus": str(kept.cpus),
                "lingering": str(kept.lingering),
                "oversize_since": kept.oversize_since,
                "oversize_need": kept.oversize_need,
                "smt_since": kept.smt_since,
            }
            for cell, kept in sorted(memory.cells.items())
        },
        "guests": {
            uuid: {
                "start": kept.start,
                "emulator": _text(kept.original.emulator),
                "iothreads": {str(n): _text(pin) for n, pin in kept.original.iothreads},
                "natural": kept.natural,
                "home": kept.home,
                "placed": _text(kept.placed),
                "room_since": kept.room_since,
            }
            for uuid, kept in sorted(memory.guests.items())
        },
        "set_aside": [[kept.cpu, kept.owner, kept.stopped_since] for kept in memory.set_aside],
    }


def _cell(value: dict[str, Any]) -> CellMemory:
    return CellMemory(
        CpuSet.parse(value["cpus"]),
        CpuSet.parse(value["lingering"]),
        _time(value["oversize_since"]),
        int(value["oversize_need"]),
        _time(value["smt_since"]),
    )


def _guest(value: dict[str, Any]) -> GuestMemory:
    threads = sorted((int(n), _set(pin)) for n, pin in value["iothreads"].items())
    return GuestMemory(
        start=str(value["start"]),
        original=Pins(_set(value["emulator"]), tuple(threads)),
        natural=_cell_id(value["natural"]),
        home=_cell_id(value["home"]),
        placed=_set(value["placed"]),
        room_since=_time(value["room_since"]),
    )


def _aside(value: list[Any]) -> SetAside:
    cpu, owner, stopped_since = value
    return SetAside(int(cpu), str(owner), _time(stopped_since))


def _text(cpus: CpuSet | None) -> str | None:
    return None if cpus is None else str(cpus)


def _set(text: str | None) -> CpuSet | None:
    return None if text is None else CpuSet.parse(text)


def _cell_id(value: int | None) -> CellId | None:
    return None if value is None else CellId(int(value))


def _time(value: float | None) -> float | None:
    return None if value is None else _seconds(value)


def _seconds(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is no time")
    return float(value)
