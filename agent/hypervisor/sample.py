"""Guests of libvirt's in-process test driver, for the demonstration."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import libvirt

from agent.hypervisor.faults import connect, translated

if TYPE_CHECKING:
    from collections.abc import Iterator


class SampleGuests:
    """Guests that exist in this process's memory only: those of libvirt's own test driver.

    All connections of the process to `URI` share them, and their `<cputune>`, for as long as one
    is open. The driver knows eight pCPUs, whatever the host has.
    """

    URI: Final = "test:///default"

    def __init__(self) -> None:
        """Begin with none; the driver makes one of its own."""
        self._connection = connect(self.URI, 0, 0)
        with self._translating():
            for domain in self._connection.listAllDomains(0):
                domain.destroy()
                domain.undefine()

    def start(self, xml: str) -> None:
        """Start a guest that is gone when it stops."""
        with self._translating():
            self._connection.createXML(xml, 0)

    def stop(self, uuid: str) -> None:
        """End a guest."""
        with self._translating():
            self._connection.lookupByUUIDString(uuid).destroy()

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except libvirt.libvirtError as error:
            raise translated(error, self._connection) from error
