"""The clock of both contestants: a third connection that hears what libvirt reports of them.

A guest counts as pinned when libvirt reports the pin (TUNABLE), which it does after the cpuset
and the mask are set; both contestants are judged by the same reporter.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import Any

import libvirt

PATIENCE = 30.0


class Watch:
    """Hears STARTED and pins, with the time of each by UUID."""

    def __init__(self, uri: str) -> None:
        self._changed = threading.Condition()
        self._started: dict[str, float] = {}
        self._pinned: dict[str, dict[str, float]] = defaultdict(dict)
        self._connection = libvirt.open(uri)
        register = self._connection.domainEventRegisterAny
        self._ids = [
            register(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None),
            register(None, libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE, self._on_tunable, None),
        ]

    def close(self) -> None:
        for number in self._ids:
            self._connection.domainEventDeregisterAny(number)
        self._connection.close()

    def forget(self) -> None:
        with self._changed:
            self._started.clear()
            self._pinned.clear()

    def reaction(self, uuid: str, cpus: str) -> float:
        """Return the seconds from a guest's STARTED to its pin on `cpus`."""
        self.wait([uuid], cpus)
        with self._changed:
            self._changed.wait_for(lambda: uuid in self._started, PATIENCE)
            return self._pinned[uuid][cpus] - self._started[uuid]

    def first(self, uuids: list[str]) -> float:
        """Return when the first of `uuids` was announced; all have been."""
        with self._changed:
            return min(self._started[uuid] for uuid in uuids)

    def wait(self, uuids: list[str], cpus: str) -> float:
        """Return when the last of `uuids` was pinned on `cpus`, in monotonic seconds."""
        with self._changed:
            there = self._changed.wait_for(
                lambda: all(cpus in self._pinned[uuid] for uuid in uuids), PATIENCE
            )
            assert there, f"not all of {len(uuids)} guests were pinned on {cpus}"
            return max(self._pinned[uuid][cpus] for uuid in uuids)

    def _on_lifecycle(
        self, _conn: Any, domain: Any, event: int, _detail: int, _opaque: object
    ) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
            with self._changed:
                self._started[domain.UUIDString()] = time.monotonic()
                self._changed.notify_all()

    def _on_tunable(self, _conn: Any, domain: Any, values: dict[str, Any], _o: object) -> None:
        cpus = values.get("cputune.emulatorpin")
        if cpus is not None:
            with self._changed:
                self._pinned[domain.UUIDString()][str(cpus)] = time.monotonic()
                self._changed.notify_all()
