"""The command line: options in, documents or pictures out, one line for each error.

Exit status: 0 done; 1 the answer is no; 2 usage; 3 libvirt or the daemon cannot be reached.
Heavy parts are imported by the commands that need them: `plan` from files needs no libvirt.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import click

from agent import __version__
from agent.cli import advising, asking, exploring, serving, wiring
from agent.cli.sections import Sections
from agent.terminal import NO, USAGE, fail

COMMANDS: Final = (
    serving.run,
    asking.plan,
    asking.status,
    asking.topology,
    asking.check_config,
    serving.release,
    asking.account,
    advising.advise,
    exploring.collect,
    exploring.simulate,
    exploring.demo,
    wiring.provider_yaml,
    serving.admit,
)


@click.group(
    cls=Sections,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="Exit status: 0 done; 1 the answer is no; 2 usage; 3 libvirt or the daemon cannot be "
    "reached.",
)
@click.version_option(__version__, prog_name="emupool")
def emupool() -> None:
    """Keep emulator threads of guests on a small pool of pCPUs per NUMA cell.

    New here? `emupool demo` shows what it does, and touches nothing. On a compute node,
    `emupool plan` says what the daemon would do now, and why, and pins nothing.
    """


for _command in COMMANDS:
    emupool.add_command(_command)


def main() -> None:
    """Run the command line; every error is one line, also one of usage."""
    # libvirt's client writes warnings to standard error in a form of its own, unless told where
    # else. It reads that when it is loaded, which the commands do that need it.
    os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")
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
