"""Definitions as libvirt writes them, and what becomes of them when chance has its way.

    python -m tests.mutants 100000

tries so many, in batches that are planned together, and prints what became of them.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from agent import domainxml, planner, transition
from agent.checkpoint import Checkpoint
from agent.cycle import Cause, CycleResult
from agent.documents import from_documents
from agent.domainxml import MAX_FLAWS, MAX_IOTHREADS, MAX_NAME, MAX_VCPUS
from agent.errors import GuestFailed
from agent.policy import GuestSettings, Policy, Rule
from agent.pool import NOTHING, CellSettings, PoolSettings, PoolSource
from tests.builders import cpus, uuid_of
from tests.definitions import NOVA_ISOLATE, domain_xml, nova_xml, own_xml
from tests.guests import guest_xml
from tests.hosts import TWO_SOCKET_SMT, host
from tests.outlets import check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Change = Callable[[random.Random, ET.Element], None]

BATCH: Final = 25
HOSTILE: Final = (
    "\x9b2J\u202e\u2066\u2028\x85[bold]x[/] <script>alert(1)</script> \"}{\\n{0}%s' 1\n"
)
"""Text for a terminal, a log, a page, an exposition and a format, that each might obey."""

NOVA: Final = f"""<domain type='kvm' id='7'>
  <name>instance-0000002a</name>
  <uuid>{uuid_of(42)}</uuid>
  <metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
      <nova:package version="32.0.0"/>
      <nova:name>vEPC-sgw-01</nova:name>
      <nova:creationTime>2026-04-01 09:30:00</nova:creationTime>
      <nova:flavor name="nfv.8" id="f0a1">
        <nova:memory>16384</nova:memory><nova:vcpus>4</nova:vcpus>
        <nova:extraSpecs>
          <nova:extraSpec name="hw:cpu_policy">dedicated</nova:extraSpec>
          <nova:extraSpec name="hw:cpu_realtime">yes</nova:extraSpec>
          <nova:extraSpec name="hw:emulator_threads_policy">isolate</nova:extraSpec>
          <nova:extraSpec name="hw:mem_page_size">1GB</nova:extraSpec>
        </nova:extraSpecs>
      </nova:flavor>
      <nova:owner><nova:user uuid="ab">telco</nova:user></nova:owner>
      <nova:root type="image" uuid="cd"/>
    </nova:instance>
    <emupool:guest xmlns:emupool="urn:emupool:libvirt:1" policy="isolate" cell="1" weight="0.5"/>
  </metadata>
  <memory unit='KiB'>16777216</memory>
  <memoryBacking><hugepages><page size='1048576' unit='KiB' nodeset='0'/></hugepages>
    <nosharepages/><locked/></memoryBacking>
  <vcpu placement='static' cpuset='8-15'>4</vcpu>
  <iothreads>2</iothreads>
  <iothreadids><iothread id='1'/><iothread id='4'/></iothreadids>
  <cputune>
    <shares>4096</shares>
    <vcpupin vcpu='0' cpuset='9'/><vcpupin vcpu='1' cpuset='25'/>
    <vcpupin vcpu='2' cpuset='10'/><vcpupin vcpu='3' cpuset='26'/>
    <emulatorpin cpuset='11'/>
    <iothreadpin iothread='1' cpuset='11'/><iothreadpin iothread='4' cpuset='8-15,^9'/>
    <vcpusched vcpus='0-3' scheduler='fifo' priority='1'/>
    <iothreadsched iothreads='4' scheduler='batch'/>
  </cputune>
  <numatune><memory mode='strict' nodeset='1'/>
    <memnode cellid='0' mode='strict' nodeset='1'/></numatune>
  <resource><partition>/machine</partition></resource>
  <sysinfo type='smbios'><system><entry name='manufacturer'>OpenStack</entry></system></sysinfo>
  <os><type arch='x86_64' machine='pc-q35-9.2'>hvm</type><boot dev='hd'/></os>
  <features><acpi/><apic/><pmu state='off'/><vmcoreinfo state='on'/></features>
  <cpu mode='custom' match='exact' check='full'><model fallback='forbid'>Icelake-Server</model>
    <topology sockets='4' dies='1' clusters='1' cores='1' threads='1'/>
    <numa><cell id='0' cpus='0-3' memory='16777216' unit='KiB' memAccess='shared'/></numa></cpu>
  <clock offset='utc'><timer name='pit' tickpolicy='delay'/></clock>
  <on_poweroff>destroy</on_poweroff>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' iothread='1'/>
      <source file='/var/lib/nova/instances/disk' index='1'/><target dev='vda' bus='virtio'/></disk>
    <interface type='vhostuser'><mac address='fa:16:3e:00:00:01'/>
      <source type='unix' path='/var/run/vhost' mode='server'/><model type='virtio'/>
      <driver name='vhost' queues='4' rx_queue_size='1024'/></interface>
    <serial type='pty'><source path='/dev/pts/3'/><log file='/var/lib/console.log'/></serial>
    <graphics type='vnc' port='5900' autoport='yes' listen='10.0.0.1'/>
  </devices>
  <seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+993</label></seclabel>
</domain>"""

CORPUS: Final = (
    NOVA,
    domain_xml(NOVA_ISOLATE, metadata=nova_xml("isolate") + own_xml(policy="isolate")),
    domain_xml("<numatune><memory nodeset='0-1'/></numatune>", running_as=None, vcpus="16"),
    guest_xml(
        "web-1",
        vcpus=4,
        vcpu_cpuset="0-7",
        emulatorpin="2",
        vcpupins={0: "4", 1: "5"},
        iothreads=2,
        iothreadpins={1: "2", 2: "3"},
        memnode0="0",
        metadata_policy="isolate",
        metadata_attributes={"weight": "2", "cell": "0"},
    ).replace("<domain", "<domain id='3'", 1),
    guest_xml("db-1", nova_policy="share", cputune="<emulatorsched scheduler='rr' priority='1'/>"),
)
NASTY: Final = (
    *("", " ", "0", "1", "-1", "+1", "0x1", "007", "65536", "99999999999", "9" * 400, "1/3"),
    *("0-3", "3-0", "^1", "0-3,^1", "0-8191", "0-65535", "1,,2", "0-", "7," * 9000, "all"),
    *("NaN", "inf", "1e9", "1e2000000", "0.0000000001", ".5", "64", "٣", "²"),
    *("isolate", "ISOLATE", "share", "float", "ignore", "fifo", "rr", "auto", "yes", "\u202e"),
    *("x" * 300, "a*" * 40, "../../etc", "/machine/a", uuid_of(1), f"{{{uuid_of(1)}}}", HOSTILE),
)
_SNIPPETS: Final = (
    *("<", ">", "&", "&#0;", "&lt;", "&none;", "]]>", "<![CDATA[", "<!--", "-->", "<?x ", "'"),
    *("<!DOCTYPE d>", "<x:y/>", "\0", "\x1b[2J", "\ufffe", " xmlns='urn:x'", "</domain>", '"'),
)


# what chance does to a tree


def _any(chance: random.Random, root: ET.Element) -> ET.Element:
    return chance.choice(list(root.iter()))


def _parent(chance: random.Random, root: ET.Element) -> ET.Element | None:
    parents = [element for element in root.iter() if len(element)]
    return chance.choice(parents) if parents else None


def _repeat(chance: random.Random, root: ET.Element) -> None:
    parent = _parent(chance, root)
    if parent is not None:
        child = chance.choice(list(parent))
        for _ in range(chance.choice((1, 1, 2, 30))):
            parent.insert(chance.randint(0, len(parent)), child)


def _remove(chance: random.Random, root: ET.Element) -> None:
    parent = _parent(chance, root)
    if parent is not None:
        parent.remove(chance.choice(list(parent)))


def _move(chance: random.Random, root: ET.Element) -> None:
    parent = _parent(chance, root)
    if parent is not None:
        child = chance.choice(list(parent))
        parent.remove(child)
        target = _any(chance, root)
        if target not in set(child.iter()):
            target.insert(0, child)


def _rename(chance: random.Random, root: ET.Element) -> None:
    _any(chance, root).tag = _any(chance, root).tag


def _say(chance: random.Random, root: ET.Element) -> None:
    _any(chance, root).text = chance.choice(NASTY)


def _attribute(chance: random.Random, root: ET.Element) -> None:
    attributed = [element for element in root.iter() if element.attrib]
    if attributed:
        element = chance.choice(attributed)
        key = chance.choice(list(element.attrib))
        other = chance.choice(attributed)
        values = (chance.choice(NASTY), chance.choice(list(other.attrib.values())))
        element.set(key, chance.choice(values))


def _unattribute(chance: random.Random, root: ET.Element) -> None:
    element = _any(chance, root)
    if element.attrib:
        del element.attrib[chance.choice(list(element.attrib))]


_TREE: Final[tuple[Change, ...]] = (
    *(_repeat, _remove, _move, _rename, _say, _say),
    *(_attribute, _attribute, _attribute, _unattribute),
)


# what chance does to a text


def _flip(chance: random.Random, text: str) -> str:
    raw = bytearray(text.encode("utf-8", "surrogateescape"))
    for _ in range(chance.randint(1, 3)):
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    return raw.decode("utf-8", chance.choice(("replace", "surrogateescape")))


def _cut(chance: random.Random, text: str) -> str:
    first = chance.randrange(len(text))
    return text[:first] + text[first + chance.choice((1, 10, 1000)) :]


def _stutter(chance: random.Random, text: str) -> str:
    first = chance.randrange(len(text))
    piece = text[first : first + chance.choice((1, 20, 400))]
    return text[:first] + piece * chance.choice((2, 50)) + text[first:]


def _insert(chance: random.Random, text: str) -> str:
    at = chance.randrange(len(text))
    return text[:at] + chance.choice(_SNIPPETS) + text[at:]


_TEXT: Final = (_flip, _cut, _stutter, _insert)


def mutant(chance: random.Random) -> str:
    """Return one definition that was changed a few times."""
    root = ET.fromstring(chance.choice(CORPUS))
    for uuid in root.iter("uuid"):
        uuid.text = uuid_of(chance.randrange(1 << 40))
    for _ in range(chance.randint(0, 5)):
        chance.choice(_TREE)(chance, root)
    text = ET.tostring(root, encoding="unicode")
    for _ in range(chance.choice((0, 0, 0, 0, 0, 1, 2))):
        text = chance.choice(_TEXT)(chance, text or "<")
    return text


def batch(seed: int) -> list[str]:
    """Return the definitions of one host."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    return [mutant(chance) for _ in range(BATCH)]


# what must hold all the same

RULES: Final = (Rule(Policy.ISOLATE, name="*a*a*b"), Rule(Policy.SHARE, flavor="[!m]*"))
GUESTS: Final = GuestSettings(frozenset(Policy) - {Policy.IGNORE}, rules=RULES)
SOURCES: Final = (
    CellSettings(source=PoolSource.FREE, cpus=cpus("0-3,12-15")),
    CellSettings(source=PoolSource.RESERVED),
    CellSettings(),
)


def parsed(text: str) -> str:
    """Parse one definition, hold what comes of it against its bounds, and say what it was."""
    found, why = _tried(text)
    assert why.isprintable()
    assert len(why) < 300
    if found is None:
        return "refused"
    assert len(found.vcpus) <= MAX_VCPUS
    assert len(found.iothreads) <= MAX_IOTHREADS
    assert len(found.name) <= MAX_NAME
    assert len(found.flaws) <= MAX_FLAWS + 1
    assert all(flaw.text.isprintable() and len(flaw.text) < 200 for flaw in found.flaws)
    return "flawed" if found.flaws else "clean"


def _tried(text: str) -> tuple[domainxml.Domain | None, str]:
    try:
        return domainxml.parse(text), ""
    except GuestFailed as error:
        return None, str(error)


def survive(texts: Iterable[str], settings: CellSettings, state: Path) -> None:
    """Plan a host of these guests, a good one among them, and read all that is told of it."""
    good = guest_xml("good", uuid=uuid_of(0), emulatorpin="9", metadata_policy="isolate")
    documents = {f"{number:02}": text for number, text in enumerate(texts, 1)}
    documents["00"] = good.replace("<domain", "<domain id='1'", 1)
    guests, failures = from_documents(documents, GUESTS, NOTHING)
    here, pool = host(TWO_SOCKET_SMT), PoolSettings(settings)
    plan = planner.plan(planner.Question(here, pool, GUESTS.manage, guests, NOTHING, now=0.0))
    steps = transition.diff(plan, guests, transition.Present(here.online, {}))
    check(
        CycleResult(
            Cause.START, 0.0, here, plan, guests, steps, (), plan.memory, {}, failures=failures
        ),
        pool,
    )
    assert uuid_of(0) in {guest.uuid for guest in plan.guests}
    assert all(step.to and step.to <= here.online for step in steps)
    Checkpoint(state, "boot").save(plan.memory, 0.0)
    saved = Checkpoint(state, "boot").load()
    assert saved is not None
    assert saved.memory == plan.memory


def main(count: int) -> None:
    """Try so many, and print what became of them and how long the slowest took."""
    found: Counter[str] = Counter()
    slowest = largest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(-(-count // BATCH)):
            texts = batch(seed)
            for text in texts:
                began = time.process_time()
                found[parsed(text)] += 1
                slowest = max(slowest, time.process_time() - began)
                largest = max(largest, len(text))
            survive(texts, SOURCES[seed % len(SOURCES)], Path(folder) / "state.json")
    figures = {**found, "slowest_seconds": slowest, "largest": largest}
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
