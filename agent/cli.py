"""The command line: options in, documents or pictures out, one line for each error.

Exit status: 0 done; 1 the answer is no; 2 usage; 3 libvirt or the daemon cannot be reached.
Heavy parts are imported by the commands that need them: `plan` from files needs no libvirt.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent import __version__, reach, report
from agent import config as configuration
from agent.terminal import (
    DEFAULT_CONFIG,
    NO,
    UNREACHABLE,
    USAGE,
    check_host,
    console,
    fail,
    load,
    one_line_errors,
    plain,
    print_json,
    progress,
    source_of,
    warn,
    warn_line,
    with_domains,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from fractions import Fraction

    from agent.config import Config
    from agent.offline import Decided

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(path_type=Path)

config_option = click.option(
    "--config", "config_path", type=_FILE, help=f"Configuration file, {DEFAULT_CONFIG} by default."
)
sysfs_option = click.option(
    "--sysfs-root", type=_FOLDER, help="Read the host from DIR/sys instead of /sys."
)
domains_option = click.option(
    "--domains", type=_FOLDER, help="Read domain XML from DIR/*.xml instead of libvirt."
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
    help="What if emulator_overcommit_ratio were this? Several are compared.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, prog_name="emupool")
def emupool() -> None:
    """Keep emulator threads of guests on a small pool of pCPUs per NUMA cell."""


@emupool.command()
@config_option
@click.option("--dry-run", is_flag=True, help="Plan and report, but pin nothing.")
def run(config_path: Path | None, *, dry_run: bool) -> None:
    """Run the daemon, in the foreground."""
    from agent import client, daemon, http, hypervisor, inotify, logs, threads  # noqa: PLC0415
    from agent.checkpoint import Lock  # noqa: PLC0415

    with one_line_errors():
        host = reach.sysfs()

        def checked(config: Config) -> Config:
            """Hold the configuration against this host, and `--dry-run` above it."""
            check_host(config, host, str(config_path or DEFAULT_CONFIG))
            reconcile = replace(config.reconcile, dry_run=dry_run or config.reconcile.dry_run)
            return replace(config, reconcile=reconcile)

        config = checked(load(config_path))
        logs.configure(config.log.level, config.log.format, sys.stderr)
        logs.catch_uncaught()
        with Lock(config.state.path):
            loop = hypervisor.EventLoop()
            parts = daemon.Parts(
                reach.libvirt(config.libvirt), host, threads.Threads(), loop, inotify.watch()
            )
            path = config_path or DEFAULT_CONFIG
            service = daemon.Daemon(config, parts, path=path, override=checked)
            answers = http.Answers(
                service.metrics.expose, service.ready, service.status, service.page
            )
            server = http.Server(config.http, answers)
            try:
                server.start()
            except http.PortInUse as error:
                fail([str(error)], UNREACHABLE)
            if server.address is not None:
                url = client.url(config.http, *server.address)
                logs.get("http").info("http.listening", url=url)
            service.run()
            server.stop()


@emupool.command()
@config_option
@sysfs_option
@domains_option
@click.option("--state", type=_FILE, help="Take the present pools from a state file.")
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
    """Show what a cycle would do now, with reasons; pins nothing.

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


@emupool.command()
@config_option
@click.option("--url", help="The daemon's address, http://127.0.0.1:9857 by default.")
@json_option
def status(config_path: Path | None, url: str | None, *, as_json: bool) -> None:
    """Show pools, guests and the host from the running daemon."""
    from agent import client  # noqa: PLC0415

    with one_line_errors():
        document = client.fetch_status(url or client.address(load(config_path).http))
        if as_json:
            print_json(document)
            return
        from agent import draw  # noqa: PLC0415

        draw.status(console(), document)


@emupool.command()
@sysfs_option
@json_option
def topology(sysfs_root: Path | None, *, as_json: bool) -> None:
    """Show the host as discovered."""
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


@emupool.command("check-config")
@click.argument("file", type=_FILE)
@sysfs_option
def check_config(file: Path, sysfs_root: Path | None) -> None:
    """Check a configuration FILE; exit 1 with every error found.

    With --sysfs-root it is also held against that host.
    """
    with one_line_errors():
        config = configuration.load(file)
        if sysfs_root is not None:
            check_host(config, reach.sysfs(sysfs_root), str(file))
        click.echo(plain(f"{file}: good"))


@emupool.command()
@config_option
def release(config_path: Path | None) -> None:
    """Give every managed guest its original pins back.

    Refused while a daemon runs: it would pin them again.
    """
    from agent import releasing  # noqa: PLC0415
    from agent.checkpoint import Checkpoint, Lock  # noqa: PLC0415
    from agent.observer import Observer  # noqa: PLC0415
    from agent.pinner import Pinner  # noqa: PLC0415
    from agent.rebalancer import Rebalancer  # noqa: PLC0415
    from agent.threads import Threads  # noqa: PLC0415

    with one_line_errors():
        config = load(config_path)
        with Lock(config.state.path), reach.link(config.libvirt) as link:
            threads = Threads()
            pinner = Pinner(
                reach.libvirt(config.libvirt).hand,
                threads,
                lambda: None,
                config.libvirt.pin_workers,
            )
            checkpoint = Checkpoint(config.state.path)
            rebalancer = Rebalancer(
                reach.settings(config),
                Observer(reach.sysfs(None), threads),
                pinner,
                checkpoint,
                checkpoint.recall(warn_line),
            )
            result = rebalancer.release(link)
        done, failed = releasing.lines(result)
        for line in done:
            click.echo(plain(line))
        if failed:
            fail(failed, NO)


@emupool.command()
@config_option
@sysfs_option
@domains_option
@json_option
def account(
    config_path: Path | None, sysfs_root: Path | None, domains: Path | None, *, as_json: bool
) -> None:
    """Show what each guest is billed."""
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


@emupool.command()
@config_option
@click.argument("file", type=_FILE)
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


@emupool.command()
@config_option
@sysfs_option
@click.option("--trace", type=_FILE, help="CSV: time,guest,event[,vcpus,cells,policy,weight,pins].")
@click.option("--generate", type=click.IntRange(1), help="Make up a trace of so many events.")
@click.option("--seed", type=int, default=0, help="The same seed makes up the same trace.")
@ratios_option
@click.option("--svg", type=_FILE, help="Draw a chart.")
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
            simulating.save(svg, simulating.draw(document))
        if as_json:
            print_json(document)
            return
        from agent import draw  # noqa: PLC0415

        draw.simulation(console(), document)


@emupool.command()
@click.option("--pace", type=float, default=None, help="Seconds between two changes.")
def demo(pace: float | None) -> None:
    """Show the whole pipeline on libvirt's in-process test driver.

    Guests arrive and leave on a sample host of two cells. Needs no root and no daemon, and
    touches nothing on this host.
    """
    from agent.demo import run_demo  # noqa: PLC0415

    with one_line_errors():
        sys.exit(run_demo(console(), pace))


def main() -> None:
    """Run the command line; every error is one line, also one of usage."""
    try:
        sys.exit(emupool.main(prog_name="emupool", standalone_mode=False) or 0)
    except click.UsageError as error:
        context = error.ctx
        if "\n" in error.message:  # no command given: then click's message is the help
            click.echo(error.message, err=True)
            sys.exit(USAGE)
        path = context.command_path if context is not None else "emupool"
        fail([f"{error.format_message().rstrip('.')}: see '{path} --help'"], USAGE)
    except click.ClickException as error:
        fail([error.format_message()], NO)
    except click.Abort:
        fail(["interrupted"], NO)


# parts


def _compare(answers: Mapping[Fraction, Decided], as_json: bool) -> None:  # noqa: FBT001 - what to print
    document = report.comparison({ratio: (one.plan, one.steps) for ratio, one in answers.items()})
    if as_json:
        print_json(document)
        return
    from agent import draw  # noqa: PLC0415

    draw.comparison(console(), document)
