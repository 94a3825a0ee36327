"""The commands that are tried away from the guests: `collect`, `simulate`, `demo`."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from agent import reach
from agent.cli.options import FILE, config_option, json_option, ratios_option, sysfs_option
from agent.terminal import (
    console,
    load,
    one_line_errors,
    print_json,
    progress,
    save,
    source_of,
    warn_line,
)

if TYPE_CHECKING:
    from fractions import Fraction
    from pathlib import Path


@click.command()
@config_option
@click.argument("file", type=FILE)
def collect(config_path: Path | None, file: Path) -> None:
    """Gather in FILE.tar.gz what a plan of this host is made from.

    For a report, or a replay elsewhere. Secrets in definitions are left out, names of guests are
    not; only you may read FILE.
    """
    from agent import collecting  # noqa: PLC0415

    with one_line_errors():
        source = source_of(config_path)
        domains = collecting.collect(load(config_path), source, file, warn_line)
        click.echo(
            f"{file}: {domains} domains; unpack it, and in emupool-collect ask: emupool plan"
        )
        config = " --config config.toml" if source is not None else ""
        click.echo(f"  --sysfs-root root --domains domains --state state.json{config}")


@click.command()
@config_option
@sysfs_option
@click.option("--trace", type=FILE, help="CSV: time,guest,event[,vcpus,cells,policy,weight,pins].")
@click.option("--generate", type=click.IntRange(1), help="Make up a trace of so many events.")
@click.option("--seed", type=int, default=0, help="The same seed makes up the same trace.")
@ratios_option
@click.option("--svg", type=FILE, help="Draw a chart.")
@json_option
def simulate(
    config_path: Path | None,
    sysfs_root: Path | None,
    trace: Path | None,
    generate: int | None,
    seed: int,
    ratios: tuple[Fraction, ...],
    svg: Path | None,
    *,
    as_json: bool,
) -> None:
    """Replay arrivals and departures of guests: what would pools have been?

    The host is empty at first, and takes whoever fits. Give --trace, or --generate (with --trace
    the made-up trace is written there), and --ratio as often as you like.
    """
    from agent import simulating  # noqa: PLC0415

    if trace is None and generate is None:
        raise click.UsageError("give --trace FILE, or --generate N for a made-up trace")
    with one_line_errors():
        config = load(config_path)
        host = reach.sysfs(sysfs_root).discover().host
        lines = simulating.lines(host, trace, generate, seed)
        asked, name = ratios or (config.pool.default.ratio,), str(trace or "made up")
        with progress() as told:
            document = simulating.simulate(host, config.pool, asked, lines, name, told)
        if svg is not None:
            save(svg, simulating.draw(document))
        if as_json:
            print_json(document)
            return
        from agent import draw  # noqa: PLC0415

        draw.simulation(console(), document)


@click.command()
@click.option("--pace", type=float, default=None, help="Seconds between two changes.")
@click.option("--svg", type=FILE, help="Draw the scene with the most guests.")
def demo(pace: float | None, svg: Path | None) -> None:
    """Show the whole pipeline on libvirt's in-process test driver.

    Guests arrive and leave on a sample host of two cells. Needs no root and no daemon, and
    touches nothing on this host.
    """
    from agent.demo import run_demo  # noqa: PLC0415

    keep = None if svg is None else partial(save, svg)
    with one_line_errors():
        sys.exit(run_demo(console(), pace, keep))
