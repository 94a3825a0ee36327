"""A hostile guest, followed from libvirt's answer to all that is told of it.

Each attack is one guest's definition beside that of a good one. Whatever it holds, the good guest
is pinned, the cycle makes no more calls than for two good guests, everything that is told can be
read, and what is wrong is told with the guest and the field.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import offline
from agent.domainxml import MAX_FLAWS, MAX_IOTHREADS, MAX_NAME, MAX_TEXT, MAX_VCPUS
from agent.sysfs import Sysfs
from tests.definitions import NOVA_1_0, NOVA_1_1, nova_xml, own_xml
from tests.hosts import TWO_CELLS_EIGHT_CPUS, write
from tests.mutants import BATCH, HOSTILE, SOURCES, batch, parsed, survive
from tests.node import Node, cpus, pools
from tests.outlets import check, check_decided

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.pool import CellSettings

    Spoil = Callable[[str], str]

ROOT: Final = Path(__file__).parent.parent
LARGE: Final = 1_000_000
NAME: Final = "bad"
OWN: Final = '<emupool:guest xmlns:emupool="urn:emupool:libvirt:1" policy="isolate" cell="0"/>'
UNREAD: Final = "reading"
CALLS: Final = 40
"""Calls that two good guests cost at most in one full cycle."""
SETTINGS: Final = pools(cpus=cpus("0-3"))  # named, since beside Nova's guests nothing else is taken


def swapped(old: str, new: str) -> Spoil:
    def spoil(text: str) -> str:
        assert text.count(old) == 1
        return text.replace(old, new)

    return spoil


def called(name: str) -> Spoil:
    return swapped(f"<name>{NAME}</name>", f"<name>{escape(name)}</name>")


def saying(metadata: str) -> Spoil:
    """Put this where emupool's own element was."""
    return swapped(OWN, metadata)


def labelled(**attributes: str) -> Spoil:
    return saying(own_xml(**{"policy": "isolate", **attributes}))


def tuned(elements: str) -> Spoil:
    return swapped("<cputune>", f"<cputune>{elements}")


def pinned(cpus: str) -> Spoil:
    """Have such an emulator pin; the guest is not managed, or it would have another one soon."""
    spoil = swapped("<emulatorpin cpuset='7'/>", f"<emulatorpin cpuset={quoteattr(cpus)}/>")
    return lambda text: spoil(labelled(policy="ignore")(text))


def counted(vcpus: object) -> Spoil:
    return swapped(">1</vcpu>", f">{vcpus}</vcpu>")


def with_vcpus(count: int, elements: str) -> Spoil:
    return lambda text: tuned(elements)(counted(count)(text))


def before(text: str) -> Spoil:
    return lambda document: text + document


def identified(uuid: Callable[[str], str]) -> Spoil:
    return lambda text: re.sub(r"(?<=<uuid>)[^<]+", lambda found: uuid(found[0]), text)


def lol(text: str) -> str:
    """Entities of which one stands for a billion letters."""
    entities = "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 10))
    return f"<!DOCTYPE domain [<!ENTITY a0 'a'>{entities}]>{called(NAME)(text)}".replace(
        f"<name>{NAME}", "<name>&a9;"
    )


def pins(tag: str, key: str, numbers: range, cpus: Callable[[int], object]) -> str:
    return "".join(f"<{tag} {key}='{n}' cpuset='{cpus(n)}'/>" for n in numbers)


def specs(count: int) -> str:
    inner = "".join(f"<n:extraSpec name='k{n}'>{n}</n:extraSpec>" for n in range(count))
    return nova_xml("isolate").replace("<n:extraSpecs>", f"<n:extraSpecs>{inner}")


# Each attack with the field that is warned about; None: it is no flaw, and does no harm.
ATTACKS: Final[dict[str, tuple[Spoil, str | None]]] = {
    # names
    "name: everything at once": (called(HOSTILE), None),
    "name: empty": (called(""), None),
    "name: white space": (called(" \n\t "), None),
    "name: a flag": (called("--help"), None),
    "name: letters beyond the first plane": (called("🙂" * 60), None),
    "name: combining letters": (called("a" + "\u0301" * 200), None),
    "name: a megabyte": (called("x" * LARGE), "name"),
    "name: a character too long": (called("x" * (MAX_NAME + 1)), "name"),
    "name: as long as can be": (called("x" * MAX_NAME), None),
    "name: the host's": (called("host"), None),
    "name: an escape sequence": (called("\x1b[2J"), UNREAD),
    "name: a zero byte": (called("a\0b"), UNREAD),
    "name: elements": (swapped(f"<name>{NAME}", f"<name>{NAME}<b>x</b>"), None),
    "name: several": (swapped("<name>", "<name>first</name><name>"), None),
    # emupool's own element
    "policy: wrong case": (labelled(policy="ISOLATE"), "metadata policy"),
    "policy: hostile": (labelled(policy=HOSTILE), "metadata policy"),
    "policy: a megabyte": (labelled(policy="x" * LARGE), "metadata policy"),
    "policy: absent": (saying(own_xml()), "metadata policy"),
    "weight: an exponent": (labelled(weight="1e2000000"), "metadata weight"),
    "weight: tiny": (labelled(weight="0.0000000001"), "metadata weight"),
    "weight: not a number": (labelled(weight="NaN"), "metadata weight"),
    "weight: negative": (labelled(weight="-1"), "metadata weight"),
    "weight: too heavy": (labelled(weight="64.01"), "metadata weight"),
    "weight: a fraction": (labelled(weight="1/0"), "metadata weight"),
    "weight: digits of another script": (labelled(weight="٣"), "metadata weight"),
    "weight: a megabyte of digits": (labelled(weight="1" * LARGE), "metadata weight"),
    "weight: hostile": (labelled(weight=HOSTILE), "metadata weight"),
    "cell: huge": (labelled(cell="99999999999"), "metadata cell"),
    "cell: not of this host": (labelled(cell="999999999"), "metadata cell"),
    "cell: negative": (labelled(cell="-1"), "metadata cell"),
    "cell: a superscript": (labelled(cell="²"), "metadata cell"),
    "cell: a megabyte of digits": (labelled(cell="9" * LARGE), "metadata cell"),
    "cell: hostile": (labelled(cell=HOSTILE), "metadata cell"),
    "own element: of another namespace": (saying(own_xml("urn:emupool:libvirt:2")), None),
    "own element: several": (saying(own_xml(policy="ignore") + OWN), None),
    "own element: nested deeper": (saying(f"<x>{OWN}</x>"), None),
    "own element: without a namespace": (saying("<guest policy='isolate'/>"), None),
    # Nova's
    "nova: misspelt key": (
        saying(nova_xml("isolate", key="hw:emulator_thread_policy")),
        "hw:emulator_thread_policy",
    ),
    "nova: wrong value": (saying(nova_xml("ISOLATE")), "hw:emulator_threads_policy"),
    "nova: hostile value": (saying(nova_xml(escape(HOSTILE))), "hw:emulator_threads_policy"),
    "nova: a megabyte": (saying(nova_xml("x" * LARGE)), "hw:emulator_threads_policy"),
    "nova: CDATA": (saying(nova_xml("<![CDATA[isolate]]>")), None),
    "nova: thousands of extra specs": (saying(specs(20_000)), None),
    "nova: a flavor of a megabyte": (saying(nova_xml(flavor="f" * LARGE)), "nova flavor name"),
    "nova: hostile flavor": (saying(nova_xml("isolate", flavor=HOSTILE)), None),
    "nova: both namespaces": (
        saying(nova_xml("share", namespace=NOVA_1_0) + nova_xml("isolate", namespace=NOVA_1_1)),
        None,
    ),
    "nova: thousands of instances": (saying(nova_xml("isolate") * 5000), None),
    # numbers and CPU lists
    "vcpu: too many": (counted(MAX_VCPUS + 1), "vcpu"),
    "vcpu: a megabyte of digits": (counted("9" * LARGE), "vcpu"),
    "vcpu: negative": (counted("-1"), "vcpu"),
    "vcpu: as many as can be, pinned everywhere": (
        with_vcpus(MAX_VCPUS, pins("vcpupin", "vcpu", range(MAX_VCPUS), lambda _: "0-8191")),
        None,
    ),
    "vcpu: as many as can be, pinned apart": (
        with_vcpus(
            MAX_VCPUS, pins("vcpupin", "vcpu", range(MAX_VCPUS), lambda n: f"{n % 4000 + 8}")
        ),
        None,
    ),
    "vcpupin: of vCPUs that are not there": (
        tuned(pins("vcpupin", "vcpu", range(1, 60_000), lambda n: f"0-{n % 8000}")),
        None,
    ),
    "vcpupin: beyond any kernel": (
        tuned("<vcpupin vcpu='0' cpuset='0-65535'/>"),
        "vcpupin@cpuset",
    ),
    "vcpupin: thousands that are wrong": (
        tuned(pins("vcpupin", "vcpu", range(-30_000, 0), lambda _: "1")),
        "definition",
    ),
    "vcpusched: thousands": (
        tuned("<vcpusched vcpus='0-8191' scheduler='fifo' priority='1'/>" * 30_000),
        None,
    ),
    "emulatorpin: a megabyte": (
        pinned("7," * 500_000 + "7"),
        "emulatorpin@cpuset",
    ),
    "emulatorpin: nothing left": (
        pinned("7,^7"),
        "emulatorpin@cpuset",
    ),
    "emulatorpin: hostile": (
        pinned(HOSTILE),
        "emulatorpin@cpuset",
    ),
    "emulatorsched: real-time": (
        lambda text: tuned("<emulatorsched scheduler='fifo' priority='99'/>")(saying("")(text)),
        "emulatorsched",
    ),
    "iothreads: too many": (
        swapped("<cputune>", f"<iothreads>{MAX_IOTHREADS + 1}</iothreads><cputune>"),
        "iothreads",
    ),
    "iothreads: thousands of ids": (
        swapped(
            "<cputune>",
            "<iothreadids>"
            + "".join(f"<iothread id='{n}'/>" for n in range(1, 50_000))
            + "</iothreadids><cputune>",
        ),
        "iothreads",
    ),
    "nodeset: beyond any kernel": (
        swapped("<os>", "<numatune><memory nodeset='0-99999'/></numatune><os>"),
        "memory@nodeset",
    ),
    "partition: a megabyte of parts": (
        swapped("<os>", f"<resource><partition>{'/a' * 500_000}</partition></resource><os>"),
        "partition",
    ),
    "partition: a way out": (
        swapped("<os>", "<resource><partition>/../../../etc</partition></resource><os>"),
        None,
    ),
    # the document itself
    "document: a type": (before("<!DOCTYPE domain>"), UNREAD),
    "document: a billion letters": (lol, UNREAD),
    "document: an entity": (swapped(f"<name>{NAME}", "<name>&none;"), UNREAD),
    "document: nothing": (lambda _: "", UNREAD),
    "document: cut off": (lambda text: text[: len(text) // 2], UNREAD),
    "document: longer than libvirt can send": (lambda text: text + " " * MAX_TEXT, UNREAD),
    "document: another root": (lambda text: text.replace("domain", "network"), UNREAD),
    "document: a namespace": (swapped(" type='qemu'", " xmlns='urn:x' type='qemu'"), UNREAD),
    "document: nested without end": (saying("<x>" * LARGE + "</x>" * 100), UNREAD),
    "document: nested deeply": (saying(OWN + "<x>" * 100_000 + "</x>" * 100_000), None),
    "document: a megabyte of attributes": (
        saying(OWN + "<x " + " ".join(f"a{n}=''" for n in range(100_000)) + "/>"),
        None,
    ),
    "document: thousands of namespaces": (
        saying(OWN + "<x " + " ".join(f"xmlns:a{n}='u{n}'" for n in range(40_000)) + "/>"),
        None,
    ),
    "document: comments and instructions": (
        lambda text: "<?x y?><!-- c -->" + saying(f"<!-- {OWN} --><?emupool x?>{OWN}")(text),
        None,
    ),
    "document: a pin in CDATA": (
        saying(OWN + "<x><![CDATA[<emulatorpin cpuset='7'/>]]></x>"),
        None,
    ),
    "uuid: in braces": (identified(lambda uuid: f"{{{uuid}}}"), UNREAD),
    "uuid: in upper case": (identified(str.upper), None),
    "uuid: another guest's": (identified(lambda uuid: uuid[:-4] + "beef"), UNREAD),
    "uuid: several": (swapped("<uuid>", "<uuid/><uuid>"), UNREAD),
    "uuid: hostile": (identified(lambda _: escape(HOSTILE)), UNREAD),
}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "state.json", SETTINGS)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(TWO_CELLS_EIGHT_CPUS, tmp_path_factory.mktemp("host"))


def arrive(node: Node, spoil: Spoil) -> tuple[str, str]:
    """Start a good guest and a bad one; return their UUIDs."""
    good, bad = node.define("good"), node.define(NAME)
    node.fake.guests[bad].spoil = spoil
    return node.fake.start(good), node.fake.start(bad)


@pytest.mark.parametrize(("spoil", "field"), ATTACKS.values(), ids=ATTACKS)
def test_a_hostile_guest_harms_nobody_and_breaks_nothing_that_is_told(
    node: Node, spoil: Spoil, field: str | None
) -> None:
    good, bad = arrive(node, spoil)
    for result in (node.reacted(), node.cycle()):
        assert len(node.fake.log) <= CALLS
        assert result.memory.guests[good].placed == node.pool(result) == node.placed(good)
        told = check(result, node.settings.pool)
        label = next((one.label for one in result.guests if one.uuid == bad), bad)
        about = {(row["guest"], row["field"]) for row in told["warnings"]}
        assert (label, field) in about if field else not about
        assert all(guest == label for guest, _ in about)
        assert len(told["warnings"]) <= MAX_FLAWS + 5
        assert all(len(row["text"]) < 1000 for row in told["warnings"])
        assert all(row["text"].isprintable() for row in told["warnings"])
    assert result.steps == ()
    node.boot()  # what was saved of it can be read again
    assert node.cycle().steps == ()


@pytest.mark.parametrize(
    "name",
    ["name: a megabyte", "cell: huge", "document: nothing", "uuid: another guest's"],
)
def test_what_is_read_while_a_guest_starts_is_no_different(node: Node, name: str) -> None:
    spoil, field = ATTACKS[name]
    good, bad = arrive(node, spoil)
    told = check(node.foresee(bad), node.settings.pool)
    assert {row["field"] for row in told["warnings"]} == {field}
    node.reacted()
    assert node.placed(good) == cpus("0")


@pytest.mark.parametrize(("spoil", "field"), ATTACKS.values(), ids=ATTACKS)
def test_a_plan_from_files_tells_the_same(
    node: Node, tmp_path: Path, host: Path, spoil: Spoil, field: str | None
) -> None:
    good, bad = arrive(node, spoil)
    domains = tmp_path / "domains"
    domains.mkdir()
    for uuid, name in ((good, "good.xml"), (bad, "bad.xml")):
        (domains / name).write_bytes(node.fake.guests[uuid].xml().encode())
    seen = offline.read_files(Sysfs(host), domains, None, SETTINGS.guests)
    decided = offline.decide(seen, SETTINGS, damped=True)
    told = check_decided(decided)
    assert good in {row["uuid"] for row in told["guests"] if row["emulator_pcpus"]}
    if field == UNREAD:  # with another UUID it is just another guest
        assert len(told["guests"]) + len(told["warnings"]) == 2
    elif field:
        assert field in {row["field"] for row in told["warnings"]}


def test_the_command_line_tells_of_all_of_them_at_once(
    node: Node, tmp_path: Path, host: Path
) -> None:
    domains = tmp_path / "domains"
    domains.mkdir()
    for number, (spoil, _) in enumerate(ATTACKS.values()):
        uuid = node.define(f"{NAME}{number}")
        text = node.fake.guests[uuid].xml().replace(f"{NAME}{number}", NAME)
        (domains / f"{number:03}\x1b[2J\n.xml").write_bytes(spoil(text).encode())
    for command in (["plan"], ["account", "--json"]):
        ended = subprocess.run(
            [sys.executable, "-m", "agent", *command, "--sysfs-root", host, "--domains", domains],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-500:]
        lines = ended.stderr.splitlines()
        assert all(line.startswith("emupool: warning: ") and line.isprintable() for line in lines)
        assert (len(lines) > 50) == (command == ["plan"])
        if "--json" in command:
            assert json.loads(ended.stdout)["schema"] == 1


@settings(max_examples=1000 // BATCH)
@given(seed=st.integers(min_value=0), source=st.sampled_from(SOURCES))
def test_whatever_chance_makes_of_a_definition_nothing_is_broken(
    tmp_path_factory: pytest.TempPathFactory, seed: int, source: CellSettings
) -> None:
    texts = batch(seed)
    for text in texts:
        parsed(text)
    survive(texts, source, tmp_path_factory.getbasetemp() / "mutants.json")


def test_chance_makes_all_kinds_of_definitions() -> None:
    assert {parsed(text) for text in batch(1)} == {"clean", "flawed", "refused"}
