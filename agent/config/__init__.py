"""The configuration: one frozen tree, whose defaults are its documentation.

`load` reads a TOML file, `parse` its text; both return a `Config` or raise one `ConfigError` that
holds every error found. `check_host` then compares a good configuration with the host it is for.
`changes` and `effective` serve a reload, `to_json` the status.

The core's settings are defined where they are used and composed here; `settings` has the others.
No other module knows the parser (tomllib) or the validator (msgspec).
"""

from agent.config.export import to_json
from agent.config.hostcheck import check_host
from agent.config.reader import MAX_BYTES, load, parse
from agent.config.reload import RESTART, Change, changes, effective
from agent.config.settings import (
    AdmissionSettings,
    Config,
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
from agent.config.values import parse_ratio

__all__ = [
    "MAX_BYTES",
    "RESTART",
    "AdmissionSettings",
    "Change",
    "Config",
    "Fail",
    "HttpSettings",
    "LibvirtSettings",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "ReconcileSettings",
    "Reconnect",
    "StateSettings",
    "changes",
    "check_host",
    "effective",
    "load",
    "parse",
    "parse_ratio",
    "to_json",
]
