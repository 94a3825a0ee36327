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
    "--config",
    "config_path",
    type=FILE,
    metavar="FILE",
    help=f"Configuration; {DEFAULT_CONFIG} by default.",
)
sysfs_option = click.option(
    "--sysfs-root", type=FOLDER, metavar="DIR", help="Read the host from DIR/sys instead of /sys."
)
domains_option = click.option(
    "--domains",
    type=FOLDER,
    metavar="DIR",
    help="Read domain XML from DIR/*.xml instead of libvirt.",
)
url_option = click.option(
    "--url", metavar="URL", help="Where the daemon listens; by default as http.listen has it."
)
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
    metavar="RATIO",
    help="What if this were the ratio? Several are compared.",
)


def examples(*lines: str) -> str:
    """Return what ends a command's help: other commands, as they are typed."""
    return "\n".join(("\b", "For example:", *(f"  {line}" for line in lines)))
