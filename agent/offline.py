"""A cycle's decision without a cycle: from files, or from one look at libvirt.

Nothing is pinned, no state is written. From files neither libvirt nor this host is needed: a
sysfs tree, a directory of domain XML (one without an id is a stopped guest) and, if there is
one, a state file with the present pools.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent import planner, transition
from agent.candidates import Warned
from agent.checkpoint import NO_STATE, load_file
from agent.documents import from_documents
from agent.domainxml import MAX_TEXT
from agent.errors import Refused
from agent.observer import Observer
from agent.transition import Present

if TYPE_CHECKING:
    from fractions import Fraction
    from pathlib import Path

    from agent.checkpoint import Saved
    from agent.cpuset import CpuSet
    from agent.errors import EmupoolError
    from agent.planner import Plan
    from agent.policy import GuestSettings
    from agent.pool import PoolSettings
    from agent.port import Link
    from agent.rebalancer import Settings
    from agent.snapshot import Guest
    from agent.sysfs import Sysfs
    from agent.threads import Threads
    from agent.topology import Host
    from agent.transition import Step

_LONGEST: Final = 4 * MAX_TEXT
"""Bytes read of a file; more than a definition can have, so that its length is what is refused."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is decided from, and what of it could not be read."""

    host: Host
    guests: tuple[Guest, ...]
    saved: Saved
    failures: tuple[tuple[str, EmupoolError], ...] = ()
    partition: CpuSet | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """What a cycle would do, and what it would do it from."""

    host: Host
    guests: tuple[Guest, ...]
    plan: Plan
    steps: tuple[Step, ...]


def with_ratio(pool: PoolSettings, ratio: Fraction) -> PoolSettings:
    """Return `pool` with `ratio` in every cell."""
    cells = {
        cell: replace(own, emulator_overcommit_ratio=ratio) for cell, own in pool.cells.items()
    }
    default = replace(pool.default, emulator_overcommit_ratio=ratio)
    return replace(pool, default=default, cells=cells)


def read_files(sysfs: Sysfs, domains: Path, state: Path | None, guests: GuestSettings) -> Seen:
    """Look at files; Refused, SysfsError or StateError if they cannot be read."""
    saved = NO_STATE if state is None else load_file(state)
    found, failures = from_documents(_documents(domains), guests, saved.memory)
    return Seen(sysfs.discover().host, found, saved, failures, saved.partition)


def read_libvirt(
    sysfs: Sysfs, threads: Threads, link: Link, saved: Saved, guests: GuestSettings
) -> Seen:
    """Look at libvirt and this host, once; `saved` is what the daemon's state file says."""
    snapshot = Observer(sysfs, threads).look(link, guests, saved.memory, None)
    return Seen(snapshot.host, snapshot.guests, saved, snapshot.failures, snapshot.partition)


def decide(seen: Seen, settings: Settings, *, damped: bool) -> Decided:
    """Decide what a cycle that saw this would do."""
    question = planner.Question(
        host=seen.host,
        settings=settings.pool,
        manage=settings.guests.manage,
        guests=seen.guests,
        memory=seen.saved.memory,
        now=seen.saved.at,
        partition=seen.partition,
        damped=damped,
    )
    plan = planner.plan(question)
    present = Present(seen.host.online, seen.saved.memory.guests, settings.pool.iothreads)
    steps = transition.diff(plan, seen.guests, present)
    return Decided(seen.host, seen.guests, _with_failures(plan, seen.failures), steps)


def _with_failures(plan: Plan, failures: tuple[tuple[str, EmupoolError], ...]) -> Plan:
    """Add what could not be read to the plan's warnings."""
    warned = tuple(Warned(guest, "definition", str(error)) for guest, error in failures)
    return replace(plan, warnings=plan.warnings + warned)


def _documents(folder: Path) -> dict[str, str]:
    """Return the text of each `*.xml` in `folder`, by file name."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".xml")
        return {path.name: _text(path) for path in files if path.is_file()}
    except OSError as error:
        text = f"{error.filename or folder}: {error.strerror}: --domains wants a directory of *.xml"
        raise Refused(text) from error


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_LONGEST).decode("utf-8", "replace")
