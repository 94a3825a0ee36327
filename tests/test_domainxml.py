"""Domain XML into values, whatever a tenant wrote into it."""

from __future__ import annotations

import time
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cpuset import CellId, CpuSet
from agent.domainxml import (
    MAX_FLAWS,
    MAX_IOTHREADS,
    MAX_NAME,
    MAX_TAGS,
    MAX_TEXT,
    MAX_VCPUS,
    NovaMetadata,
    OwnMetadata,
    Pins,
    parse,
)
from agent.errors import GuestFailed
from tests.builders import cpus, uuid_of
from tests.definitions import NOVA_1_0, NOVA_1_1, NOVA_ISOLATE, domain_xml, nova_xml, own_xml

KEY: Final = "hw:emulator_threads_policy"


def test_a_guest_as_nova_writes_it() -> None:
    found = parse(domain_xml(NOVA_ISOLATE, number=7, running_as=3, metadata=nova_xml("isolate")))
    assert (found.uuid, found.name, found.id) == (uuid_of(7), "guest-7", 3)
    assert [(vcpu.cpus, vcpu.claim, vcpu.realtime) for vcpu in found.vcpus] == [
        (cpus("4"), 4, False),
        (cpus("5"), 5, False),
    ]
    assert found.claims == cpus("4-5")
    assert found.realtime_claims == CpuSet()
    assert found.pins == Pins(cpus("6"), ((1, cpus("6")),))
    assert found.memnode == found.memory_nodes == frozenset({CellId(0)})
    assert found.nova == NovaMetadata("m1.nfv", ((KEY, "isolate"),))
    assert found.own is None
    assert found.flaws == ()


def test_the_least_that_is_a_domain() -> None:
    found = parse(f"<domain><uuid>{uuid_of(1).upper()}</uuid></domain>")
    assert (found.uuid, found.name, found.id) == (uuid_of(1), "", None)
    assert len(found.vcpus) == 1
    assert found.vcpus[0].cpus is None
    assert found.pins == Pins(None)
    assert (found.memnode, found.memory_nodes, found.partition) == (None, None, None)
    assert (found.own, found.nova, found.flaws) == (None, None, ())


@pytest.mark.parametrize(
    ("inner", "masks"),
    [
        pytest.param("", [None, None], id="no pin and no cpuset is anywhere"),
        pytest.param("<cputune><vcpupin vcpu='1' cpuset='4'/></cputune>", [None, "4"], id="a pin"),
        pytest.param(
            "<cputune><vcpupin vcpu='0' cpuset='4-7,^5'/></cputune>",
            ["4,6-7", None],
            id="libvirt's exclusion",
        ),
        pytest.param(
            "<cputune><vcpupin vcpu='5' cpuset='4'/></cputune>", [None, None], id="no such vCPU"
        ),
        pytest.param(
            "<cputune><vcpupin vcpu='0' cpuset='^1'/></cputune>", [None, None], id="an empty pin"
        ),
    ],
)
def test_the_effective_mask_of_a_vcpu(inner: str, masks: list[str | None]) -> None:
    found = parse(domain_xml(inner))
    assert [vcpu.cpus and str(vcpu.cpus) for vcpu in found.vcpus] == masks
    assert str(found.claims) == ",".join(mask for mask in masks if mask == "4")


def test_the_cpuset_of_vcpu_is_the_mask_where_there_is_no_pin() -> None:
    text = domain_xml("<cputune><vcpupin vcpu='1' cpuset='8'/></cputune>").replace(
        "<vcpu ", "<vcpu cpuset='2' current='1' "
    )
    found = parse(text)
    assert [vcpu.claim for vcpu in found.vcpus] == [2, 8]
    assert found.claims == cpus("2,8"), "a vCPU that is off line claims too"
    assert found.vcpu_cpuset == cpus("2")


def test_realtime() -> None:
    found = parse(
        domain_xml(
            """<iothreads>3</iothreads><cputune>
            <vcpupin vcpu='0' cpuset='4'/><vcpupin vcpu='1' cpuset='5'/>
            <vcpupin vcpu='2' cpuset='6'/>
            <vcpusched vcpus='1-2,^2' scheduler='fifo' priority='1'/>
            <vcpusched vcpus='0' scheduler='batch'/>
            <iothreadsched iothreads='2' scheduler='rr' priority='1'/>
            <emulatorsched scheduler='rr' priority='1'/></cputune>""",
            vcpus="3",
        )
    )
    assert [vcpu.realtime for vcpu in found.vcpus] == [False, True, False]
    assert found.realtime_claims == cpus("5")
    assert [thread.realtime for thread in found.iothreads] == [False, True, False]
    assert found.emulator_realtime
    assert not parse(
        domain_xml("<cputune><emulatorsched scheduler='idle'/></cputune>")
    ).emulator_realtime


@pytest.mark.parametrize(
    ("inner", "ids"),
    [
        pytest.param("", [], id="none"),
        pytest.param("<iothreads>2</iothreads>", [1, 2], id="counted"),
        pytest.param(
            "<iothreads>3</iothreads><iothreadids><iothread id='2'/></iothreadids>",
            [1, 2, 3],
            id="the unnamed take the lowest free ids",
        ),
        pytest.param("<iothreadids><iothread id='9'/></iothreadids>", [9], id="named only"),
        pytest.param(
            "<iothreadids><iothread id='0'/><iothread/></iothreadids>", [], id="bad names"
        ),
    ],
)
def test_iothread_ids(inner: str, ids: list[int]) -> None:
    assert [thread.id for thread in parse(domain_xml(inner)).iothreads] == ids


def test_the_pin_of_an_iothread() -> None:
    pins = parse(domain_xml(NOVA_ISOLATE)).pins
    assert pins.iothread(1) == cpus("6")
    assert pins.iothread(2) is None


@pytest.mark.parametrize(
    ("inner", "memnode", "memory"),
    [
        pytest.param(
            "<numatune><memnode cellid='1' nodeset='1'/></numatune>", None, None, id="not cell 0"
        ),
        pytest.param(
            "<numatune><memory nodeset='0-1'/><memnode cellid='0' nodeset='1'/></numatune>",
            {1},
            {0, 1},
            id="both",
        ),
        pytest.param(
            "<numatune><memory placement='auto'/></numatune>", None, None, id="left to numad"
        ),
        pytest.param("<numatune><memory nodeset='x'/></numatune>", None, None, id="unreadable"),
    ],
)
def test_numa_tuning(inner: str, memnode: set[int] | None, memory: set[int] | None) -> None:
    found = parse(domain_xml(inner))
    assert (found.memnode, found.memory_nodes) == (memnode, memory)


def test_partition() -> None:
    inner = "<resource><partition>/machine/db</partition></resource>"
    assert parse(domain_xml(inner)).partition == "/machine/db"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        pytest.param("", None, id="no element"),
        pytest.param(nova_xml(), NovaMetadata("m1.nfv", ()), id="extra specs, but not that one"),
        pytest.param(
            nova_xml("isolate", namespace=NOVA_1_0),
            NovaMetadata("m1.nfv", ((KEY, "isolate"),)),
            id="the older namespace",
        ),
        pytest.param(nova_xml(specs=False), NovaMetadata("m1.nfv", None), id="before 2025.2"),
        pytest.param(nova_xml(flavor=None), NovaMetadata(None, None), id="no flavor"),
        pytest.param(
            nova_xml("  isolate\n "), NovaMetadata("m1.nfv", ((KEY, "isolate"),)), id="white space"
        ),
        pytest.param(
            nova_xml("isolate", namespace="http://openstack.org/xmlns/libvirt/nova/2.0"),
            None,
            id="a namespace that is not Nova's",
        ),
        pytest.param(
            nova_xml(specs=False, namespace=NOVA_1_0) + nova_xml("share", namespace=NOVA_1_1),
            NovaMetadata("m1.nfv", ((KEY, "share"),)),
            id="of two the newer",
        ),
    ],
)
def test_novas_metadata(metadata: str, expected: NovaMetadata | None) -> None:
    assert parse(domain_xml(metadata=metadata)).nova == expected


def test_extra_specs_of_another_namespace_are_not_novas() -> None:
    text = nova_xml("isolate").replace("<n:extraSpec ", "<o:extraSpec xmlns:o='urn:other' ")
    text = text.replace("</n:extraSpec>", "</o:extraSpec>")
    assert parse(domain_xml(metadata=text)).nova == NovaMetadata("m1.nfv", ())


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        pytest.param("", None, id="none"),
        pytest.param(
            own_xml(policy="isolate", cell="1", weight="0.5"),
            OwnMetadata("isolate", "1", "0.5"),
            id="all attributes",
        ),
        pytest.param(own_xml(policy=""), OwnMetadata("", None, None), id="an empty policy"),
        pytest.param(own_xml("urn:emupool:libvirt:2", policy="isolate"), None, id="namespace"),
        pytest.param("<guest policy='isolate'/>", None, id="no namespace"),
        pytest.param(f"<x>{own_xml(policy='isolate')}</x>", None, id="not where it belongs"),
    ],
)
def test_own_metadata(metadata: str, expected: OwnMetadata | None) -> None:
    assert parse(domain_xml(metadata=metadata)).own == expected


@pytest.mark.parametrize(
    ("inner", "field"),
    [
        pytest.param(
            "<cputune><emulatorpin cpuset='7-1'/></cputune>", "emulatorpin@cpuset", id="pin"
        ),
        pytest.param(
            "<cputune><emulatorpin cpuset=''/></cputune>", "emulatorpin@cpuset", id="empty"
        ),
        pytest.param(
            "<cputune><emulatorpin cpuset='0-99999999'/></cputune>",
            "emulatorpin@cpuset",
            id="more pCPUs than there can be",
        ),
        pytest.param("<cputune><vcpupin cpuset='1'/></cputune>", "vcpupin@vcpu", id="no vcpu"),
        pytest.param(
            "<cputune><vcpupin vcpu='-1' cpuset='1'/></cputune>", "vcpupin@vcpu", id="negative"
        ),
        pytest.param("<numatune><memory nodeset='a'/></numatune>", "memory@nodeset", id="node set"),
        pytest.param("<iothreads>many</iothreads>", "iothreads", id="iothreads in words"),
        pytest.param(f"<iothreads>{MAX_IOTHREADS + 1}</iothreads>", "iothreads", id="too many"),
        pytest.param(
            "<resource><partition>/" + "x" * 4096 + "</partition></resource>",
            "partition",
            id="a path that is none",
        ),
    ],
)
def test_what_cannot_be_read_is_a_flaw_and_counts_as_absent(inner: str, field: str) -> None:
    found = parse(domain_xml(inner))
    assert [flaw.field for flaw in found.flaws] == [field]
    assert found.emulator is None
    assert found.claims == CpuSet()
    assert found.memory_nodes is None
    assert found.iothreads == ()


def test_the_encoding_that_a_text_says_it_has_is_nothing_to_text() -> None:
    assert parse("<?xml version='1.0' encoding='none-such'?>" + domain_xml()).uuid == uuid_of(1)


@pytest.mark.parametrize("count", ["two", "", "-1", "1e3", str(MAX_VCPUS + 1), "9" * 400])
def test_a_number_of_vcpus_that_cannot_be(count: str) -> None:
    found = parse(domain_xml(vcpus=count))
    expected = 1 if not count else 0  # an empty element is as good as none
    assert (len(found.vcpus), len(found.flaws)) == (expected, 1 - expected)
    assert all(len(flaw.text) < 100 for flaw in found.flaws)


def test_an_id_that_is_no_number() -> None:
    found = parse(f"<domain id='-1'><uuid>{uuid_of(1)}</uuid></domain>")
    assert found.id is None
    assert [flaw.field for flaw in found.flaws] == ["domain@id"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("<domain>", id="cut off"),
        pytest.param("<domain></domain>", id="no UUID"),
        pytest.param("<domain><uuid>x\n\x85y</uuid></domain>", id="a UUID that is none"),
        pytest.param(f"<domain><uuid>{uuid_of(1)}0</uuid></domain>", id="a UUID with more to it"),
        pytest.param(f"<network><uuid>{uuid_of(1)}</uuid></network>", id="a network"),
        pytest.param(
            f"<domain xmlns='urn:x'><uuid>{uuid_of(1)}</uuid></domain>", id="another's domain"
        ),
        pytest.param(f"<domain><uuid>{uuid_of(1)}</uuid>\x00</domain>", id="a zero byte"),
        pytest.param(f"<domain><uuid>{uuid_of(1)}</uuid>\x1b[2J</domain>", id="an escape sequence"),
        pytest.param(f"<domain><uuid>{uuid_of(1)}</uuid>\ud800</domain>", id="half a character"),
        pytest.param(f"<domain><uuid>{uuid_of(1)}</uuid>&a;</domain>", id="an unknown entity"),
        pytest.param(
            f"<!DOCTYPE domain><domain><uuid>{uuid_of(1)}</uuid></domain>", id="a document type"
        ),
        pytest.param(
            '<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
            f"<domain><uuid>{uuid_of(1)}</uuid><name>&b;</name></domain>",
            id="entities that grow",
        ),
        pytest.param(
            '<!DOCTYPE d [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
            f"<domain><uuid>{uuid_of(1)}</uuid><name>&a;</name></domain>",
            id="a file of the host",
        ),
        pytest.param(f"<domain><uuid>&{'e' * 100000};</uuid></domain>", id="a name without end"),
        pytest.param(f"<{'d' * 100000}/>", id="a root element without end"),
    ],
)
def test_what_is_no_domain_fails_that_guest_alone_in_a_short_line(text: str) -> None:
    with pytest.raises(GuestFailed) as error:
        parse(text)
    assert len(str(error.value)) < 300
    assert str(error.value).isprintable()


def test_bounds_are_met_to_the_last_one() -> None:
    """What is just as large as can be is read; the tests of hostile guests go beyond."""
    name = "x" * MAX_NAME
    inner = f"<iothreads>{MAX_IOTHREADS}</iothreads>"
    text = domain_xml(inner, vcpus=str(MAX_VCPUS), metadata=nova_xml(flavor=name))
    text = text.replace("guest-1", name)
    text += "<!---->" * (MAX_TAGS - text.count("<"))
    text += " " * (MAX_TEXT - len(text))
    found = parse(text)
    assert found.flaws == ()
    assert (found.name, found.nova and found.nova.flavor) == (name, name)
    assert (len(found.vcpus), len(found.iothreads)) == (MAX_VCPUS, MAX_IOTHREADS)
    for more in (text + " ", text.replace(" <", "<", 1).rstrip() + "<!---->"):
        with pytest.raises(GuestFailed, match="more than"):
            parse(more)


def test_names_are_cut() -> None:
    text = domain_xml(metadata=nova_xml(flavor="f" * 999)).replace("guest-1", "n" * 999)
    found = parse(text)
    assert (found.name, found.nova and found.nova.flavor) == ("n" * MAX_NAME, "f" * MAX_NAME)
    assert [flaw.field for flaw in found.flaws] == ["name", "nova flavor name"]


def test_of_many_flaws_the_first_are_told_and_the_others_counted() -> None:
    pins = "<vcpupin vcpu='x' cpuset='1'/>" * (MAX_FLAWS + 7)
    flaws = parse(domain_xml(f"<cputune>{pins}</cputune>")).flaws
    assert [flaw.field for flaw in flaws] == [*["vcpupin@vcpu"] * MAX_FLAWS, "definition"]
    assert flaws[-1].text == "7 flaws more"


def test_of_extra_specs_only_those_are_kept_that_speak_of_emulator_threads() -> None:
    spec = "<n:extraSpec name='hw:cpu_policy'>dedicated</n:extraSpec>"
    text = nova_xml("isolate").replace("<n:extraSpecs>", f"<n:extraSpecs>{spec}")
    assert parse(domain_xml(metadata=text)).nova == NovaMetadata("m1.nfv", ((KEY, "isolate"),))


def test_what_pins_a_thread_that_is_not_there_is_not_even_read() -> None:
    pins = "<vcpupin vcpu='2' cpuset='x'/><iothreadpin iothread='1' cpuset='y'/>"
    assert parse(domain_xml(f"<cputune>{pins}</cputune>")).flaws == ()


def test_a_megabyte_of_metadata_is_read_in_passing() -> None:
    tenant = "<x:t xmlns:x='urn:t'>" + "<x:a b='c'>text &lt;&#x85;</x:a>" * 35000 + "</x:t>"
    began = time.process_time()
    found = parse(domain_xml(NOVA_ISOLATE, metadata=nova_xml("isolate") + tenant))
    assert found.nova is not None
    assert found.emulator == cpus("6")
    assert time.process_time() - began < 2


def test_metadata_nested_without_end_breaks_nothing() -> None:
    deep = "<x>" * 100_000 + "</x>" * 100_000
    assert parse(domain_xml(NOVA_ISOLATE, metadata=deep)).emulator == cpus("6")


def test_a_thousand_pins_of_one_vcpu_leave_the_last() -> None:
    pins = "".join(f"<vcpupin vcpu='0' cpuset='{n}'/>" for n in range(1000))
    assert parse(domain_xml(f"<cputune>{pins}</cputune>")).claims == cpus("999")


@given(
    st.text(
        st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="<&'\""),
        max_size=60,
    )
)
def test_any_text_in_any_attribute_is_a_flaw_at_most(text: str) -> None:
    inner = (
        f"<iothreads>{text}</iothreads><cputune><emulatorpin cpuset='{text}'/>"
        f"<vcpupin vcpu='{text}' cpuset='{text}'/><iothreadpin iothread='{text}' cpuset='{text}'/>"
        f"<vcpusched vcpus='{text}' scheduler='fifo'/></cputune>"
        f"<numatune><memory nodeset='{text}'/><memnode cellid='0' nodeset='{text}'/></numatune>"
    )
    metadata = nova_xml(text) + own_xml(policy=text, cell=text, weight=text)
    found = parse(domain_xml(inner, metadata=metadata, vcpus=text))
    assert all(flaw.text.isprintable() and len(flaw.text) < 200 for flaw in found.flaws)


@pytest.mark.parametrize(
    ("inner", "resting"),
    [
        pytest.param("<cputune><emulatorpin cpuset='6'/></cputune>", "6", id="its pin"),
        pytest.param("", "0-3", id="without a pin the cpuset of its vCPUs"),
    ],
)
def test_where_emulator_threads_rest(inner: str, resting: str) -> None:
    text = domain_xml(inner).replace("<vcpu ", "<vcpu cpuset='0-3' ")
    assert parse(text).resting(cpus("0-7")) == cpus(resting)
    assert parse(domain_xml("")).resting(cpus("0-7")) == cpus("0-7")
