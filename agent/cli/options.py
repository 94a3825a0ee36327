"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent import config as configuration
from agent.terminal import DEFAULT_CONFIG

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(path_type=Path)

config_option = click.option(
    "--config", "config_path", type=FILE, help=f"Configuration file, {DEFAULT_CONFIG} by default."
)
sysfs_option = click.option(
    "--sysfs-root", type=FOLDER, help="Read the host from DIR/sys instead of /sys."
)
domains_option = click.option(
    "--domains", type=FOLDER, help="Read domain XML from DIR/*.xml instead of libvirt."
)
url_option = click.option("--url", help="The daemon's address, http://127.0.0.1:9857 by default.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _ratios(_ctx: object, _param: object, values: Sequence[str]) -> tuple[Fraction, ...]:
    """Read some emulator_overcommit_ratios as the configuration takes them."""
    ratios = []
    for value in values:
        ratio = configuration.parse_ratio(value)
        if ratio is None:
            raise click.BadParameter(f"{value!r} is not a decimal number from 0.01 to 1000")
        ratios.append(ratio)
    return tuple(ratios)


ratios_option = click.option(
    "--ratio",
    "ratios",
    multiple=True,
    callback=_ratios,
    help="What if emulator_overcommit_ratio were this? Several are compared.",
)
