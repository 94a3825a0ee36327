"""The commands that are tried away from the guests: `collect`, `simulate`, `demo`."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from agent import reach
from agent.cli.options import (
    FILE,
    config_option,
    examples,
    json_option,
    ratios_option,
    sysfs_option,
)
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
    """Gather what a plan of this host is made from, in a FILE.

    It is a .tar.gz, for a report or a replay elsewhere. Secrets in definitions are left out, names
    of guests are not; only you may read it.
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


@click.command(
    epilog=examples(
        "emupool simulate --generate 20000 --ratio 4 --ratio 8 --svg chart.svg",
        "emupool simulate --trace week.csv --ratio 8",
    )
)
@config_option
@sysfs_option
@click.option("--trace", type=FILE, metavar="FILE", help="Replay the trace in this file.")
@click.option(
    "--generate", type=click.IntRange(1), metavar="N", help="Make up a trace of N events."
)
@click.option(
    "--seed", type=int, metavar="N", default=0, help="The same seed makes up the same trace."
)
@ratios_option
@click.option("--svg", type=FILE, metavar="FILE", help="Draw a chart into this file.")
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
    """Replay guests that come and go, at several ratios.

    The host is empty at first, and takes whoever fits. Give --trace, or --generate (with --trace
    the made-up trace is written there), and --ratio as often as you like.

    A trace is CSV: time,guest,event and, if you like, vcpus,cells,policy,weight,pins. Times are
    seconds, an event is start or stop.
    """
    from agent import simulating  # noqa: PLC0415

    if trace is None and generate is None:
        raise click.UsageError("give --trace FILE, or --generate N for a made-up trace")
    with one_line_errors():
        config = load(config_path)
        host = reach.sysfs(sysfs_root).discover().host
        lines = simulating.lines(host, trace, generate, seed)
        if (untold := simulating.untold(config.pool)) is not None:
            warn_line(untold)
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
@click.option(
    "--pace", type=float, metavar="SECONDS", default=None, help="Time between two changes."
)
@click.option("--svg", type=FILE, help="Draw the scene with the most guests.")
def demo(pace: float | None, svg: Path | None) -> None:
    """Show pools follow guests, on a sample host.

    Guests arrive and leave on libvirt's in-process test driver, a host of two cells; all else is
    real. Needs no root and no daemon, and touches nothing on this host.
    """
    from agent.demo import run_demo  # noqa: PLC0415

    keep = None if svg is None else partial(save, svg)
    with one_line_errors():
        sys.exit(run_demo(console(), pace, keep))
