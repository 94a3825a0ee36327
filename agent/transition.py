"""From what is to what should be: ordered steps, each prefix of them safe.

A step gives the emulator threads, or one iothread, of one guest a new set of pCPUs. Steps of
different guests do not depend on each other, so any prefix leaves every thread on a set that was
right before or is right now; the order says what is urgent: off claimed and offline pCPUs first,
then newcomers, then repairs, then growth; a pCPU leaves a pool (move, narrow) last. Stopping
anywhere leaves a state from which the next plan derives the steps that remain.

Only differences become steps. What differs is judged by libvirt's record and, where it could be
read, by the kernel: the cpuset and each thread's mask. Threads known to be stuck (they do not
follow although they were loosened) are no reason for another step. A step carries a drift if the
guest did not even have what we gave it last.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from agent.snapshot import followers, released

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from agent.cpuset import CpuSet
    from agent.domainxml import IoThread
    from agent.planner import InstanceNUMACell, Plan
    from agent.pool import GuestMemory
    from agent.snapshot import Guest, Thread

__all__ = ["Drift", "Kind", "Present", "Reason", "Step", "diff", "followers", "releases"]


class Kind(StrEnum):
    """What a step pins."""

    EMULATOR = "emulator"
    IOTHREAD = "iothread"


class Reason(StrEnum):
    """Why, in the order in which steps are taken."""

    EVACUATE = "evacuate"
    ARRIVE = "arrive"
    DRIFT = "drift"
    WIDEN = "widen"
    MOVE = "move"
    NARROW = "narrow"
    RELEASE = "release"


class Drift(StrEnum):
    """Where something differs that nobody of ours changed."""

    LIBVIRT = "libvirt"
    CGROUP = "cgroup"
    KERNEL = "kernel"
    STUCK = "stuck"


_URGENCY: Final = {reason: rank for rank, reason in enumerate(Reason)}


@dataclass(frozen=True, slots=True)
class Step:
    """One pin to set; `was` is libvirt's record before it, None where there is no pin."""

    uuid: str
    kind: Kind
    iothread: int | None
    was: CpuSet | None
    to: CpuSet
    reason: Reason
    drift: Drift | None = None

    @property
    def order(self) -> tuple[int, str, int]:
        """Sort key: urgency, then guest; emulator threads before iothreads."""
        return _URGENCY[self.reason], self.uuid, self.iothread or 0


@dataclass(frozen=True, slots=True)
class Present:
    """What a transition starts from, beside the guests themselves."""

    online: CpuSet
    remembered: Mapping[str, GuestMemory]  # as before the plan
    iothreads: bool = True  # whether iothreads follow
    stuck: Mapping[str, frozenset[int]] | None = None  # thread ids, by guest


def diff(plan: Plan, guests: Iterable[Guest], present: Present) -> tuple[Step, ...]:
    """Return the steps from what `guests` have to what `plan` wants, in order.

    Busy guests get none: their turn comes when the job ends.
    """
    planned = {guest.uuid: guest for guest in plan.guests}
    steps = [
        step
        for guest in guests
        if guest.active and not guest.busy
        for step in _steps(guest, planned[guest.uuid], plan.claimed, present)
    ]
    return tuple(sorted(steps, key=lambda step: step.order))


def releases(guests: Iterable[Guest], present: Present) -> tuple[Step, ...]:
    """Return the steps that give each of `guests` its original pins back."""
    steps = [
        step
        for guest in guests
        if guest.active
        for step in _release(guest, _placed(guest, present), present)
    ]
    return tuple(sorted(steps, key=lambda step: step.order))


def _placed(guest: Guest, present: Present) -> CpuSet | None:
    """Return what we gave this start of the guest last."""
    memory = present.remembered.get(guest.uuid)
    return memory.placed if memory is not None and memory.start == guest.start else None


def _steps(
    guest: Guest, wanted: InstanceNUMACell, claimed: CpuSet, present: Present
) -> Iterator[Step]:
    placed = _placed(guest, present)
    target = wanted.emulator_pcpus
    if target is not None:
        reason = _reason(placed, target, claimed, present)
        if wanted.evacuated:
            reason = Reason.EVACUATE
        yield from _pins(guest, target, reason, placed, present)
    elif not wanted.managed and placed is not None:
        yield from _release(guest, placed, present)


def _reason(placed: CpuSet | None, target: CpuSet, claimed: CpuSet, present: Present) -> Reason:
    if placed is None:
        return Reason.ARRIVE
    if placed == target:
        return Reason.DRIFT
    if not placed.isdisjoint(claimed) or not placed <= present.online:
        return Reason.EVACUATE
    if placed <= target:
        return Reason.WIDEN
    return Reason.NARROW if target <= placed else Reason.MOVE


def _pins(
    guest: Guest, target: CpuSet, reason: Reason, placed: CpuSet | None, present: Present
) -> Iterator[Step]:
    record = guest.domain.emulator
    if _emulator_drift(guest, target, present) is not None:
        drift = None if placed is None else _emulator_drift(guest, placed, present)
        yield Step(guest.uuid, Kind.EMULATOR, None, record, target, reason, drift)
    if not present.iothreads:
        yield from _abandon(guest, target if placed is None else placed, present)
        return
    for thread in followers(guest, guest.original):
        if _iothread_drift(guest, thread, target, present) is not None:
            drift = None if placed is None else _iothread_drift(guest, thread, placed, present)
            yield Step(guest.uuid, Kind.IOTHREAD, thread.id, thread.cpus, target, reason, drift)


def _emulator_drift(guest: Guest, cpus: CpuSet, present: Present) -> Drift | None:
    """Tell where the emulator threads differ from `cpus`: record, cpuset, or thread masks."""
    if guest.domain.emulator != cpus:
        return Drift.LIBVIRT
    if guest.kernel is None or guest.kernel.cpus is None:
        return None
    cpus &= present.online
    if guest.kernel.cpus != cpus:
        return Drift.CGROUP
    return Drift.KERNEL if _misfits(guest, guest.kernel.threads, cpus, present) else None


def _iothread_drift(guest: Guest, thread: IoThread, cpus: CpuSet, present: Present) -> Drift | None:
    if thread.cpus != cpus:
        return Drift.LIBVIRT
    if guest.kernel is None or guest.kernel.cpus is None:
        return None
    for number, threads in guest.kernel.iothreads:
        if number == thread.id and _misfits(guest, threads, cpus & present.online, present):
            return Drift.KERNEL
    return None


def _misfits(guest: Guest, threads: Iterable[Thread], cpus: CpuSet, present: Present) -> bool:
    """Tell whether a thread has another mask than `cpus`, and is not known to be stuck."""
    bits = cpus.bits
    astray = [thread.tid for thread in threads if thread.cpus.bits != bits]
    return bool(astray) and not (present.stuck or {}).get(guest.uuid, frozenset()).issuperset(
        astray
    )


def _release(guest: Guest, placed: CpuSet | None, present: Present) -> Iterator[Step]:
    target = released(guest, present.online)
    record = guest.domain.emulator
    touched = record is not None or guest.original.emulator is not None
    if touched and target and record != target:
        yield Step(guest.uuid, Kind.EMULATOR, None, record, target, Reason.RELEASE)
    if not present.iothreads:
        yield from _abandon(guest, placed, present)
        return
    for thread in followers(guest, guest.original):
        if target and thread.cpus != target:
            yield Step(guest.uuid, Kind.IOTHREAD, thread.id, thread.cpus, target, Reason.RELEASE)


def _abandon(guest: Guest, placed: CpuSet | None, present: Present) -> Iterator[Step]:
    """Give those iothreads back that we moved before they were told not to follow any more."""
    target = released(guest, present.online)
    for thread in followers(guest, guest.original):
        if placed is not None and thread.cpus == placed and target and placed != target:
            yield Step(guest.uuid, Kind.IOTHREAD, thread.id, placed, target, Reason.RELEASE)
