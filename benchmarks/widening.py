"""What virDomainPinEmulator alone leaves behind on this kernel, and what is left with the agent.

libvirt sets the mask of one thread, and relies on the cpuset for the rest. Since Linux 6.2 a thread
that inherited a narrow mask does not follow a wider cpuset. Guests are started on pCPU 0, and then
widened to both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import libvirt

from benchmarks.findings import Findings, Goal, Table
from benchmarks.stage import BOTH, Lanes, Stage, placed

if TYPE_CHECKING:
    from benchmarks.suite import Effort


def run(effort: Effort) -> Findings:
    """Widen guests with the call alone, and with the agent."""
    count = effort.of(10, 3)
    with Stage() as stage:
        bare = stage.crowd("bare", count, metadata_policy="ignore", emulatorpin="0")
        for guest in bare:
            guest.domain.pinEmulator((True, True), libvirt.VIR_DOMAIN_AFFECT_LIVE)
            assert guest.recorded_pin() == BOTH
        alone = left(Lanes.of(bare))
        ours = stage.crowd("ours", count, metadata_policy="isolate", emulatorpin="0")
        with stage.service(pool={"emulator_overcommit_ratio": count / 2}) as service:
            placed(service, count)
            with_agent = left(Lanes.of(ours))
            assert all(guest.recorded_pin() == BOTH for guest in ours)
    rows = [
        (what, f"{all_}", f"{behind}", f"{100 * behind / all_:.0f}%")
        for what, (behind, all_) in (
            ("virDomainPinEmulator alone", alone),
            ("with the agent", with_agent),
        )
    ]
    columns = ("", "emulator threads", "that did not follow", "share")
    return Findings(
        [Goal("threads that did not follow, with the agent", with_agent[0], 0)],
        [Table(f"{count} guests widened from pCPU 0 to 0-1; libvirt says all are", columns, rows)],
        figures={"alone": list(alone), "agent": list(with_agent)},
    )


def left(lanes: Lanes) -> tuple[int, int]:
    """Return how many threads are not on both pCPUs, and how many there are."""
    return lanes.elsewhere(BOTH), len(lanes.tids)
