"""libvirt's domain XML into one frozen value.

Only what decides about emulator threads is read. The text is a tenant's in part (names,
metadata), so nothing in it can do more than leave a `Flaw` behind: the field then counts as
absent. A text that is no domain at all raises GuestFailed. Nothing that is kept of a text, and no
work done for it, grows faster than the text, and that is bounded: by what libvirt itself can
send, and for each field by a number or a length that no guest in use comes near.

Terms: a vCPU's *effective mask* is its `vcpupin`, else `<vcpu cpuset>`, else None (anywhere).
A *claim* is a vCPU, on line or not, whose effective mask is one pCPU. Node sets name NUMA
cells, not pCPUs, and are kept as such.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Never
from xml.etree import ElementTree as ET

from agent.cpuset import CellId, CpuSet, CpuSetError, union
from agent.errors import GuestFailed

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

OWN_NAMESPACE: Final = "urn:emupool:libvirt:1"
NOVA_NAMESPACES: Final = (
    "http://openstack.org/xmlns/libvirt/nova/1.1",
    "http://openstack.org/xmlns/libvirt/nova/1.0",
)
MAX_TEXT: Final = 4 * 1024 * 1024
"""Characters of a definition: the longest string that libvirt's protocol carries."""
MAX_TAGS: Final = 256 * 1024
"""Of elements, that is; a guest with a hundred disks has some three thousand."""
MAX_VCPUS: Final = 16384
MAX_IOTHREADS: Final = 1024
MAX_NAME: Final = 255
"""Characters of a name: libvirt names files after guests, Nova has a column for flavors."""
MAX_FLAWS: Final = 16
_MAX_PATH: Final = 4096
NOVA_KEY: Final = "hw:emulator_threads_policy"
NOVA_MISSPELT: Final = "hw:emulator_thread_policy"
_REALTIME: Final = frozenset({"fifo", "rr"})
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_NUMBER = re.compile(r"[0-9]{1,9}\Z")


@dataclass(frozen=True, slots=True)
class Vcpu:
    """One vCPU: its effective mask, and whether it is scheduled fifo or rr."""

    id: int
    cpus: CpuSet | None
    realtime: bool

    @property
    def claim(self) -> int | None:
        """The pCPU it is pinned to one-to-one, if it is."""
        return self.cpus.only() if self.cpus is not None else None


@dataclass(frozen=True, slots=True)
class IoThread:
    """One iothread: its pin (None: it has none), and whether it is scheduled fifo or rr."""

    id: int
    cpus: CpuSet | None
    realtime: bool


@dataclass(frozen=True, slots=True)
class Pins:
    """Emulator and iothread pins; None where there is no pin."""

    emulator: CpuSet | None
    iothreads: tuple[tuple[int, CpuSet | None], ...] = ()

    def iothread(self, number: int) -> CpuSet | None:
        """Return the pin of iothread `number`, None if it has none or does not exist."""
        for known, cpus in self.iothreads:
            if known == number:
                return cpus
        return None


@dataclass(frozen=True, slots=True)
class OwnMetadata:
    """The attributes of emupool's own element, as they stand in the text."""

    policy: str | None
    cell: str | None
    weight: str | None


@dataclass(frozen=True, slots=True)
class NovaMetadata:
    """Nova's flavor name, and the extra specs of emulator threads; None: no such element."""

    flavor: str | None
    extra_specs: tuple[tuple[str, str], ...] | None


@dataclass(frozen=True, slots=True)
class Flaw:
    """A field of a guest's definition that could not be used, and why."""

    field: str
    text: str


@dataclass(frozen=True, slots=True)
class Domain:
    """One guest's definition; `id` is None for a stopped one."""

    uuid: str
    name: str
    id: int | None
    vcpus: tuple[Vcpu, ...]
    vcpu_cpuset: CpuSet | None
    emulator: CpuSet | None
    emulator_realtime: bool
    iothreads: tuple[IoThread, ...]
    memnode: frozenset[CellId] | None  # host cells of guest cell 0
    memory_nodes: frozenset[CellId] | None  # host cells of all its memory
    partition: str | None
    own: OwnMetadata | None
    nova: NovaMetadata | None
    claims: CpuSet
    realtime_claims: CpuSet
    flaws: tuple[Flaw, ...]

    @property
    def pins(self) -> Pins:
        """Emulator and iothread pins of this definition."""
        return Pins(self.emulator, tuple((thread.id, thread.cpus) for thread in self.iothreads))

    def resting(self, online: CpuSet) -> CpuSet:
        """Return where emulator threads run by this definition: pin, else cpuset, else `online`."""
        if self.emulator is not None:
            return self.emulator
        return self.vcpu_cpuset if self.vcpu_cpuset is not None else online


class _NoDoctype(ET.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> Never:
        del pubid, system
        raise GuestFailed(f"domain XML: a document type ({name[:40]!r}) is not allowed")


def parse(text: str) -> Domain:
    """Read one `<domain>`, live (with an id) or persistent; GuestFailed if it is none."""
    return _Reader(read(text)).domain()


def read(text: str) -> ET.Element:
    """Return the `<domain>` element that `text` is; GuestFailed if it is none."""
    if len(text) > MAX_TEXT:
        raise GuestFailed(f"domain XML: {len(text)} characters are more than {MAX_TEXT}")
    tags = text.count("<")
    if tags > MAX_TAGS:
        raise GuestFailed(f"domain XML: {tags} tags are more than {MAX_TAGS}")
    try:
        root = ET.fromstring(text, ET.XMLParser(target=_NoDoctype()))  # noqa: S314 - entities need a DOCTYPE, refused above
    except (ET.ParseError, ValueError) as error:
        raise GuestFailed(f"domain XML: {error}") from None
    if root.tag != "domain":
        raise GuestFailed(f"domain XML: the root element is {root.tag[:40]!r}, not 'domain'")
    return root


class _Reader:
    """Reads one element tree; collects flaws on the way."""

    def __init__(self, root: ET.Element) -> None:
        nothing = ET.Element("nothing")
        self._root = root
        self._cputune = _child(root, "cputune", nothing)
        self._numatune = _child(root, "numatune", nothing)
        self._metadata = _child(root, "metadata", nothing)
        self._flaws: list[Flaw] = []
        self._untold = 0  # flaws beyond those
        self._read: dict[str, CpuSet | CpuSetError] = {}  # lists by text: pins are often alike

    def domain(self) -> Domain:
        root = self._root
        vcpu_cpuset = self._cpus(root.find("vcpu"), "cpuset", "vcpu@cpuset")
        vcpus = self._vcpus(vcpu_cpuset)
        claims = [
            (vcpu.cpus, vcpu.realtime) for vcpu in vcpus if vcpu.cpus and vcpu.claim is not None
        ]
        return Domain(
            uuid=self._uuid(),
            name=self._name(root.findtext("name"), "name") or "",
            id=self._number(root.get("id"), "domain@id") if "id" in root.attrib else None,
            vcpus=vcpus,
            vcpu_cpuset=vcpu_cpuset,
            emulator=self._cpus(self._cputune.find("emulatorpin"), "cpuset", "emulatorpin@cpuset"),
            emulator_realtime=_is_realtime(self._cputune.find("emulatorsched")),
            iothreads=self._iothreads(),
            memnode=self._cells(self._memnode_zero(), "memnode@nodeset"),
            memory_nodes=self._cells(self._numatune.find("memory"), "memory@nodeset"),
            partition=self._partition(),
            own=self._own(),
            nova=self._nova(),
            claims=union(cpus for cpus, _ in claims),
            realtime_claims=union(cpus for cpus, realtime in claims if realtime),
            flaws=self._told_flaws(),
        )

    def _uuid(self) -> str:
        uuid = (self._root.findtext("uuid") or "").strip().lower()
        if not _UUID.match(uuid):
            raise GuestFailed(f"domain XML: {uuid[:60]!r} is not a UUID")
        return uuid

    def _vcpus(self, fallback: CpuSet | None) -> tuple[Vcpu, ...]:
        text = (self._root.findtext("vcpu") or "1").strip()
        count = self._number(text, "vcpu") or 0
        if count > MAX_VCPUS:
            self._flaw("vcpu", f"{count} vCPUs are more than {MAX_VCPUS}")
            count = 0
        pins = dict(self._pins("vcpupin", "vcpu", range(count)))
        realtime = self._realtime("vcpusched", "vcpus")
        return tuple(Vcpu(n, pins.get(n) or fallback, n in realtime) for n in range(count))

    def _iothreads(self) -> tuple[IoThread, ...]:
        ids = self._iothread_ids()
        pins = dict(self._pins("iothreadpin", "iothread", ids))
        realtime = self._realtime("iothreadsched", "iothreads")
        return tuple(IoThread(n, pins.get(n), n in realtime) for n in sorted(ids))

    def _iothread_ids(self) -> set[int]:
        """Explicit ids, then, as libvirt numbers them, the lowest free ones up to the count."""
        listed = self._root.findall("iothreadids/iothread")
        ids = {n for n in (self._number(e.get("id"), "iothread@id") for e in listed) if n}
        count = self._number((self._root.findtext("iothreads") or "0").strip(), "iothreads") or 0
        if max(count, len(ids)) > MAX_IOTHREADS:
            many = max(count, len(ids))
            self._flaw("iothreads", f"{many} iothreads are more than {MAX_IOTHREADS}")
            return set()
        number = 1
        while len(ids) < count:
            ids.add(number)
            number += 1
        return ids

    def _pins(self, tag: str, key: str, there: Container[int]) -> Iterator[tuple[int, CpuSet]]:
        """Yield the pins of the threads that are there; others are libvirt's to keep."""
        for element in self._cputune.findall(tag):
            number = self._number(element.get(key), f"{tag}@{key}")
            if number is not None and number in there:
                cpus = self._cpus(element, "cpuset", f"{tag}@cpuset")
                if cpus is not None:
                    yield number, cpus

    def _realtime(self, tag: str, key: str) -> CpuSet:
        elements = filter(_is_realtime, self._cputune.findall(tag))
        return union(self._cpus(element, key, f"{tag}@{key}") or CpuSet() for element in elements)

    def _memnode_zero(self) -> ET.Element | None:
        nodes = self._numatune.findall("memnode")
        return next((node for node in nodes if node.get("cellid") == "0"), None)

    def _own(self) -> OwnMetadata | None:
        element = self._metadata.find(f"{{{OWN_NAMESPACE}}}guest")
        if element is None:
            return None
        return OwnMetadata(element.get("policy"), element.get("cell"), element.get("weight"))

    def _nova(self) -> NovaMetadata | None:
        for namespace in NOVA_NAMESPACES:
            instance = self._metadata.find(f"{{{namespace}}}instance")
            if instance is not None:
                return self._nova_instance(instance, f"{{{namespace}}}")
        return None

    def _nova_instance(self, instance: ET.Element, namespace: str) -> NovaMetadata:
        flavor = instance.find(f"{namespace}flavor")
        if flavor is None:
            return NovaMetadata(None, None)
        name = self._name(flavor.get("name"), "nova flavor name")
        specs = flavor.find(f"{namespace}extraSpecs")
        if specs is None:
            return NovaMetadata(name, None)
        told = {
            e.get("name") or "": (e.text or "").strip()
            for e in specs.iterfind(f"{namespace}extraSpec")
            if e.get("name") in {NOVA_KEY, NOVA_MISSPELT}
        }
        return NovaMetadata(name, tuple(told.items()))

    def _cpus(self, element: ET.Element | None, key: str, field: str) -> CpuSet | None:
        """Read a CPU list; an empty or unreadable one counts as absent."""
        text = element.get(key) if element is not None else None
        if text is None:
            return None
        if text not in self._read:
            self._read[text] = _listed(text)
        cpus = self._read[text]
        if isinstance(cpus, CpuSetError):
            self._flaw(field, str(cpus))
            return None
        if not cpus:
            self._flaw(field, "an empty set of CPUs")
            return None
        return cpus

    def _cells(self, element: ET.Element | None, field: str) -> frozenset[CellId] | None:
        """Read a node set, which has the notation of a CPU list."""
        cells = self._cpus(element, "nodeset", field)
        return frozenset(map(CellId, cells)) if cells is not None else None

    def _number(self, text: str | None, field: str) -> int | None:
        if text is None or not _NUMBER.match(text):
            self._flaw(field, f"{(text or '')[:40]!r} is not a number")
            return None
        return int(text)

    def _name(self, text: str | None, field: str) -> str | None:
        """Cut a name that nobody's could be; what is left tells an operator which it is."""
        if text is not None and len(text) > MAX_NAME:
            self._flaw(field, f"cut: {len(text)} characters are more than {MAX_NAME}")
            return text[:MAX_NAME]
        return text

    def _partition(self) -> str | None:
        text = self._root.findtext("resource/partition")
        if text is not None and len(text) > _MAX_PATH:
            self._flaw("partition", f"{len(text)} characters are more than {_MAX_PATH}")
            return None
        return text

    def _flaw(self, field: str, text: str) -> None:
        if len(self._flaws) < MAX_FLAWS:
            self._flaws.append(Flaw(field, text))
        else:
            self._untold += 1

    def _told_flaws(self) -> tuple[Flaw, ...]:
        more = [Flaw("definition", f"{self._untold} flaws more")] if self._untold else []
        return (*self._flaws, *more)


def _child(element: ET.Element, tag: str, fallback: ET.Element) -> ET.Element:
    """Return the first child `tag`; paths of one tag are what ElementTree finds fast."""
    found = element.find(tag)
    return fallback if found is None else found


def _listed(text: str) -> CpuSet | CpuSetError:
    try:
        return CpuSet.parse(text)
    except CpuSetError as error:
        return error


def _is_realtime(element: ET.Element | None) -> bool:
    return element is not None and element.get("scheduler") in _REALTIME
