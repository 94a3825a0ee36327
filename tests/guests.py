"""Guests for the tests: their definition, and the truth about their threads, read from /proc.

The guests are real QEMU processes under TCG, of 8 MiB and without devices: some 13 MiB and a
third of a second each. What is read here shares no code with the agent, so that it can testify
against it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import uuid as uuids
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET
from xml.sax.saxutils import quoteattr

import libvirt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tests.libvirtd import Libvirtd

OWN_NAMESPACE: Final = "urn:emupool:libvirt:1"
NOVA_NAMESPACE: Final = "http://openstack.org/xmlns/libvirt/nova/1.1"


def nova_metadata(
    policy: str | None = None,
    *,
    flavor: str = "m1.nfv",
    extra_specs: bool = True,
    namespace: str = NOVA_NAMESPACE,
    key: str = "hw:emulator_threads_policy",
) -> str:
    """Return Nova's element; without `extra_specs` as before Nova 2025.2."""
    spec = f"<nova:extraSpec name={quoteattr(key)}>{policy}</nova:extraSpec>" if policy else ""
    specs = f"<nova:extraSpecs>{spec}</nova:extraSpecs>" if extra_specs else ""
    return (
        f"<nova:instance xmlns:nova={quoteattr(namespace)}>"
        f"<nova:flavor name={quoteattr(flavor)}>{specs}</nova:flavor></nova:instance>"
    )


def own_metadata(policy: str, **attributes: str) -> str:
    """Return emupool's own element; `attributes` are cell and weight."""
    pairs = {"policy": policy, **attributes}.items()
    text = " ".join(f"{name}={quoteattr(value)}" for name, value in pairs)
    return f'<emupool:guest xmlns:emupool="{OWN_NAMESPACE}" {text}/>'


def guest_xml(
    name: str,
    *,
    uuid: str | None = None,
    vcpus: int = 1,
    vcpu_cpuset: str | None = None,
    emulatorpin: str | None = None,
    vcpupins: Mapping[int, str] | None = None,
    iothreads: int = 0,
    iothreadpins: Mapping[int, str] | None = None,
    cputune: str = "",
    numatune: str | None = None,
    memnode0: str | None = None,
    metadata_policy: str | None = None,
    metadata_attributes: Mapping[str, str] | None = None,
    nova_policy: str | None = None,
    metadata: str = "",
    memory_kib: int = 8192,
    vnc: bool = False,
    devices: str = "",
) -> str:
    """Return a domain's definition; CPU and node sets are in libvirt's notation.

    `numatune` is the node set of the guest's memory, `memnode0` that of its cell 0 (which makes
    it one of one cell). `cputune`, `metadata` and `devices` are elements to add as they are,
    such as `<emulatorsched scheduler='fifo' priority='1'/>`. `nova_policy` may be empty: Nova's
    element then has extra specs without the policy.
    """
    pins = "".join(
        (
            f"<emulatorpin cpuset='{emulatorpin}'/>" if emulatorpin else "",
            *(f"<vcpupin vcpu='{n}' cpuset='{cpus}'/>" for n, cpus in (vcpupins or {}).items()),
            *(
                f"<iothreadpin iothread='{n}' cpuset='{cpus}'/>"
                for n, cpus in (iothreadpins or {}).items()
            ),
        )
    )
    memory = f"<memory mode='strict' nodeset='{numatune}'/>" if numatune else ""
    memnode = f"<memnode cellid='0' mode='strict' nodeset='{memnode0}'/>" if memnode0 else ""
    cell = f"<numa><cell id='0' cpus='0-{vcpus - 1}' memory='{memory_kib}' unit='KiB'/></numa>"
    about = "".join(
        (
            own_metadata(metadata_policy, **(metadata_attributes or {})) if metadata_policy else "",
            nova_metadata(nova_policy) if nova_policy is not None else "",
            metadata,
        )
    )
    cpuset = f" cpuset='{vcpu_cpuset}'" if vcpu_cpuset else ""
    return f"""\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid or uuids.uuid4()}</uuid>
  <metadata>{about}</metadata>
  <memory unit='KiB'>{memory_kib}</memory>
  <vcpu placement='static'{cpuset}>{vcpus}</vcpu>
  {f"<iothreads>{iothreads}</iothreads>" if iothreads else ""}
  <cputune>{pins}{cputune}</cputune>
  {f"<numatune>{memory}{memnode}</numatune>" if memory or memnode else ""}
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  {f"<cpu>{cell}</cpu>" if memnode0 else ""}
  <devices>
    <controller type='usb' model='none'/>
    {"<graphics type='vnc'><listen type='socket'/></graphics>" if vnc else ""}
    <video><model type='{"vga" if vnc else "none"}'/></video>
    <memballoon model='none'/>
    {devices}
  </devices>
</domain>
"""


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread as the kernel has it now."""

    tid: int
    name: str
    role: str
    """The last part of its cgroup: emulator, vcpu0, iothread1; a stray has some other name."""
    cpus: frozenset[int]
    """Where it may run: Cpus_allowed_list, the cpuset's share of its own mask."""
    kernel: bool = False
    """A vhost worker that is no thread of QEMU's process (kernels before 6.4)."""


def cpu_list(text: str) -> frozenset[int]:
    """Read the kernel's list notation."""
    spans = (item.partition("-") for item in text.strip().split(",") if item)
    return frozenset(
        cpu for first, _, last in spans for cpu in range(int(first), int(last or first) + 1)
    )


def cpuset_of(process: str) -> Path:
    """Return the cpuset cgroup of `PID` or `PID/task/TID`: that of v1 where there is one."""
    unified = None
    for line in Path("/proc", process, "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpuset" in controllers.split(","):
            return _mounted("cgroup", "cpuset") / path.lstrip("/")
        if not controllers:
            unified = path
    if unified is None:
        raise FileNotFoundError(f"process {process} is in no cpuset")
    return _mounted("cgroup2", "") / unified.lstrip("/")


def _mounted(kind: str, option: str) -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, path, its_kind, options, *_ = line.split()
        if its_kind == kind and (not option or option in options.split(",")):
            return Path(path)
    raise FileNotFoundError(f"no {kind} {option} is mounted")


def _thread(process: str, *, kernel: bool = False) -> Thread | None:
    """Read a thread, or None if it has ended."""
    try:
        status = Path("/proc", process, "status").read_text()
        role = cpuset_of(process).name
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    tid = int(process.rpartition("/")[2])
    return Thread(tid, fields["Name"], role, cpu_list(fields["Cpus_allowed_list"]), kernel)


def wait_until(met: Callable[[], object], seconds: float = 10.0, what: str = "") -> None:
    """Wait until `met` returns something true; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or met}")
        time.sleep(0.005)


def has_ended(pid: int, seconds: float = 0.0) -> bool:
    """Tell whether a process has ended, or does within `seconds`; reaped or not."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def wait_for_end(pid: int, seconds: float = 10.0) -> None:
    """Wait until a process has ended, whoever its parent is."""
    if not has_ended(pid, seconds):
        raise TimeoutError(f"process {pid} still runs after {seconds:g} s")


class Guest:
    """A guest of a private libvirtd, by its UUID; it may be defined, active, both or neither."""

    def __init__(self, libvirtd: Libvirtd, xml: str) -> None:
        """Describe a guest by its definition; nothing happens yet."""
        root = ET.fromstring(xml)
        self._libvirtd = libvirtd
        self.xml = xml
        self.name = root.findtext("name", "")
        self.uuid = root.findtext("uuid", "")

    def __repr__(self) -> str:
        return f"Guest({self.name!r})"

    @property
    def domain(self) -> libvirt.virDomain:
        """The domain, on the harness's connection; libvirtError if libvirt knows none."""
        return self._libvirtd.conn.lookupByUUIDString(self.uuid)

    def define(self) -> Guest:
        """Make it known, persistently."""
        self._libvirtd.conn.defineXML(self.xml)
        return self

    def start(self, *, paused: bool = False) -> Guest:
        """Start it from its persistent definition."""
        self.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
        return self

    def create(self, *, paused: bool = False) -> Guest:
        """Start it as a transient guest, unless it was defined before."""
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        self._libvirtd.conn.createXML(self.xml, flags)
        return self

    def destroy(self) -> None:
        """Stop it, as `virsh destroy` does; 0.2 s."""
        self.domain.destroy()

    def undefine(self) -> None:
        """Forget its persistent definition."""
        self.domain.undefine()

    def kill9(self) -> None:
        """Kill its QEMU behind libvirt's back, and wait until that has ended."""
        kill9([self.pid])

    @property
    def pid(self) -> int:
        """The pid of its QEMU; FileNotFoundError if it has none."""
        path = self._libvirtd.root / f"run/libvirt/qemu/{self.name}.pid"
        return int(path.read_text())

    def is_active(self) -> bool:
        """Tell whether libvirt has it running, paused or the like."""
        try:
            return bool(self.domain.isActive())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise

    def cgroup(self, role: str = "emulator") -> Path:
        """Return the cpuset cgroup of its threads of one role: emulator, vcpu0, iothread1."""
        path = cpuset_of(str(self.pid))  # the main thread's, an emulator thread
        return path.parent / role

    def threads(self) -> list[Thread]:
        """Read all its threads, and the vhost kernel threads in its emulator cgroup."""
        pid = self.pid
        own = {int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()}
        found = [_thread(f"{pid}/task/{tid}") for tid in sorted(own)]
        with contextlib.suppress(FileNotFoundError):
            found += [_thread(str(tid), kernel=True) for tid in sorted(self._tasks() - own)]
        return [thread for thread in found if thread is not None]

    def masks(self, role: str = "emulator") -> set[frozenset[int]]:
        """Return the different masks of its threads whose role begins with `role`.

        One mask says that all agree: `guest.masks() == {frozenset({1})}`.
        """
        return {thread.cpus for thread in self.threads() if thread.role.startswith(role)}

    def recorded_pin(self) -> frozenset[int]:
        """Return libvirt's own idea of the emulator pin, which is not the kernel's."""
        mask = self.domain.emulatorPinInfo(libvirt.VIR_DOMAIN_AFFECT_LIVE)
        return frozenset(cpu for cpu, allowed in enumerate(mask) if allowed)

    def definition(self, *, inactive: bool = False) -> str:
        """Return its live XML, or the persistent one."""
        return str(self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0))

    def _tasks(self) -> set[int]:
        directory = self.cgroup()
        threads = directory / "cgroup.threads"
        path = threads if threads.exists() else directory / "tasks"
        return {int(tid) for tid in path.read_text().split()}


def kill9(pids: Iterable[int]) -> None:
    """Kill processes, and wait until they have ended."""
    ended = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            ended.append(pid)
    for pid in ended:
        wait_for_end(pid)
