"""The command line, hundreds of times: one process that has imported it all forks for each command.

A command runs as `emupool` does, from `agent.cli.main` to its exit status; only the second that
Python needs to import everything is spent once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

SECONDS = 20
"""After which a command is killed by SIGALRM: it waits for something."""


class Commands:
    """Runs commands; a context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.commands"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run `emupool` with these arguments."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words = [str(argument) for argument in arguments]
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        status, out, err = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(words, status, out, err)


def serve(lines: Iterable[str]) -> None:
    """Run the command of each line, and write what came of it as another line."""
    import gc  # noqa: PLC0415
    import signal  # noqa: PLC0415

    from agent import checkpoint, cli, daemon, http, hypervisor, inotify  # noqa: F401, PLC0415

    gc.freeze()  # or each child copies all that is there
    for line in lines:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                signal.alarm(SECONDS)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.argv = ["emupool", *json.loads(line)]
                try:
                    cli.main()
                except SystemExit as end:
                    sys.stdout.flush()
                    os._exit(end.code if isinstance(end.code, int) else 70)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            told = [
                file.seek(0) or file.read().decode(errors="surrogateescape") for file in (out, err)
            ]
        sys.stdout.write(json.dumps([status, *told]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.stdin)
