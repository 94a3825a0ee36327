"""Guests of the lab: what they are started with, and their threads as the kernel has them."""

from __future__ import annotations

import contextlib
import re
import time
import uuid as uuids
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import libvirt

from lab.inside import host
from lab.inside.host import show

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lab.inside.host import Cpus

PAUSED: Final = libvirt.VIR_DOMAIN_START_PAUSED
_SPACE: Final = uuids.UUID("6c1d7e50-0000-4000-8000-000000000000")

libvirt.registerErrorHandler(lambda *_: None, None)  # else it prints every error


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest, and what it is started with."""

    name: str
    cell: int
    claims: tuple[int, ...]
    """The pCPU of each vCPU."""
    original: Cpus
    """Its emulator pin."""
    iothread: Cpus | None = None
    """Its iothread's pin, if it has an iothread."""
    policy: str | None = "isolate"
    """What its metadata says; without, its pins and the configuration's rules tell."""
    arguments: tuple[str, ...] = ()
    """More of QEMU's command line."""

    @property
    def uuid(self) -> str:
        """Return the UUID, which the name gives."""
        return str(uuids.uuid5(_SPACE, self.name))

    @property
    def managed(self) -> bool:
        """Tell whether the agent has to pin it."""
        return self.policy == "isolate"

    @property
    def follows(self) -> bool:
        """Tell whether its iothread has to go where the emulator threads go."""
        return self.managed and self.iothread == self.original

    def xml(self) -> str:
        """Return the definition."""
        pins = [f"<vcpupin vcpu='{n}' cpuset='{cpu}'/>" for n, cpu in enumerate(self.claims)]
        pins.append(f"<emulatorpin cpuset='{show(self.original)}'/>")
        if self.iothread is not None:
            pins.append(f"<iothreadpin iothread='1' cpuset='{show(self.iothread)}'/>")
        own = f"<e:guest xmlns:e='urn:emupool:libvirt:1' policy='{self.policy}'/>"
        more = "".join(f"<q:arg value='{argument}'/>" for argument in self.arguments)
        return f"""\
<domain type='qemu' xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{self.name}</name>
  <uuid>{self.uuid}</uuid>
  <metadata>{own if self.policy else ""}</metadata>
  <memory unit='KiB'>8192</memory>
  <vcpu placement='static'>{len(self.claims)}</vcpu>
  {"<iothreads>1</iothreads>" if self.iothread is not None else ""}
  <cputune>{"".join(pins)}</cputune>
  <numatune><memory mode='strict' nodeset='{self.cell}'/></numatune>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <controller type='usb' model='none'/>
    <video><model type='none'/></video>
    <memballoon model='none'/>
  </devices>
  <q:commandline>{more}</q:commandline>
</domain>
"""


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread of a guest: `role` is the last part of its cgroup, such as emulator or vcpu0."""

    tid: int
    name: str
    role: str
    cpus: Cpus


class Node:
    """The host's libvirt, over a connection that is made anew if it was lost."""

    def __init__(self, uri: str = "qemu:///system", pids: Path = Path("/run/libvirt/qemu")) -> None:
        """Connect when it is first needed; libvirt keeps its guests' `pids` there."""
        self._uri = uri
        self._pids = pids
        self._connection: libvirt.virConnect | None = None

    @property
    def link(self) -> libvirt.virConnect:
        """Return a connection that lives; a libvirtd that starts is waited for."""
        if not self._is_alive():
            for _ in range(240):
                with contextlib.suppress(libvirt.libvirtError):
                    self._connection = libvirt.open(self._uri)
                    break
                time.sleep(0.25)
            else:
                raise RuntimeError("libvirtd does not come back")
        return self._connection

    def _is_alive(self) -> bool:
        """Ask libvirtd: without an event loop `isAlive` does not know of a restart."""
        try:
            return self._connection is not None and bool(self._connection.getLibVersion())
        except libvirt.libvirtError:
            return False

    def domain(self, guest: Guest) -> libvirt.virDomain:
        """Return a guest's domain."""
        return self.link.lookupByName(guest.name)

    def start(self, guest: Guest, *, persistent: bool = False) -> None:
        """Start a guest, paused."""
        if persistent:
            self.link.defineXML(guest.xml()).createWithFlags(PAUSED)
        else:
            self.link.createXML(guest.xml(), PAUSED)

    def destroy(self, guest: Guest) -> None:
        """End a guest."""
        self.domain(guest).destroy()

    def clear(self) -> None:
        """End every guest, and forget every definition."""
        for domain in self.link.listAllDomains():
            with contextlib.suppress(libvirt.libvirtError):
                domain.destroy()
            with contextlib.suppress(libvirt.libvirtError):
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)

    def running(self) -> set[str]:
        """Return the names of the guests that run."""
        flag = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
        return {domain.name() for domain in self.link.listAllDomains(flag)}

    def recorded(self, guest: Guest) -> Cpus:
        """Return libvirt's own record of the emulator pin."""
        flags = self.domain(guest).emulatorPinInfo(libvirt.VIR_DOMAIN_AFFECT_LIVE)
        return frozenset(cpu for cpu, allowed in enumerate(flags) if allowed)

    def pid(self, guest: Guest) -> int:
        """Return the process of a guest's QEMU."""
        return int((self._pids / f"{guest.name}.pid").read_text())

    def cgroup(self, guest: Guest) -> Path:
        """Return the cgroup of a guest's emulator threads that has their cpuset."""
        return _group(self.pid(guest))

    def threads(self, guest: Guest) -> list[Thread]:
        """Return all threads of a guest: QEMU's own, and vhost workers of the kernel."""
        main = self.pid(guest)
        place = _group(main)
        tids = {int(task.name) for task in Path(f"/proc/{main}/task").iterdir()}
        for members in ("cgroup.threads", "tasks"):
            with contextlib.suppress(OSError):
                tids |= {int(tid) for tid in (place / members).read_text().split()}
        return list(_read(sorted(tids)))


def masks(found: Iterable[Thread], role: str) -> set[Cpus]:
    """Return the masks of the threads of a role."""
    return {thread.cpus for thread in found if thread.role == role}


def _read(tids: Iterable[int]) -> Iterator[Thread]:
    for tid in tids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended
            status = Path(f"/proc/{tid}/status").read_text()
            fields = dict(re.findall(r"^(Name|Cpus_allowed_list):\s*(.*)$", status, re.MULTILINE))
            cpus = host.parse(fields["Cpus_allowed_list"])
            yield Thread(tid, fields["Name"], _group(tid).name, cpus)


def _group(tid: int) -> Path:
    """Return a thread's cgroup in the tree that has cpusets: of version 1 if there is one."""
    places = dict[str, str]()
    for line in Path(f"/proc/{tid}/cgroup").read_text().splitlines():
        _, controllers, place = line.split(":", 2)
        places |= dict.fromkeys(controllers.split(","), place.lstrip("/"))
    if "cpuset" in places:
        return Path("/sys/fs/cgroup/cpuset") / places["cpuset"]
    return Path("/sys/fs/cgroup") / places[""]
