"""What the daemon says of itself: the `status` document, from the last cycle's result.

It is the `plan` document with what really holds beside what was planned: libvirt's record, what
the threads have, and the daemon's own state. Built from frozen values only, so any thread may ask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent import __version__, report, topology
from agent.advice import advise
from agent.candidates import Warned
from agent.cpuset import CpuSet, union
from agent.cycle import misfits, pending
from agent.load import NO_HISTORY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.advice import Advice
    from agent.cycle import CycleResult
    from agent.load import History
    from agent.planner import InstanceNUMACell, NUMACell
    from agent.snapshot import Guest, Thread

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Standing:
    """The daemon as it is now; `at` is wall-clock seconds of the last cycle's end."""

    uri: str
    connected: bool = False
    result: CycleResult | None = None
    at: float | None = None
    dry_run: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)


def status(
    standing: Standing, counters: Mapping[str, float], history: History = NO_HISTORY
) -> Json:
    """Return the `status` document; `history` is what pools carried until now."""
    result = standing.result
    document = _empty() if result is None else _plan(result)
    return document | {
        "version": __version__,
        "dry_run": standing.dry_run,
        "libvirt": {"uri": standing.uri, "connected": standing.connected},
        "last_cycle": None if result is None else _last_cycle(result, standing.at),
        "config": dict(standing.config),
        "counters": dict(counters),
        "advice": report.advice(_advised(result, history), history.method),
    }


def verified(guest: Guest, target: CpuSet | None) -> bool:
    """Tell whether the kernel confirms that `guest` is where the plan wants it."""
    kernel = guest.kernel
    if target is None or kernel is None or kernel.cpus != target:
        return False
    return not misfits(guest, target) & {thread.tid for thread in kernel.threads}


def _advised(result: CycleResult | None, history: History) -> Iterator[tuple[NUMACell, Advice]]:
    for cell in result.plan.cells if result is not None else ():
        yield cell, advise(cell.ratio, cell.guests, history.of(cell.id), history.method)


def _empty() -> Json:
    lists = dict.fromkeys(("cells", "guests", "steps", "warnings"), ())
    return {"schema": report.SCHEMA, **lists, "topology": None}


def _plan(result: CycleResult) -> Json:
    document = report.plan(result.plan, pending(result))
    document["warnings"] += [report.warning(one) for one in _troubles(result)]
    document["topology"] = topology.to_json(result.host)
    for row in document["cells"]:
        memory = result.memory.cells.get(row["id"])
        if memory is not None:
            row["pool_now"] = str(memory.cpus | memory.lingering)
    seen = {guest.uuid: guest for guest in result.guests}
    planned = {guest.uuid: guest for guest in result.plan.guests}
    for row in document["guests"]:
        guest = seen.get(row["uuid"])
        row.update(_truth(guest, planned[row["uuid"]], result) if guest else _no_truth())
    return document


def _troubles(result: CycleResult) -> Iterator[Warned]:
    """Yield what is wrong and no matter of the plan: guests that cannot be read, the state file."""
    names = {guest.uuid: guest.label for guest in result.guests}
    for uuid, error in result.failures:
        yield Warned(names.get(uuid, uuid), "reading", str(error))
    if result.state_error is not None:
        yield Warned(None, "state file", result.state_error)


def _truth(guest: Guest, planned: InstanceNUMACell, result: CycleResult) -> Json:
    kernel = guest.kernel
    own = dict(kernel.iothreads) if kernel else {}
    return {
        "live": report.cpus(guest.domain.emulator) if guest.active else None,
        "kernel": _masks(kernel.threads if kernel else ()),
        "verified": verified(guest, planned.emulator_pcpus),
        "stuck": len(result.stuck.get(guest.uuid, ())),
        "iothreads": [
            {
                "id": thread.id,
                "live": report.cpus(thread.cpus),
                "kernel": _masks(own.get(thread.id, ())),
            }
            for thread in guest.domain.iothreads
        ],
    }


def _no_truth() -> Json:
    return {"live": None, "kernel": None, "verified": False, "stuck": 0, "iothreads": []}


def _masks(threads: tuple[Thread, ...]) -> str | None:
    return str(union(thread.cpus for thread in threads)) if threads else None


def _last_cycle(result: CycleResult, at: float | None) -> Json:
    return {
        "at": at,
        "event": result.cause,
        "seconds": result.seconds,
        "steps": len(result.outcomes),
        "errors": len(result.errors),
    }
