"""Makes emulator threads work, and measures how soon they answer: over monitors of the guests' own.

`python -m benchmarks.load` obeys lines on standard input, each with an answer of one line.

    open PATH PATH...    connect to QMP monitors: of each guest one for work, the last for probes
    say N COMMANDS       send the first N these (a JSON array), one after the other, once; after
                         a cancel wait until they have no block job any more
    go SECONDS RATE N WORK
                         have the first N do WORK (a JSON object) RATE times a second each, at even
                         distances, and probe the last monitor in between; answers a JSON object
                         of `done` (works), `late` (works that were due while one was under way)
                         and `probes` (seconds of each round trip)
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from typing import Any, Final

PROBE: Final = {"execute": "query-name"}
JOBS: Final = {"execute": "query-jobs"}
NONE: Final = b'"return": []'
CANCEL: Final = "block-job-cancel"
PROBES: Final = 50  # a second
_CHUNK: Final = 1 << 20


class Monitor:
    """One QMP monitor."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._pending = b""
        self.busy = False
        self.answer = b""
        self.due = 0.0
        self.sent = 0.0
        self.next()  # the greeting
        self.send({"execute": "qmp_capabilities"})
        self.next()
        self.busy = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, command: dict[str, Any]) -> None:
        self.busy = True
        self.sent = time.monotonic()
        self._socket.sendall(json.dumps(command).encode() + b"\n")

    def next(self) -> None:
        """Wait for a line that is no event."""
        while not self.read():
            pass

    def read(self) -> bool:
        """Read what there is; True if it ends a line that is an answer, or a greeting."""
        self._pending += self._socket.recv(_CHUNK)
        *lines, self._pending = self._pending.split(b"\n")
        answers = [line for line in lines if line.strip() and b'"event": ' not in line[:80]]
        for line in answers:
            assert not line.startswith(b'{"error"'), line[:300]
            self.answer = line
        return bool(answers)


def say(worker: Monitor, commands: list[dict[str, Any]]) -> None:
    for command in commands:
        worker.send(command)
        worker.next()
    if any(command["execute"] == CANCEL for command in commands):
        worker.answer = b""
        while NONE not in worker.answer:
            worker.send(JOBS)
            worker.next()
    worker.busy = False


def go(
    workers: list[Monitor], probe: Monitor, seconds: float, rate: float, work: dict[str, Any]
) -> dict[str, Any]:
    """Do work and probe for some time."""
    began = time.monotonic()
    end, done, late = began + seconds, 0, 0
    probes: list[float] = []
    periods = {**dict.fromkeys(workers, 1 / rate), probe: 1 / PROBES}
    for number, monitor in enumerate(periods):
        monitor.due = began + number * periods[monitor] / len(periods)
    with selectors.DefaultSelector() as selector:
        for monitor in periods:
            selector.register(monitor, selectors.EVENT_READ)
        while (now := time.monotonic()) < end or any(monitor.busy for monitor in periods):
            for monitor, period in periods.items():
                if now < end and monitor.due <= now:
                    monitor.due += period
                    if monitor.busy:
                        late += monitor is not probe
                    else:
                        monitor.send(PROBE if monitor is probe else work)
            patience = min(monitor.due for monitor in periods) - time.monotonic()
            for key, _ in selector.select(max(0.0, patience) if now < end else None):
                told = key.fileobj
                assert isinstance(told, Monitor)
                if told.read() and told.busy:
                    told.busy = False
                    if told is probe:
                        probes.append(time.monotonic() - told.sent)
                    else:
                        done += 1
    return {"done": done, "late": late, "probes": probes}


def main() -> None:
    """Serve until standard input ends."""
    monitors: list[Monitor] = []
    print("ready", flush=True)
    for line in sys.stdin:
        order, _, rest = line.strip().partition(" ")
        if order == "open":
            monitors = [Monitor(path) for path in rest.split()]
            print("open", flush=True)
            continue
        if order == "say":
            count, commands = rest.split(" ", 1)
            for worker in monitors[: int(count)]:
                say(worker, json.loads(commands))
            print("said", flush=True)
            continue
        seconds, rate, count, work = rest.split(" ", 3)
        workers = monitors[: int(count)]
        found = go(workers, monitors[-1], float(seconds), float(rate), json.loads(work))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
