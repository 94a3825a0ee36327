"""Gathering a bundle on a live host: one look, as `plan` takes it, and what it was taken from."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from agent import bundle, client, offline, reach
from agent.checkpoint import Checkpoint, Saved, encode, read_boot_id
from agent.errors import EmupoolError, GuestError, GuestGone
from agent.pool import GuestMemory
from agent.redaction import redact
from agent.report import as_text
from agent.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.config import Config
    from agent.offline import Seen
    from agent.pool import Memory
    from agent.port import Link


def collect(config: Config, source: Path | None, file: Path, warn: Callable[[str], None]) -> int:
    """Write `file`; return how many domains are in it.

    `source` is the configuration's file. What cannot be read is left out, and warned about.
    """
    host = reach.sysfs()
    memory = reach.recall(Checkpoint(config.state.path), warn)
    with reach.link(config.libvirt) as link:
        saved = Saved(memory, time.monotonic())
        seen = offline.read_libvirt(host, Threads(), link, saved, config.guests)
        domains = _domains(link, warn)
    trees = [bundle.sysfs(host.read()), bundle.Tree(domains), bundle.Tree(_state(seen))]
    trees += [bundle.Tree(_configuration(source)), bundle.Tree(_status(config, warn))]
    bundle.write(file, trees, time.time())
    return len(domains)


def _domains(link: Link, warn: Callable[[str], None]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for uuid in link.uuids():
        try:
            texts[f"domains/{uuid}.xml"] = redact(link.xml(uuid))
        except GuestGone:
            continue
        except GuestError as error:
            warn(f"{uuid}: {error}: left out")
    return texts


def _state(seen: Seen) -> dict[str, str]:
    """Return the memory, and the originals that only a live host tells."""
    saved = replace(seen.saved, memory=_with_originals(seen), partition=seen.partition)
    return {"state.json": encode(saved, read_boot_id())}


def _with_originals(seen: Seen) -> Memory:
    memory = seen.saved.memory
    told = {
        guest.uuid: memory.guest(guest.uuid, guest.start)
        or GuestMemory(guest.start, guest.original)
        for guest in seen.guests
        if guest.active
    }
    return replace(memory, guests=told)


def _configuration(source: Path | None) -> dict[str, str]:
    return {} if source is None else {"config.toml": source.read_text("utf-8", "replace")}


def _status(config: Config, warn: Callable[[str], None]) -> dict[str, str]:
    try:
        return {"status.json": as_text(client.fetch_status(client.address(config.http)))}
    except EmupoolError as error:
        warn(f"{error}: its status is left out")
        return {}
