"""Which keys there are: a table of readers per TOML table, keyed as the settings name them.

The readers of a table and the fields of its settings are the same names; a test holds that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agent.accounting import BillingSettings
from agent.config import values
from agent.config.settings import (
    AdmissionSettings,
    Fail,
    HttpSettings,
    LibvirtSettings,
    LogFormat,
    LogLevel,
    LogSettings,
    ReconcileSettings,
    Reconnect,
    StateSettings,
)
from agent.cpuset import LIMIT
from agent.policy import Policy
from agent.pool import OnShortage, OnStop, Placement, PoolSource, Smt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.config.values import Reader

_POLICY: Final = values.choice(Policy)
_MANAGEABLE: Final = tuple(policy for policy in Policy if policy is not Policy.IGNORE)


def managed(value: object) -> object:
    """Read a policy whose guests may be pinned: `ignore` means hands off."""
    if value in _MANAGEABLE:
        return _POLICY(value)
    hint = values.nearest(value, _MANAGEABLE) if isinstance(value, str) else ""
    raise values.Wrong(f"one of {', '.join(_MANAGEABLE)}{hint}")


CELL: Final[Mapping[str, Reader]] = {
    "emulator_overcommit_ratio": values.ratio,
    "source": values.choice(PoolSource),
    "cpus": values.cpu_list,
    "reserved_cpus": values.cpu_list,
    "placement": values.choice(Placement),
    "smt": values.choice(Smt),
    "on_shortage": values.choice(OnShortage),
    "min_cpus": values.whole(0, LIMIT),
    "max_cpus": values.whole(0, LIMIT),
    "shrink_delay": values.delay,
}
"""`[pool.cell.N]`, and the keys of `[pool]` that it may replace."""

POOL: Final[Mapping[str, Reader]] = {
    "count_inactive": values.flag,
    "iothreads": values.flag,
    "on_stop": values.choice(OnStop),
}
"""The keys of `[pool]` that hold for all cells."""

GUESTS: Final[Mapping[str, Reader]] = {
    "infer": values.flag,
    "default_policy": _POLICY,
}

RULE: Final[Mapping[str, Reader]] = {
    "name": values.glob,
    "uuid": values.uuid,
    "flavor": values.glob,
    "policy": _POLICY,
    "weight": values.weight,
}
"""`[[guests.rule]]`."""

FLAT: Final[Mapping[str, tuple[type[Any], Mapping[str, Reader]]]] = {
    "libvirt": (
        LibvirtSettings,
        {
            "uri": values.uri,
            "keepalive_interval": values.whole(1, 3600),
            "keepalive_count": values.whole(1, 3600),
            "reconnect": values.choice(Reconnect),
            "pin_workers": values.whole(1, 8),
        },
    ),
    "billing": (BillingSettings, {"cpu_overcommit_ratio": values.ratio}),
    "reconcile": (ReconcileSettings, {"interval": values.interval, "dry_run": values.flag}),
    "http": (
        HttpSettings,
        {
            "listen": values.listen,
            "status_page": values.flag,
            "tls_cert": values.optional_file,
            "tls_key": values.optional_file,
            "client_ca": values.optional_file,
        },
    ),
    "state": (StateSettings, {"path": values.file}),
    "admission": (
        AdmissionSettings,
        {
            "enabled": values.flag,
            "socket": values.socket,
            "fail": values.choice(Fail),
            "reservation": values.delay,
        },
    ),
    "log": (LogSettings, {"level": values.choice(LogLevel), "format": values.choice(LogFormat)}),
}
"""The tables that hold keys and nothing else."""
