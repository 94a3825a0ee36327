"""How a command reaches what it works on: the host, libvirt, the state file.

libvirt is imported by those that connect only: a plan from files needs none.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent import offline
from agent.checkpoint import NO_STATE, Checkpoint, Saved, StateError, load_file
from agent.following import settings
from agent.sysfs import Sysfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from fractions import Fraction

    from agent.config import Config, LibvirtSettings
    from agent.offline import Decided, Seen
    from agent.pool import Memory
    from agent.port import Hypervisor, Link


def sysfs(root: Path | None = None) -> Sysfs:
    """Return the host, or the copy of one whose /sys lies below `root`."""
    return Sysfs(root or Path("/"))


def libvirt(settings: LibvirtSettings) -> Hypervisor:
    """Return the libvirt that `settings` name; nothing is opened yet."""
    from agent.hypervisor import Libvirt  # noqa: PLC0415

    return Libvirt(settings.uri, settings.keepalive_interval, settings.keepalive_count)


@contextmanager
def link(settings: LibvirtSettings) -> Iterator[Link]:
    """Connect for one command."""
    from agent.hypervisor import start_event_loop  # noqa: PLC0415

    start_event_loop()
    connected = libvirt(settings).link(lambda _event: None)
    try:
        yield connected
    finally:
        connected.close()


def recall(checkpoint: Checkpoint, warn: Callable[[str], None]) -> Memory:
    """Return what the state file holds; what is wrong with it is a warning."""
    try:
        saved = checkpoint.load()
    except StateError as error:
        warn(f"{error}: going on without it")
        saved = None
    return (saved or NO_STATE).memory


def look(
    config: Config,
    root: Path | None,
    domains: Path | None,
    state: Path | None,
    warn: Callable[[str], None],
) -> Seen:
    """Look at files if `domains` are given, else at libvirt and this host."""
    if domains is not None:
        return offline.read_files(sysfs(root), domains, state, config.guests)
    from agent.threads import Threads  # noqa: PLC0415

    if state is None:
        memory = recall(Checkpoint(config.state.path), warn)
    else:
        memory = load_file(state).memory
    saved = Saved(memory, time.monotonic())
    with link(config.libvirt) as connected:
        return offline.read_libvirt(sysfs(), Threads(), connected, saved, config.guests)


def decide(config: Config, seen: Seen, ratio: Fraction | None = None) -> Decided:
    """Decide from what was seen; a ratio that is asked for is in force at once."""
    return offline.decide(seen, settings(config, ratio), damped=ratio is None)
