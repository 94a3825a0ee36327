"""The commands that join emupool with its neighbours: `provider-yaml`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent import reach
from agent.cli.options import config_option, domains_option, examples, sysfs_option
from agent.terminal import load, one_line_errors, warn_line, with_domains

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    "provider-yaml",
    epilog=examples("emupool provider-yaml > emupool.yaml"),
)
@config_option
@sysfs_option
@domains_option
def provider_yaml(config_path: Path | None, sysfs_root: Path | None, domains: Path | None) -> None:
    """Print the inventory by which Placement holds the ratio.

    It is a provider configuration file for this host's nova-compute; its comments name the flavor
    properties to set. The pools need pCPUs that you name: source = "set".
    """
    from agent import provider  # noqa: PLC0415

    with_domains(sysfs_root, domains)
    with one_line_errors():
        config = load(config_path)
        decided = reach.decide(config, reach.look(config, sysfs_root, domains, None, warn_line))
        told = provider.inventory(decided.host, decided.plan, config.pool, config.guests)
        for warning in provider.warnings(told):
            warn_line(warning)
        click.echo(provider.document(told), nl=False)
