"""Guests from domain documents, for plans that need no libvirt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent import domainxml
from agent.errors import EmupoolError, GuestFailed
from agent.policy import resolve, shared_cpus
from agent.snapshot import Guest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domainxml import Domain, Pins
    from agent.policy import GuestSettings
    from agent.pool import Memory


def from_documents(
    documents: Mapping[str, str], settings: GuestSettings, memory: Memory
) -> tuple[tuple[Guest, ...], tuple[tuple[str, EmupoolError], ...]]:
    """Return the guests that domain documents (by file name) describe, and what is no domain.

    Of two documents of one guest the first counts. A running guest's own definition is its original
    unless `memory` recorded one; its age is its domain id.
    """
    found: dict[str, tuple[str, Domain]] = {}
    failures: list[tuple[str, EmupoolError]] = []
    for name, text in sorted(documents.items()):
        try:
            domain = domainxml.parse(text)
        except EmupoolError as error:
            failures.append((name, error))
            continue
        first, _ = found.setdefault(domain.uuid, (name, domain))
        if first != name:
            why = f"{first} has the guest {domain.uuid} already: leave one of them out"
            failures.append((name, GuestFailed(why)))
    domains = [domain for _, domain in found.values()]
    originals = {d.uuid: _recorded(d, memory) or d.pins for d in domains}
    shared = shared_cpus(original.emulator for original in originals.values())
    guests = []
    for domain in domains:
        original = originals[domain.uuid]
        verdict = resolve(settings, domain, original.emulator, shared)
        known = memory.guests.get(domain.uuid)
        start = known.start if known is not None and domain.id is not None else f"id-{domain.id}"
        guests.append(Guest(domain, original, verdict, age=domain.id or 0, start=start))
    return tuple(guests), tuple(failures)


def _recorded(domain: Domain, memory: Memory) -> Pins | None:
    known = memory.guests.get(domain.uuid)
    return known.original if known is not None and domain.id is not None else None
