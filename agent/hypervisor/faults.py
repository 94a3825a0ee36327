"""Opening connections, and libvirt's errors as those of our tree."""

from __future__ import annotations

import contextlib
from typing import Final

import libvirt

from agent.errors import (
    EmupoolError,
    GuestBusy,
    GuestFailed,
    GuestGone,
    HypervisorAway,
    NotPermitted,
    TargetRefused,
)

_NOT_PERMITTED: Final = frozenset(
    {
        libvirt.VIR_ERR_OPERATION_DENIED,
        libvirt.VIR_ERR_ACCESS_DENIED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_CANCELLED,
    }
)
_MEANS: Final[dict[int, type[EmupoolError]]] = {
    libvirt.VIR_ERR_OPERATION_TIMEOUT: GuestBusy,
    libvirt.VIR_ERR_NO_DOMAIN: GuestGone,
    libvirt.VIR_ERR_INVALID_ARG: TargetRefused,
    **dict.fromkeys(_NOT_PERMITTED, NotPermitted),
}


def connect(uri: str, keepalive_interval: int, keepalive_count: int) -> libvirt.virConnect:
    """Open a connection; HypervisorAway or NotPermitted if that fails."""
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _NOT_PERMITTED:
            raise NotPermitted(f"{uri}: {_text(error)}") from error
        raise HypervisorAway(f"{uri}: {_text(error)}") from error
    # The test driver has no keepalive, and no connection that could die either.
    with contextlib.suppress(libvirt.libvirtError):
        connection.setKeepAlive(keepalive_interval, keepalive_count)
    return connection


def translated(
    error: libvirt.libvirtError,
    connection: libvirt.virConnect,
    domain: libvirt.virDomain | None = None,
) -> EmupoolError:
    """Return the error of our tree that says what to do next."""
    code, text = error.get_error_code(), _text(error)
    if _is_lost(error, connection):
        return HypervisorAway(text)
    if code == libvirt.VIR_ERR_OPERATION_INVALID:  # its state tells which of two: bad mask, or gone
        return TargetRefused(text) if domain is not None and _runs(domain) else GuestGone(text)
    if code in _MEANS:
        return _MEANS[code](text)
    return TargetRefused(text) if "set CPU affinity" in text else GuestFailed(text)


def _is_lost(error: libvirt.libvirtError, connection: libvirt.virConnect) -> bool:
    if error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return True
    try:
        return not connection.isAlive()
    except libvirt.libvirtError:
        return True


def _runs(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError:
        return False


def _text(error: libvirt.libvirtError) -> str:
    """Return libvirt's message in one line."""
    return " ".join((error.get_error_message() or "no message").split())
