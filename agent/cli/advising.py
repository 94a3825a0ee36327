"""The command that says how high the ratio may be."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from agent.cli.options import config_option, json_option, url_option
from agent.terminal import NO, console, load, one_line_errors, print_json

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@config_option
@url_option
@json_option
def advise(config_path: Path | None, url: str | None, *, as_json: bool) -> None:
    """Say how high the ratio may be, from what was measured.

    Exit status 1 if there is not enough data for any cell.
    """
    from agent import client  # noqa: PLC0415

    with one_line_errors():
        document = client.fetch_advice(url or client.address(load(config_path).http))
        if as_json:
            print_json(document)
        else:
            from agent import draw  # noqa: PLC0415

            draw.advice(console(), document)
        if all(cell["suggested"] is None for cell in document["cells"]):
            sys.exit(NO)
