"""Runs a program confined as a unit has it: `python -m tests.sandbox UNIT FOLDER COMMAND...`.

Of what systemd would do it does, by the unit's text: user without privileges, capabilities, no new
privileges; a file system that is read-only but for FOLDER; the system calls of SystemCallFilter=
(their groups as systemd-analyze tells them), MemoryDenyWriteExecute=, RestrictAddressFamilies=, and
the want of clone3 that comes with RestrictNamespaces=. It leaves out what would hide the tests' own
files (PrivateTmp=, ProtectHome=), and devices, clocks, hostname and keys, which nobody here uses.

The program has the pid of whoever started this. It needs root.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from tests.runner import CLONE_NEWNS, MS_BIND, MS_PRIVATE, MS_REC, ROOT, _check, _libc, _mount

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

UID: Final = 65534
"""Of nobody, which has no rights either."""

_CONFINED: Final = "--confined"
_MOUNT_SETATTR: Final = 442  # of all machines; no wrapper in Debian 12's libc
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_RDONLY: Final = 1

_ALLOW: Final = 0x7FFF0000  # seccomp.h
_ERRNO: Final = 0x00050000
_EQUAL: Final = 4
_MASKED_EQUAL: Final = 7
_WRITE: Final = 2
_EXEC: Final = 4
_FAMILIES: Final = 46
_SHM_EXEC: Final = 0o100000

Unit = dict[str, list[str]]


class _Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`: an argument's number, how to compare it, and with what."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def directives(text: str) -> Unit:
    """Return the values of each directive of a unit, in order; sections do not matter here."""
    found: Unit = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def allowed(unit: Unit) -> set[str]:
    """Return the system calls that the unit lets pass."""
    groups = _groups()
    names = set(_expanded(groups, ["@default"]))  # systemd adds them to each such list
    for line in unit["SystemCallFilter"]:
        listed = _expanded(groups, line.removeprefix("~").split())
        names = names - set(listed) if line.startswith("~") else names | set(listed)
    return names


def _groups() -> dict[str, list[str]]:
    told = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager"],
        check=True,
        capture_output=True,
        text=True,
    )
    blocks = re.findall(r"^(@\S+)\n((?:    .*\n)+)", told.stdout, re.MULTILINE)
    return {name: re.findall(r"^    ([^\s#]+)$", body, re.MULTILINE) for name, body in blocks}


def _expanded(groups: dict[str, list[str]], names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name.startswith("@"):
            yield from _expanded(groups, groups[name])
        else:
            yield name


class _Filter:
    """A seccomp filter of this process and all that it becomes."""

    def __init__(self, default: int) -> None:
        self._lib = ctypes.CDLL("libseccomp.so.2")
        self._lib.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._lib.seccomp_init(ctypes.c_uint32(default)))

    def add(self, action: int, name: str, *comparisons: tuple[int, int, int, int]) -> None:
        """Let `action` follow a call whose arguments compare so; unknown names are passed over."""
        number = self._lib.seccomp_syscall_resolve_name(name.encode())
        array = (_Comparison * len(comparisons))(*(_Comparison(*one) for one in comparisons))
        if number >= 0:
            _check(
                self._lib.seccomp_rule_add_array(
                    self._context, ctypes.c_uint32(action), number, len(comparisons), array
                ),
                f"seccomp rule for {name}",
            )

    def load(self) -> None:
        _check(self._lib.seccomp_load(self._context), "seccomp_load")


def _confine(unit: Unit) -> None:
    refused = _Filter(_ALLOW)
    deny = _ERRNO | errno.EPERM
    if unit["MemoryDenyWriteExecute"] == ["yes"]:
        both = _WRITE | _EXEC
        refused.add(deny, "mmap", (2, _MASKED_EQUAL, both, both))
        refused.add(deny, "mprotect", (2, _MASKED_EQUAL, _EXEC, _EXEC))
        refused.add(deny, "pkey_mprotect", (2, _MASKED_EQUAL, _EXEC, _EXEC))
        refused.add(deny, "shmat", (2, _MASKED_EQUAL, _SHM_EXEC, _SHM_EXEC))
    if unit["RestrictNamespaces"] == ["yes"]:
        refused.add(_ERRNO | errno.ENOSYS, "clone3")
    families = {getattr(socket, name) for name in unit["RestrictAddressFamilies"][0].split()}
    for family in set(range(_FAMILIES)) - families:
        refused.add(_ERRNO | errno.EAFNOSUPPORT, "socket", (0, _EQUAL, family, 0))
    passed = _Filter(deny)
    for name in allowed(unit):
        passed.add(_ALLOW, name)
    refused.load()
    passed.load()  # last: it need not let this program's own calls pass


def _set_read_only(path: str, *, read_only: bool) -> None:
    given, taken = (_RDONLY, 0) if read_only else (0, _RDONLY)
    attributes = struct.pack("4Q", given, taken, 0, 0)
    flags = _AT_RECURSIVE if read_only else 0
    result = _libc.syscall(
        _MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, attributes, len(attributes)
    )
    _check(result, f"mount_setattr of {path}")


def _reveal(paths: Iterable[Path]) -> None:
    """Let everybody reach `paths`, as what is installed can be; they may be in a private home."""
    above = {
        path: next((one for one in reversed(path.parents) if not one.stat().st_mode & 1), None)
        for path in paths
    }
    held = {path: os.open(path, os.O_PATH) for path, private in above.items() if private}
    for private in set(filter(None, above.values())):
        _mount("emupool-tests", str(private), "tmpfs")
    for path, file in held.items():
        path.mkdir(parents=True, exist_ok=True)
        _mount(f"/proc/self/fd/{file}", str(path), None, MS_BIND | MS_REC)


def _seal(unit: Unit, folder: str) -> None:
    """Enter a mount namespace in which only `folder` may be written."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _reveal([ROOT, Path(sys.prefix), Path(sys.base_prefix)])
    if unit["ProtectSystem"] == ["strict"]:
        _mount(folder, folder, None, MS_BIND)
        _set_read_only("/", read_only=True)
        _set_read_only(folder, read_only=False)


def _capabilities(unit: Unit, directive: str) -> str:
    """Return a list of capabilities as setpriv(1) wants it."""
    names = " ".join(unit.get(directive, [])).lower().split()
    return ",".join(["-all", *(f"+{name.removeprefix('cap_')}" for name in names)])


def main(arguments: list[str]) -> NoReturn:
    """Shed all rights but the unit's, and become the command."""
    if arguments[0] == _CONFINED:
        _confine(directives(Path(arguments[1]).read_text()))
        os.execvp(arguments[2], arguments[2:])  # noqa: S606 - the shell is not wanted
    path, folder, *command = arguments
    unit = directives(Path(path).read_text())
    _seal(unit, folder)
    os.environ["HOME"] = "/"
    os.execvp(  # noqa: S606 - as above
        "setpriv",
        [
            *("setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups"),
            *("--no-new-privs", "--bounding-set", _capabilities(unit, "CapabilityBoundingSet")),
            *("--inh-caps", _capabilities(unit, "AmbientCapabilities")),
            *("--ambient-caps", _capabilities(unit, "AmbientCapabilities")),
            *(sys.executable, "-m", "tests.sandbox", _CONFINED, path, *command),
        ],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
