"""The tree itself: the shell's settings, and `Config`, which joins them with the core's.

A key's name, default and meaning are those of `config.example.toml`. Times are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from agent.accounting import BillingSettings
from agent.policy import GuestSettings
from agent.pool import PoolSettings


class Reconnect(StrEnum):
    """What may be done to reach a libvirt that went away."""

    ALWAYS = "always"
    WAIT_FOR_SOCKET = "wait-for-socket"  # never wakes a socket-activated libvirtd


class Fail(StrEnum):
    """What the admission hook answers when it cannot ask the daemon."""

    OPEN = "open"
    CLOSED = "closed"


class LogLevel(StrEnum):
    """The least severe event that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How an event is written; `auto` is `console` on a terminal, else `json`."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


@dataclass(frozen=True, slots=True)
class LibvirtSettings:
    """The `[libvirt]` table."""

    uri: str = "qemu:///system"
    keepalive_interval: int = 5
    keepalive_count: int = 3
    reconnect: Reconnect = Reconnect.ALWAYS
    pin_workers: int = 3


@dataclass(frozen=True, slots=True)
class ReconcileSettings:
    """The `[reconcile]` table."""

    interval: float = 30.0
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The `[http]` table; `listen` is `HOST:PORT`, `[IPV6]:PORT`, or empty for no server."""

    listen: str = "127.0.0.1:9857"
    status_page: bool = True
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None

    @property
    def address(self) -> tuple[str, int] | None:
        """Host, without brackets, and port; None if there is to be no server."""
        host, _, port = self.listen.rpartition(":")
        return (host.strip("[]"), int(port)) if self.listen else None


@dataclass(frozen=True, slots=True)
class StateSettings:
    """The `[state]` table."""

    path: Path = Path("/run/emupool/state.json")


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """The `[admission]` table."""

    enabled: bool = False
    socket: Path = Path("/run/emupool/admission.sock")
    fail: Fail = Fail.OPEN
    reservation: float = 60.0


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The `[log]` table."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.AUTO


@dataclass(frozen=True, slots=True)
class Config:
    """All settings; `Config()` is what an empty file gives."""

    libvirt: LibvirtSettings = field(default_factory=LibvirtSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    guests: GuestSettings = field(default_factory=GuestSettings)
    billing: BillingSettings = field(default_factory=BillingSettings)
    reconcile: ReconcileSettings = field(default_factory=ReconcileSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    state: StateSettings = field(default_factory=StateSettings)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    log: LogSettings = field(default_factory=LogSettings)
