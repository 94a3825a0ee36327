#!/bin/sh
""":" # sh reads as far as `exit`: most calls end there, without Python, and cannot fail for it.

case $2 in prepare | migrate | restore) exec /usr/bin/python3 -IS "$0" "$@" ;; esac
exit 0

The libvirt hook: asks the daemon whether a guest may start, and how it is to be pinned here.

    /etc/libvirt/hooks/qemu.d/emupool NAME OPERATION SUBOPERATION EXTRA < definition

One file that needs nothing but Python, and only once for each start, migration and restore: all
other calls (`reconnect`, whose failure would kill the guest, is one) end in the lines above. It
never calls libvirt, which waits for it, and waits itself for 100 ms. Standard output is what
libvirt takes for the new definition; why a guest may not start goes to standard error, and only
then the exit status is not 0.

Only if the daemon does not answer where it usually listens the configuration is read, which says
where else it may be, and what its silence means: that costs as much as all the rest.

What is said over the socket, both ways: a line of words, the last of which counts the bytes that
follow it.

    emupool 1 prepare 5120
    admit 0 | refuse 180 | replace 5117 | unknown 40
"""

from __future__ import annotations

import sys
import time
from _socket import AF_UNIX, SOCK_STREAM, socket  # the wrapper around it costs 5 ms, for its enums

TYPE_CHECKING = False  # that of typing costs 2 ms
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

VERSION: Final = "1"
ASKED: Final = frozenset({"prepare", "migrate", "restore"})
ADMIT: Final = "admit"
REFUSE: Final = "refuse"
REPLACE: Final = "replace"
UNKNOWN: Final = "unknown"

CONFIG: Final = "/etc/emupool/config.toml"
SOCKET: Final = "/run/emupool/admission.sock"
PATIENCE: Final = 0.1
"""Seconds for the daemon's answer."""
READING: Final = 1.0
"""Seconds of the processor for the configuration, which takes a hundredth of that."""

_HEAD: Final = 64
_LONGEST: Final = 1 << 23
"""Bytes of an answer; of a definition libvirt itself carries half as many."""
_CONFIG_BYTES: Final = 1 << 18


class NoAnswer(Exception):
    """Nobody tells whether the guest may start; `str` says why."""


def main(arguments: Sequence[str]) -> int:
    """Do what libvirt calls a hook for; return the exit status.

    `--config FILE`, `--socket PATH` (where to ask first) and `--patience SECONDS` may follow
    libvirt's arguments.
    """
    operation, sub = (*arguments[1:3], "", "")[:2]
    if operation not in ASKED or sub != "begin":
        return 0
    given = dict(zip(arguments[4::2], arguments[5::2], strict=False))
    try:
        definition = sys.stdin.buffer.read()
        word, text = _answer(operation, definition, given)
    except Exception as error:  # noqa: BLE001 - a start must not fail for what nobody foresaw
        return _say(f"not asked: {type(error).__name__}: {error}: it may start", 0)
    if word == REFUSE:
        return _say(text.decode("utf-8", "replace"), 1)
    if word == REPLACE:
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
    return 0


def _say(line: str, status: int) -> int:
    sys.stderr.write(f"emupool: {line}\n")
    return status


def _answer(operation: str, definition: bytes, given: dict[str, str]) -> tuple[str, bytes]:
    """Ask where the daemon usually is, else where the configuration says; else say what that says.

    The default place first: to read the configuration costs as much as Python's start.
    """
    config, first = given.get("--config", CONFIG), given.get("--socket", SOCKET)
    patience = float(given.get("--patience", PATIENCE))
    try:
        return ask(first, operation, definition, patience)
    except NoAnswer as error:
        why = error
    rules = admission(config)
    if rules.get("enabled") is not True:
        return ADMIT, b""
    where = rules.get("socket", SOCKET)
    if where != first:
        try:
            return ask(str(where), operation, definition, patience)
        except NoAnswer as error:
            why = error
    if rules.get("fail") != "closed":
        _say(f"{why}: it may start, for admission.fail is open", 0)
        return ADMIT, b""
    remedy = f'start the daemon, or set admission.fail = "open" in {config}'
    return REFUSE, f"{why}, and admission.fail is closed: {remedy}".encode()


def ask(path: str, operation: str, definition: bytes, patience: float) -> tuple[str, bytes]:
    """Return the daemon's word, and the text that goes with it; NoAnswer after `patience` seconds.

    An answer that is none, or says that the daemon does not know, is NoAnswer as well.
    """
    asker = socket(AF_UNIX, SOCK_STREAM)
    deadline = time.monotonic() + patience
    try:
        asker.settimeout(patience)
        asker.connect(path)
        asker.settimeout(_left(deadline))
        asker.sendall(f"emupool {VERSION} {operation} {len(definition)}\n".encode() + definition)
        word, text = _received(asker, deadline)
    except TimeoutError:
        raise NoAnswer(f"{path}: no answer within {patience:g} s") from None
    except (OSError, ValueError) as error:
        raise NoAnswer(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        asker.close()
    if word == UNKNOWN:
        raise NoAnswer(f"the daemon cannot tell: {text.decode('utf-8', 'replace')}")
    return word, text


def _received(asker: socket, deadline: float) -> tuple[str, bytes]:
    """Return a whole answer; ValueError if it is none."""
    got = bytearray()
    while b"\n" not in got:
        if len(got) > _HEAD:
            raise ValueError("this is no answer")
        got += _more(asker, deadline)
    head, _, text = bytes(got).partition(b"\n")
    word, _, length = head.decode("ascii").partition(" ")
    if word not in {ADMIT, REFUSE, REPLACE, UNKNOWN} or not 0 <= int(length) <= _LONGEST:
        raise ValueError("this is no answer")
    parts = [text]
    missing = int(length) - len(text)
    while missing > 0:
        parts.append(_more(asker, deadline))
        missing -= len(parts[-1])
    return word, b"".join(parts)[: int(length)]


def _more(asker: socket, deadline: float) -> bytes:
    """Return what comes next, by the deadline; ValueError if nothing will."""
    asker.settimeout(_left(deadline))
    chunk = asker.recv(1 << 16)
    if not chunk:
        raise ValueError("the daemon hung up")
    return chunk


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def admission(path: str, seconds: float = READING) -> dict[str, Any]:
    """Return the `[admission]` table of the configuration; empty if there is none or it is broken.

    tomllib takes hours for some texts of a few KiB, so it has so many `seconds` of the processor.
    """
    import signal  # noqa: PLC0415 - most calls do without
    import tomllib  # noqa: PLC0415

    signal.signal(signal.SIGVTALRM, _give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs 5 ms
            table = tomllib.loads(file.read(_CONFIG_BYTES).decode()).get("admission", {})
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, TimeoutError) as error:
        _say(f"{path}: {error}: taken for one without admission", 0)
        return {}
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return table if isinstance(table, dict) else {}


def _give_up(*_: object) -> None:
    raise TimeoutError("it takes too long to read")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
