"""What all commands share on a terminal: the configuration, warnings, errors of one line.

Exit status: 0 done; 1 the answer is no; 2 usage; 3 libvirt or the daemon cannot be reached.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from agent import config as configuration
from agent import report
from agent.errors import ConfigError, EmupoolError, HypervisorAway, NotPermitted, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import Console

    from agent.config import Config
    from agent.sysfs import Sysfs

DEFAULT_CONFIG: Final = Path("/etc/emupool/config.toml")
NO: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3


def source_of(path: Path | None, default: Path = DEFAULT_CONFIG) -> Path | None:
    """Return the configuration file to read, None if none is named nor in the usual place."""
    return default if path is None and _is_there(default) else path


def load(path: Path | None, default: Path = DEFAULT_CONFIG) -> Config:
    """Return the configuration; without a file of the default name, the defaults."""
    source = source_of(path, default)
    return configuration.Config() if source is None else configuration.load(source)


def _is_there(file: Path) -> bool:
    """Tell whether there is something of that name, be it a link to nowhere."""
    try:
        file.lstat()
    except FileNotFoundError:
        return False
    except OSError:  # whoever reads it tells why it cannot be read
        return True
    return True


def print_json(document: Any) -> None:  # noqa: ANN401 - JSON
    """Print a document as JSON, for people and programs."""
    click.echo(report.as_text(document))


def console() -> Console:
    """Return where pictures are drawn: standard output."""
    from rich.console import Console  # noqa: PLC0415

    return Console(soft_wrap=not sys.stdout.isatty())


def save(file: Path, text: str) -> None:
    """Write a picture; Refused if that fails."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Refused(f"{file}: {error.strerror}") from error


def warn_line(text: str) -> None:
    """Print a warning, on standard error."""
    click.echo(f"emupool: warning: {plain(text)}", err=True)


def warn(warning: dict[str, str | None]) -> None:
    """Print one row of `warnings`, likewise."""
    about = f"{plain(warning['guest'])}: " if warning["guest"] else ""
    field, text = plain(warning["field"] or ""), plain(warning["text"] or "")
    click.echo(f"emupool: warning: {about}{field}: {text}", err=True)


def plain(text: str | None) -> str:
    """Return one line without control characters; names are a tenant's text."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text or "")[:300]


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Give a function that shows how far a long run is, on a terminal, in one line."""
    shown = sys.stderr.isatty()

    def tell(text: str) -> None:
        if shown:
            click.echo(f"\r{text}\x1b[K", nl=False, err=True)

    try:
        yield tell
    finally:
        if shown:
            click.echo("\r\x1b[K", nl=False, err=True)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the errors that this program knows into lines and an exit status."""
    try:
        yield
    except ConfigError as error:
        fail(str(error).splitlines(), NO)
    except (HypervisorAway, NotPermitted) as error:
        fail([str(error)], UNREACHABLE)
    except EmupoolError as error:
        fail([str(error)], getattr(error, "exit_status", NO))


def fail(lines: Iterable[str], code: int) -> NoReturn:
    """Print errors on standard error, a line each, and exit."""
    for line in lines:
        click.echo(f"emupool: {plain(line)}", err=True)
    sys.exit(code)


def with_domains(sysfs_root: Path | None, domains: Path | None) -> None:
    """Refuse a host of files without guests of files."""
    if sysfs_root is not None and domains is None:
        raise click.UsageError("--sysfs-root goes with --domains: a plan is made from one host")


def check_host(config: Config, sysfs: Sysfs, file: str) -> None:
    """Refuse a configuration that does not fit the host; ConfigError has every error."""
    problems = configuration.check_host(config, sysfs.discover().host, file)
    if problems:
        raise ConfigError(file, problems)
