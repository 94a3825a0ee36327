"""The commands that act on guests: `run` and `release`."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from agent import reach
from agent.cli.options import config_option
from agent.terminal import (
    DEFAULT_CONFIG,
    NO,
    UNREACHABLE,
    check_host,
    fail,
    load,
    one_line_errors,
    plain,
    warn_line,
)

if TYPE_CHECKING:
    from pathlib import Path

    from agent.config import Config


@click.command()
@config_option
@click.option("--dry-run", is_flag=True, help="Plan and report, but pin nothing.")
def run(config_path: Path | None, *, dry_run: bool) -> None:
    """Run the daemon, in the foreground.

    It keeps on until SIGTERM. SIGHUP makes it take a changed configuration; a bad one changes
    nothing. It listens where http.listen says, for `emupool status` and for Prometheus.
    """
    from agent import (  # noqa: PLC0415
        client,
        cpusets,
        daemon,
        footprint,
        http,
        hypervisor,
        inotify,
        logs,
        threads,
    )
    from agent.checkpoint import Lock  # noqa: PLC0415
    from agent.doorkeeper import guarding  # noqa: PLC0415
    from agent.parts import Parts  # noqa: PLC0415

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
        footprint.confine()
        with Lock(config.state.path), guarding(config) as door:
            loop = hypervisor.EventLoop()
            parts = Parts(
                reach.libvirt(config.libvirt),
                host,
                threads.Threads(),
                loop,
                inotify.watch(),
                cpusets.Mender(),
                door,
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


@click.command()
@config_option
def release(config_path: Path | None) -> None:
    """Give every managed guest its original pins back.

    For a host that the daemon is to leave. Refused while it runs: it would pin them again.
    """
    from agent import releasing  # noqa: PLC0415
    from agent.checkpoint import Checkpoint, Lock  # noqa: PLC0415
    from agent.following import settings  # noqa: PLC0415
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
                settings(config),
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


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", metavar="ARGUMENTS", nargs=-1, type=click.UNPROCESSED)
def admit(arguments: tuple[str, ...]) -> None:
    """Ask, as libvirt's hook, whether a guest may start.

    ARGUMENTS are NAME OPERATION SUBOPERATION EXTRA, as libvirt gives them, then --config FILE,
    --socket PATH or --patience SECONDS; the definition is read from standard input.
    """
    from agent import admit as hook  # noqa: PLC0415

    sys.exit(hook.main(arguments))
