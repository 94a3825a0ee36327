"""The commands that look at this host, or at files of one, and say what is or would be."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from agent import config as configuration
from agent import reach, report
from agent.cli.options import (
    FILE,
    config_option,
    domains_option,
    examples,
    json_option,
    ratios_option,
    sysfs_option,
    url_option,
)
from agent.terminal import (
    check_host,
    console,
    load,
    one_line_errors,
    plain,
    print_json,
    warn,
    warn_line,
    with_domains,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction
    from pathlib import Path

    from agent.offline import Decided


@click.command(
    epilog=examples(
        "emupool plan                                   this host, as it is",
        "emupool plan --ratio 4 --ratio 8 --ratio 16    which ratio?",
        "emupool plan --sysfs-root root --domains domains",
    )
)
@config_option
@sysfs_option
@domains_option
@click.option(
    "--state", type=FILE, metavar="FILE", help="Take the present pools from a state file."
)
@ratios_option
@json_option
def plan(
    config_path: Path | None,
    sysfs_root: Path | None,
    domains: Path | None,
    state: Path | None,
    ratios: tuple[Fraction, ...],
    *,
    as_json: bool,
) -> None:
    """Show what a cycle would do now, and why; pins nothing.

    With --sysfs-root and --domains it plans from files, without libvirt. Several --ratio give a
    table: pools, guests that move, and pCPUs freed against one for each guest.
    """
    from agent import topology  # noqa: PLC0415

    with_domains(sysfs_root, domains)
    with one_line_errors():
        config = load(config_path)
        seen = reach.look(config, sysfs_root, domains, state, warn_line)
        if len(ratios) > 1:
            _compare({ratio: reach.decide(config, seen, ratio) for ratio in ratios}, as_json)
            return
        decided = reach.decide(config, seen, *ratios)
        document = report.plan(decided.plan, decided.steps)
        for warning in document["warnings"]:
            warn(warning)
        if as_json:
            print_json(document)
            return
        from agent import draw  # noqa: PLC0415

        draw.plan(console(), document, topology.to_json(decided.host))


@click.command()
@config_option
@url_option
@click.option("--watch", is_flag=True, help="Look again and again; Ctrl-C ends.")
@json_option
def status(config_path: Path | None, url: str | None, *, watch: bool, as_json: bool) -> None:
    """Show pools, guests and the host, as the daemon sees them.

    With --watch the picture changes in place, and waits for a daemon that went away; in a pipe,
    each picture that differs from the one before is printed.
    """
    from agent import client  # noqa: PLC0415

    if watch and as_json:
        raise click.UsageError("--watch draws, and --json prints one answer: give one of them")
    with one_line_errors():
        base = url or client.address(load(config_path).http)
        if watch:
            _watch(base)
            return
        document = client.fetch_status(base)
        if as_json:
            print_json(document)
            return
        from agent import draw  # noqa: PLC0415

        draw.status(console(), document)


@click.command()
@sysfs_option
@json_option
def topology(sysfs_root: Path | None, *, as_json: bool) -> None:
    """Show the host: cells, cores, what is isolated or off line."""
    from agent import topology as interpreted  # noqa: PLC0415

    with one_line_errors():
        found = reach.sysfs(sysfs_root).discover()
        for problem in found.problems:
            click.echo(f"emupool: warning: {plain(problem)}", err=True)
        document = interpreted.to_json(found.host)
        if as_json:
            print_json(document)
        else:
            from agent import draw  # noqa: PLC0415

            draw.topology(console(), document)


@click.command("check-config")
@click.argument("file", type=FILE)
@sysfs_option
def check_config(file: Path, sysfs_root: Path | None) -> None:
    """Check the configuration FILE, and say every error in it.

    With --sysfs-root it is also held against that host; / is this one.
    """
    with one_line_errors():
        config = configuration.load(file)
        if sysfs_root is not None:
            check_host(config, reach.sysfs(sysfs_root), str(file))
        click.echo(plain(f"{file}: good"))


@click.command()
@config_option
@sysfs_option
@domains_option
@json_option
def account(
    config_path: Path | None, sysfs_root: Path | None, domains: Path | None, *, as_json: bool
) -> None:
    """Show what each guest is billed, in pCPUs.

    A vCPU pinned one-to-one counts 1, any other 1/cpu_overcommit_ratio, and a place in a pool
    weight/emulator_overcommit_ratio.
    """
    from agent import accounting  # noqa: PLC0415

    with_domains(sysfs_root, domains)
    with one_line_errors():
        config = load(config_path)
        seen = reach.look(config, sysfs_root, domains, None, warn_line)
        decided = reach.decide(config, seen)
        bills = accounting.account(decided.host, config.billing, decided.plan, decided.guests)
        document = report.account(bills, decided.plan)
        if as_json:
            print_json(document)
            return
        from agent import draw  # noqa: PLC0415

        draw.account(console(), document)


# parts


def _watch(base: str) -> None:
    """Watch the daemon at an address; SIGTERM ends it as Ctrl-C does, the terminal mended."""
    import signal  # noqa: PLC0415

    from agent import client, watching  # noqa: PLC0415

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    watching.watch(console(), partial(client.fetch_status, base))


def _compare(answers: Mapping[Fraction, Decided], as_json: bool) -> None:  # noqa: FBT001 - what to print
    document = report.comparison({ratio: (one.plan, one.steps) for ratio, one in answers.items()})
    if as_json:
        print_json(document)
        return
    from agent import draw  # noqa: PLC0415

    draw.comparison(console(), document)
