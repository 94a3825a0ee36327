"""What the daemon is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.doorkeeper import UNGUARDED, Door
from agent.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.checkpoint import Checkpoint
    from agent.events import Waiter
    from agent.lookout import Nursery
    from agent.port import Hypervisor
    from agent.sight import Cpusets
    from agent.sysfs import Sysfs
    from agent.threads import Threads


@dataclass(frozen=True, slots=True)
class Parts:
    """The foreign things of a daemon; tests put their own hypervisor and kernel in."""

    hypervisor: Hypervisor
    sysfs: Sysfs
    threads: Threads
    loop: Waiter | None = None
    nursery: Nursery | None = None
    mender: Cpusets | None = None
    door: Door = UNGUARDED
    recorder: Callable[[Checkpoint], Recorder] = Recorder
