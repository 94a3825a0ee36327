"""What one key may hold: a reader per kind of value.

A reader takes what TOML gave and returns the value of the tree, or raises `Wrong` with what would
be right. msgspec judges type and range, strictly (a boolean is no number, a text no integer);
what it has no word for is judged here: exact ratios, CPU lists, addresses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from fractions import Fraction
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from agent.cpuset import CpuSet, CpuSetError
from agent.policy import parse_weight

if TYPE_CHECKING:
    from collections.abc import Iterable
    from enum import StrEnum

Reader = Callable[[object], object]

MIN_RATIO: Final = Fraction(1, 100)
MAX_RATIO: Final = Fraction(1000)
MAX_SECONDS: Final = 31_536_000
"""A year: any longer wait is a mistake, and some of Python's own waits refuse to be very long."""

_MAX_DIGITS: Final = 9
_MAX_SOCKET_PATH: Final = 107  # sockaddr_un has 108 bytes, the last of them 0
_MAX_PORT: Final = 65535
_SHOWN: Final = 60
_MIN_PART: Final = 3  # `ratio` hints at emulator_overcommit_ratio, `r` at nothing
_DECIMAL = re.compile(r"[0-9]*\.?[0-9]*\Z")
_URI = re.compile(r"[a-z][a-z0-9]*(\+[a-z0-9]+)?://[!-~]*\Z")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.IGNORECASE)
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})\Z")
_DIGITS_AND_DOTS = re.compile(r"[0-9.]+\Z")


class Wrong(Exception):
    """A value that its key cannot hold; the text says what would be right."""


def shown(value: object) -> str:
    """Return `value` as one line of at most 60 characters, control characters escaped."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of 4300 digits, a table in a table in a ...
        text = f"<a {type(value).__name__} too large to show>"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` for the closest of `known`, else nothing."""
    known = tuple(known)
    part = word[:_SHOWN].lower()
    found = get_close_matches(part, known, n=1) or [
        key for key in known if len(part) >= _MIN_PART and part in key
    ]
    return f" (did you mean {found[0]}?)" if found else ""


def whole(low: int, high: int) -> Reader:
    """Return a reader of integers from `low` to `high`."""
    shape = Annotated[int, Meta(ge=low, le=high)]
    return lambda value: _convert(value, shape, f"a whole number from {low} to {high}")


def choice(options: type[StrEnum]) -> Reader:
    """Return a reader of one of `options`."""

    def read(value: object) -> object:
        hint = nearest(value, options) if isinstance(value, str) else ""
        return _convert(value, options, f"one of {', '.join(options)}{hint}")

    return read


def flag(value: object) -> object:
    """Read true or false."""
    return _convert(value, bool, "true or false, without quotes")


def delay(value: object) -> object:
    """Read a time in seconds that may be 0."""
    shape = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
    return _convert(value, shape, f"seconds, a number from 0 to {MAX_SECONDS}")


def interval(value: object) -> object:
    """Read a time in seconds that may not be 0."""
    shape = Annotated[float, Meta(gt=0, le=MAX_SECONDS)]
    return _convert(value, shape, f"seconds, a number above 0 and up to {MAX_SECONDS}")


def parse_ratio(text: str) -> Fraction | None:
    """Read a decimal of at most nine digits, no exponent, from 0.01 to 1000; None for any other."""
    digits = sum(map(str.isdigit, text)) if len(text) <= _MAX_DIGITS + 1 else 0
    if not digits or digits > _MAX_DIGITS or not _DECIMAL.match(text):
        return None
    ratio = Fraction(text)
    return ratio if MIN_RATIO <= ratio <= MAX_RATIO else None


def ratio(value: object) -> object:
    """Read an overcommit ratio, exactly."""
    wanted = "a decimal from 0.01 to 1000 with at most nine digits, such as 8 or 2.5"
    return _given(parse_ratio(_decimal(value, wanted)), wanted)


def weight(value: object) -> object:
    """Read the weight of a guest, exactly."""
    wanted = "a decimal from 0.01 to 64 with at most nine digits, such as 2 or 0.5"
    return _given(parse_weight(_decimal(value, wanted)), wanted)


def cpu_list(value: object) -> object:
    """Read a CPU list; empty text is the empty set.

    Other text that comes to nothing (`3,^3`) is refused, since an empty `cpus` means all.
    """
    wanted = 'a CPU list in quotes, such as "0-3,8" or "0-7,^5"'
    text = _convert(value, str, wanted)
    try:
        cpus = CpuSet.parse(text)
    except CpuSetError as error:
        raise Wrong(f"{error}; {wanted}") from None
    if text.strip() and not cpus:
        raise Wrong(f"it names no CPU at all; {wanted}")
    return cpus


def glob(value: object) -> object:
    """Read a pattern that can match something."""
    return _convert(value, Annotated[str, Meta(min_length=1)], 'a pattern, such as "nfv-*"')


def uuid(value: object) -> object:
    """Read a UUID in libvirt's form; it is returned in lower case, as libvirt writes it."""
    wanted = 'a UUID such as "6a1f3c52-0b3e-4f0e-9d5e-0c1d2e3f4a5b", as virsh domuuid prints it'
    return _matching(value, _UUID, wanted).lower()


def uri(value: object) -> object:
    """Read libvirt's connection URI."""
    return _matching(value, _URI, 'a libvirt URI, such as "qemu:///system"')


def listen(value: object) -> object:
    """Read the address of a server; empty text is none."""
    wanted = 'HOST:PORT such as "127.0.0.1:9857" or "[::1]:9857", port 0-65535, or "" for no server'
    text: str = _convert(value, str, wanted)
    found = _LISTEN.match(text)
    if text and (found is None or int(found[3]) > _MAX_PORT or not _host(found[1], found[2])):
        raise Wrong(wanted)
    return text


def file(value: object) -> object:
    """Read the absolute path of a file."""
    return _path(value, 'an absolute path of a file, such as "/run/emupool/state.json"')


def optional_file(value: object) -> object:
    """Read the absolute path of a file; empty text is None."""
    wanted = 'an absolute path of a file, such as "/etc/emupool/tls.pem", or "" for none'
    return None if value == "" else _path(value, wanted)


def socket(value: object) -> object:
    """Read the path of a Unix socket."""
    wanted = f"an absolute path of a socket, at most {_MAX_SOCKET_PATH} bytes long"
    path = _path(value, wanted)
    if len(bytes(path)) > _MAX_SOCKET_PATH:
        raise Wrong(wanted)
    return path


def _convert(value: object, shape: Any, wanted: str) -> Any:  # noqa: ANN401 - the shape is the type
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError:
        raise Wrong(wanted) from None


def _decimal(value: object, wanted: str) -> str:
    """Return a number's shortest decimal, or a text as it stands."""
    number = _convert(value, int | float | str, wanted)
    if isinstance(number, int) and abs(number) >= 10**_MAX_DIGITS:
        raise Wrong(wanted)  # also since Python refuses to print an integer of 4300 digits
    return str(number)


def _given(made: Fraction | None, wanted: str) -> Fraction:
    if made is None:
        raise Wrong(wanted)
    return made


def _matching(value: object, pattern: re.Pattern[str], wanted: str) -> str:
    text: str = _convert(value, str, wanted)
    if not pattern.match(text):
        raise Wrong(wanted)
    return text


def _host(ipv6: str | None, name: str) -> bool:
    """Tell whether the bracketed or the plain part of an address can be a host."""
    if ipv6 is None and not _DIGITS_AND_DOTS.match(name):
        return True
    try:
        return ip_address(ipv6 or name).version == (6 if ipv6 else 4)
    except ValueError:
        return False


def _path(value: object, wanted: str) -> Path:
    text: str = _convert(value, str, wanted)
    if not text.startswith("/") or text.endswith(("/", "/.", "/..")) or not text.isprintable():
        raise Wrong(wanted)
    return Path(text)
