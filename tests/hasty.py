"""`emupool run` that has its opinion of the ratio within seconds: `python -m tests.hasty ... FILE`.

The last argument is the configuration; the others are not looked at, so that it can stand before
the command of a `Service`.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Final

from agent import client, config, http, logs, reach
from agent.checkpoint import Lock
from agent.daemon import Daemon
from agent.hypervisor import EventLoop
from agent.load import Method
from agent.parts import Parts
from agent.recorder import Recorder
from agent.threads import Threads

HASTY: Final = Method(slot=0.5, slots=120, least=3)


def main(file: Path) -> None:
    """Run the daemon."""
    settings = config.load(file)
    logs.configure(settings.log.level, settings.log.format, sys.stderr)
    with Lock(settings.state.path):
        parts = Parts(
            reach.libvirt(settings.libvirt),
            reach.sysfs(),
            Threads(),
            EventLoop(),
            recorder=functools.partial(Recorder, method=HASTY),
        )
        daemon = Daemon(settings, parts, path=file)
        answers = http.Answers(daemon.metrics.expose, daemon.ready, daemon.status, daemon.page)
        server = http.Server(settings.http, answers)
        server.start()
        assert server.address is not None
        url = client.url(settings.http, *server.address)
        logs.get("http").info("http.listening", url=url)
        daemon.run()
        server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
