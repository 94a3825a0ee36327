"""Asking the running daemon, over HTTP."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from agent import report
from agent.errors import HypervisorAway, Refused

if TYPE_CHECKING:
    from agent.config import HttpSettings

_TIMEOUT: Final = 10.0
_LONGEST: Final = 256 * 1024 * 1024
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask, not to listen


def address(settings: HttpSettings) -> str:
    """Return where the daemon with `settings` is asked; Refused if nowhere."""
    if settings.address is None:
        raise Refused("http.listen is empty: the daemon has no address to ask")
    return url(settings, *settings.address)


def url(settings: HttpSettings, host: str, port: int) -> str:
    """Return how a client on this host reaches a server that listens at `host` and `port`."""
    scheme = "https" if settings.tls_cert else "http"
    host = _ANY.get(host, host)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def fetch_advice(base: str) -> Any:  # noqa: ANN401 - JSON
    """Return the `advice` document, a part of the status; as `fetch_status`."""
    status = fetch_status(base)
    if not isinstance(status, dict) or "advice" not in status:
        raise Refused(f"{base}: no advice comes from there: is it an older emupool?")
    return {"schema": status["schema"], **status["advice"]}


def fetch_status(base: str) -> Any:  # noqa: ANN401 - JSON
    """Return the `status` document; HypervisorAway if no daemon answers at `base`."""
    if not base.startswith(("http://", "https://")):
        raise Refused(f"{base!r} is no address: http://HOST:PORT is one")
    import urllib.request  # noqa: PLC0415 - the daemon, which only tells its address, goes without

    full = base.rstrip("/") + "/api/v1/status"
    try:
        with urllib.request.urlopen(full, timeout=_TIMEOUT) as answer:  # noqa: S310 - checked above
            document = json.loads(answer.read(_LONGEST))
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        text = f"{full}: {why}: is the daemon running, and http.listen its address?"
        raise HypervisorAway(text) from error
    if not isinstance(document, dict) or document.get("schema") != report.SCHEMA:
        raise HypervisorAway(f"{full}: this is no status of an emupool of this version")
    return document
