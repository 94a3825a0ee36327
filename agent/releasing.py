"""What a release says: a line for each pin given back, and one for each guest it failed for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent import logs
from agent.errors import EmupoolError

if TYPE_CHECKING:
    from agent.cycle import CycleResult
    from agent.pinner import Outcome
    from agent.port import Link
    from agent.rebalancer import Rebalancer

_BUSY = "it is busy: release it again when its job has ended"


def lines(result: CycleResult) -> tuple[list[str], list[str]]:
    """Return what was done, and what was not; names are a tenant's text."""
    names = {guest.uuid: guest.label for guest in result.guests}
    done = [_done(outcome, names) for outcome in result.outcomes if outcome.error is None]
    failed = {uuid: str(error) for uuid, error in result.errors}
    answered = {outcome.step.uuid for outcome in result.outcomes}
    for step in result.steps:
        if step.uuid not in answered:
            failed.setdefault(step.uuid, _BUSY)
    return done, [f"{names.get(uuid, uuid)}: not released: {why}" for uuid, why in failed.items()]


def at_stop(rebalancer: Rebalancer, link: Link) -> None:
    """Give all guests their original pins back as the daemon ends, and log what came of it."""
    log = logs.get("emupool")
    try:
        result = rebalancer.release(link)
    except EmupoolError as error:
        log.error("release.failed", error=str(error))  # noqa: TRY400 - its line says all
    else:
        log.info("release.done", pins=len(result.outcomes), errors=len(result.errors))


def _done(outcome: Outcome, names: dict[str, str]) -> str:
    step = outcome.step
    what = "" if step.iothread is None else f" iothread {step.iothread}"
    return f"{names.get(step.uuid, step.uuid)}{what}: {step.was or 'unpinned'} to {step.to}"
