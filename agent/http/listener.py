"""Where the server listens, and with which certificates; refusals that tell what to do."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import TYPE_CHECKING, Final

from agent.errors import EmupoolError

if TYPE_CHECKING:
    from agent.config import HttpSettings

_BACKLOG: Final = 1024
"""Clients that may come at once. One beyond asks again after a second, and then after two more."""

_REMEDIES: Final = {
    errno.EADDRINUSE: "stop what listens there (ss -ltnp), or set another port",
    errno.EADDRNOTAVAIL: "set an address that this host has",
    errno.EACCES: "set a port from 1024 on",
}


class PortInUse(EmupoolError):
    """The server cannot listen where it should; `str` says what, where and what to do."""


class CertificateRefused(EmupoolError):
    """The server has no usable certificate; `str` says which file, why and what to do."""


def listen(host: str, port: int, *, shown: str) -> socket.socket:
    """Return a socket that listens and does not block; `shown` is how the operator wrote it."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(_BACKLOG)
            listener.settimeout(0)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "set an address and port of this host")
        raise PortInUse(f"http.listen: {shown}: {error.strerror}: {remedy}") from error
    return listener


def tls(settings: HttpSettings) -> ssl.SSLContext | None:
    """Return what `[http]` says of TLS, None for none; CertificateRefused."""
    if settings.tls_cert is None:
        if settings.tls_key or settings.client_ca:
            raise CertificateRefused("http.tls_cert: not set: a key or client CA is nothing alone")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        # A key with a passphrase would have OpenSSL ask for it on the terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: b"")
    except (OSError, ValueError) as error:
        what = f"http.tls_cert: {settings.tls_cert}, key {settings.tls_key or 'in the same file'}"
        raise CertificateRefused(
            f"{what}: {_why(error)}: give a certificate chain and its key, both PEM, no passphrase"
        ) from error
    _demand_certificates(context, settings)
    return context


def _demand_certificates(context: ssl.SSLContext, settings: HttpSettings) -> None:
    if settings.client_ca is None:
        return
    try:
        context.load_verify_locations(settings.client_ca)
    except (OSError, ValueError) as error:
        raise CertificateRefused(
            f"http.client_ca: {settings.client_ca}: {_why(error)}: give PEM certificates"
        ) from error
    context.verify_mode = ssl.CERT_REQUIRED


def _why(error: Exception) -> str:
    """Return the reason in a line: OpenSSL's word for it, or the system's."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return " ".join(str(reason).split())
