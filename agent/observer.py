"""Looking: hypervisor, kernel and sysfs into one frozen snapshot.

A full look re-reads everything; a look at what events named re-reads those guests and `online`,
and the list if a count of the running ones did not agree with what is known. A definition whose
text is the same as last time is not parsed again. Nothing is decided from a partial list: if the
list cannot be had, the look fails as a whole.

What is known of a guest belongs to one *start* of it: QEMU's process and when it began, or the
domain id where no process can be found. A guest that was read while libvirt started it is *ready*:
when its start is announced, nothing has to be read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agent import domainxml
from agent.domainxml import Pins
from agent.errors import (
    EmupoolError,
    GuestBusy,
    GuestFailed,
    GuestGone,
    Held,
    HypervisorAway,
    unforeseen,
)
from agent.events import Named
from agent.policy import is_exclusive, resolve, shared_cpus
from agent.sight import Seen, Snapshot
from agent.snapshot import Guest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from agent.cpuset import CpuSet
    from agent.domainxml import Domain
    from agent.policy import GuestSettings, Verdict
    from agent.pool import Memory
    from agent.port import Link
    from agent.sight import Hosts, Kernels
    from agent.snapshot import Kernel
    from agent.threads import Place
    from agent.topology import Host


class Observer:
    """Keeps what was last read, so that little has to be read again."""

    def __init__(self, hosts: Hosts, kernels: Kernels) -> None:
        """Look at `hosts` and `kernels`."""
        self._hosts = hosts
        self._kernels = kernels
        self._host: Host | None = None
        self._seen: dict[str, Seen] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._shown: dict[str, Guest] = {}
        self._failures: list[tuple[str, EmupoolError]] = []
        self._held: set[str] = set()
        self._answered: set[str] = set()
        self._problems: tuple[str, ...] = ()
        self._named = Named()
        self._booted: set[str] = set()
        self._unfound: set[str] = set()  # whose threads could not be looked for

    def forget(self) -> None:
        """Trust nothing that was read before: the connection is a new one."""
        self._seen, self._verdicts, self._unfound = {}, {}, set()

    def look(
        self,
        link: Link,
        settings: GuestSettings,
        memory: Memory,
        named: Named | None,
        busy: Collection[str] = (),
        *,
        plugged: bool = False,
    ) -> Snapshot:
        """Look at everything, or at what is `named`; `busy` guests are known to be held.

        Of the host, if it was `plugged`, only what pCPUs that come and go can have changed.
        """
        self._failures = []
        self._held, self._answered = set(), set()
        self._named = named or Named()
        self._booted = set()
        host = self._look_at_host(full=named is None and not plugged, plugged=plugged)
        if named is None:
            self._look_at_all(link, memory)
        else:
            self._look_at_named(link, memory, named)
        self._resolve(settings)
        for uuid in tuple(self._seen if named is None else self._seen.keys() & named.guests):
            if uuid not in self._booted:  # its first pin will tell
                self._look_at_kernel(uuid, settings, memory)
        untold = frozenset(uuid for uuid, seen in self._seen.items() if not seen.told)
        return Snapshot(
            host,
            self._kernels.partition(),
            self.guests({*busy, *self._held}),
            tuple(self._failures),
            untold,
            frozenset(self._held),
            self._problems,
        )

    def completed(
        self, snapshot: Snapshot, settings: GuestSettings, memory: Memory, pinned: Collection[str]
    ) -> Snapshot:
        """Return the last look, with threads of who has just started and will not be `pinned`."""
        left = self._booted.difference(pinned)
        if not left:
            return snapshot
        for uuid in left:
            self._look_at_kernel(uuid, settings, memory)
        busy = {guest.uuid for guest in snapshot.guests if guest.busy}
        whole = replace(snapshot, guests=self.guests(busy), failures=tuple(self._failures))
        return snapshot if whole == snapshot else whole

    def guests(self, busy: Collection[str] = ()) -> tuple[Guest, ...]:
        """Return all guests as last read, or as last pinned.

        Of whom nothing has changed it is the same object, which makes questions cheap to compare.
        """
        before, self._shown = self._shown, {}
        for uuid, seen in self._seen.items():
            verdict, occupied = self._verdicts[uuid], seen.occupied or uuid in busy
            shown = before.get(uuid)
            if shown is None or shown.busy != occupied or not _shows(shown, seen, verdict):
                shown = _guest(seen, verdict, occupied)
            self._shown[uuid] = shown
        return tuple(self._shown.values())

    def foresee(self, uuid: str, guests: Iterable[Guest]) -> tuple[Guest, ...] | None:
        """Return `guests` as they will be when the start of a ready one is announced."""
        seen = self._seen.get(uuid)
        if seen is None or not seen.ready:
            return None
        return tuple(replace(one, busy=False) if one.uuid == uuid else one for one in guests)

    def running(self) -> frozenset[int]:
        """Return the domain ids of the guests that run, as last read."""
        ids = (seen.domain.id for seen in self._seen.values())
        return frozenset(number for number in ids if number is not None)

    def partitions(self) -> frozenset[str]:
        """Return libvirt's partitions: the usual one, and those of the guests that are known."""
        own = (seen.domain.partition for seen in self._seen.values())
        return frozenset(filter(None, own)) | {"/machine"}

    def online(self) -> CpuSet:
        """Return the pCPUs that are on line now."""
        return self._hosts.online()

    def answered(self, uuid: str) -> bool:
        """Tell whether libvirt told of a guest in the last look."""
        return uuid in self._answered

    def place(self, uuid: str) -> Place | None:
        """Return where a guest's threads are."""
        seen = self._seen.get(uuid)
        return seen.place if seen else None

    def live(self, uuid: str) -> Domain | None:
        """Return a guest's definition as last read, or as last pinned."""
        seen = self._seen.get(uuid)
        return seen.domain if seen else None

    def pinned(self, uuid: str, iothread: int | None, cpus: CpuSet, kernel: Kernel | None) -> None:
        """Take in that a pin succeeded, so that the next look finds nothing new in it."""
        seen = self._seen.get(uuid)
        if seen is None:
            return
        text = ""
        if iothread is None:
            was = f"<emulatorpin cpuset='{seen.domain.emulator}'/>"
            if was in seen.text:
                text = seen.text.replace(was, f"<emulatorpin cpuset='{cpus}'/>")
            domain = replace(seen.domain, emulator=cpus)
        else:
            threads = tuple(
                replace(thread, cpus=cpus) if thread.id == iothread else thread
                for thread in seen.domain.iothreads
            )
            domain = replace(seen.domain, iothreads=threads)
        # If that is how libvirt writes it, the next look need not parse it; else it does.
        self._seen[uuid] = replace(seen, domain=domain, kernel=kernel or seen.kernel, text=text)

    # the host

    def _look_at_host(self, *, full: bool, plugged: bool) -> Host:
        if self._host is None or full:
            found = self._hosts.discover()
        elif plugged or self._hosts.online() != self._host.online:
            found = self._hosts.refresh()
        else:
            return self._host
        self._host, self._problems = found.host, found.problems
        return found.host

    # the guests

    def _look_at_all(self, link: Link, memory: Memory) -> None:
        listed = link.uuids()
        self._seen = {uuid: self._seen[uuid] for uuid in listed if uuid in self._seen}
        self._unfound.intersection_update(listed)
        for uuid, definition in link.xmls(listed):
            self._look_at(link, memory, uuid, definition)

    def _look_at_named(self, link: Link, memory: Memory, named: Named) -> None:
        for uuid in named.guests:
            self._look_at(link, memory, uuid)
        if named.counted is not None:
            self._look_at_odd(link, memory, named.counted)

    def _look_at_odd(self, link: Link, memory: Memory, counted: Collection[int]) -> None:
        """Look at the guests of which something happened that no event told."""
        listed = link.uuids()
        known = {uuid: seen for uuid, seen in self._seen.items() if uuid in listed}
        odd = [u for u in listed if u not in known or known[u].domain.id not in counted]
        self._seen = known
        for uuid in odd:
            self._look_at(link, memory, uuid)

    def _look_at(
        self, link: Link, memory: Memory, uuid: str, definition: str | EmupoolError | None = None
    ) -> None:
        """Look at one guest; in a look at everything its `definition` was asked for already."""
        try:
            self._seen[uuid] = self._read(link, memory, uuid, definition)
            self._answered.add(uuid)
        except GuestGone:
            self._seen.pop(uuid, None)
        except GuestBusy as error:
            if definition is not None and uuid not in self._seen:
                raise Held(f"{uuid}: {error}") from error  # its claims may be anywhere
            self._held.add(uuid)
        except (HypervisorAway, Held):
            raise
        except EmupoolError as error:
            # What was known of it stays: its claims must not vanish from the plan.
            self._failures.append((uuid, error))
        except Exception as error:  # noqa: BLE001 - one guest's surprise must not end the cycle
            self._failures.append((uuid, unforeseen(error)))

    def _read(
        self, link: Link, memory: Memory, uuid: str, definition: str | EmupoolError | None
    ) -> Seen:
        before = self._seen.get(uuid)
        if before is not None and before.ready and self._named.fresh.get(uuid) == before.domain.id:
            self._booted.add(uuid)
            return replace(before, occupied=False, ready=False)
        early = self._named.early.get(uuid)
        if early is not None:
            return self._read_early(uuid, early, before)
        if isinstance(definition, EmupoolError):
            raise definition
        text = link.xml(uuid) if definition is None else definition
        if before is not None and before.text == text and not before.occupied:
            return self._found(before)
        domain = _parsed(text, uuid)
        self._verdicts.pop(uuid, None)
        if domain.id is None:
            return Seen(text, domain, start="", original=domain.pins, told=True)
        if before is not None and before.domain.id == domain.id and not before.occupied:
            return self._found(replace(before, text=text, domain=domain))
        return self._first(link, memory, text, domain, before)

    def _read_early(self, uuid: str, text: str, before: Seen | None) -> Seen:
        """Take in a definition that was read while libvirt started the guest; ask for nothing."""
        if before is not None and before.domain.id is not None:
            return before  # its start was announced meanwhile
        domain = _parsed(text, uuid)
        place = self._locate(domain)
        if place is not None and not place.arrived:
            self._verdicts.pop(domain.uuid, None)
            start, told = _start(domain, place), _tells(before, domain.pins)
            return Seen(text, domain, start, domain.pins, told, place, occupied=True, ready=True)
        if before is None:
            raise GuestGone("it did not start, or is not there yet")
        return before

    def _first(
        self, link: Link, memory: Memory, text: str, domain: Domain, before: Seen | None
    ) -> Seen:
        """Read a guest for the first time in this start; `before` is what it was until then."""
        place = self._locate(domain)
        start = _start(domain, place)
        recorded = memory.guests.get(domain.uuid)
        booted = domain.uuid in self._named.fresh and place is not None and not place.arrived
        if recorded is not None and recorded.start == start:
            original, told = recorded.original, True
        elif before is not None and before.start == start and before.told:
            original, told = before.original, True  # it was seen while it was starting
        elif booted:  # nobody has pinned it yet: it has what it was started with
            original, told = domain.pins, _tells(before, domain.pins)
        else:
            original, told = _original(link, domain, place)
        if booted:
            self._booted.add(domain.uuid)
        occupied = not booted and link.occupied(domain.uuid)
        return Seen(text, domain, start, original, told=told, place=place, occupied=occupied)

    def _found(self, seen: Seen) -> Seen:
        """Look again for a guest's threads, if that failed the last time."""
        if seen.domain.uuid not in self._unfound:
            return seen
        return replace(seen, place=self._locate(seen.domain))

    def _locate(self, domain: Domain) -> Place | None:
        self._unfound.discard(domain.uuid)
        if domain.id is None:
            return None
        try:
            return self._kernels.locate(domain.uuid, domain.id, domain.partition)
        except EmupoolError as error:
            self._failures.append((domain.uuid, error))
        except OSError as error:
            self._failures.append((domain.uuid, unforeseen(error)))
        self._unfound.add(domain.uuid)
        return None

    def _look_at_kernel(self, uuid: str, settings: GuestSettings, memory: Memory) -> None:
        """Read the threads of a guest that is ours, or was."""
        seen = self._seen[uuid]
        ours = self._verdicts[uuid].policy in settings.manage
        if seen.place is None or not (ours or uuid in memory.guests):
            return
        try:
            kernel = self._kernels.read(seen.place, [one.id for one in seen.domain.iothreads])
            if kernel != seen.kernel:
                self._seen[uuid] = replace(seen, kernel=kernel)
        except GuestGone:
            self._seen[uuid] = replace(seen, kernel=None, text="")
        except EmupoolError as error:
            self._failures.append((uuid, error))

    def _resolve(self, settings: GuestSettings) -> None:
        """Give each guest its policy; the same question has the same answer."""
        shared = shared_cpus(seen.original.emulator for seen in self._seen.values())
        known, self._verdicts = self._verdicts, {}
        for uuid, seen in self._seen.items():
            verdict = known.get(uuid)
            original = seen.original.emulator
            if verdict is None or is_exclusive(original, shared) != verdict.exclusive:
                verdict = resolve(settings, seen.domain, original, shared)
            self._verdicts[uuid] = verdict

    def reconsider(self) -> None:
        """Ask for each guest's policy anew: the settings changed."""
        self._verdicts = {}


def _parsed(text: str, uuid: str) -> Domain:
    """Read the definition of a guest; all that is known of it goes by its UUID."""
    domain = domainxml.parse(text)
    if domain.uuid != uuid:
        raise GuestFailed(f"domain XML: it is the definition of {domain.uuid}")
    return domain


def _original(link: Link, domain: Domain, place: Place | None) -> tuple[Pins, bool]:
    """Return what the guest was started with, and whether the persistent definition tells it."""
    persistent = link.persistent_xml(domain.uuid)
    if persistent is not None:
        return domainxml.parse(persistent).pins, True
    if place is not None and place.arrived:
        return Pins(None), False  # its live pin was made for another host, or by an earlier self
    return domain.pins, False


def _tells(before: Seen | None, pins: Pins) -> bool:
    """Tell whether the definition that a stopped guest had, a persistent one, has these pins."""
    return before is not None and before.domain.id is None and before.domain.pins == pins


def _start(domain: Domain, place: Place | None) -> str:
    return f"{place.pid}-{place.started}" if place else f"id-{domain.id}"


def _guest(seen: Seen, verdict: Verdict, busy: bool) -> Guest:  # noqa: FBT001 - a field's value
    return Guest(
        domain=seen.domain,
        original=seen.original,
        verdict=verdict,
        age=seen.age,
        start=seen.start,
        busy=busy,
        kernel=seen.kernel,
    )


def _shows(guest: Guest, seen: Seen, verdict: Verdict) -> bool:
    """Tell whether a guest is made from these very values; all others come with the definition."""
    return guest.domain is seen.domain and guest.verdict is verdict and guest.kernel is seen.kernel
