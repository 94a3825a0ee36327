"""What the texts of a host mean: tables of one file each, and the invariants of any texts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import topology
from agent.cpuset import CellId, CpuSet
from agent.topology import Attribute, Cell, CpuReading, NodeReading, Readings
from tests.hosts import NO_NUMA, TWO_CELLS_EIGHT_CPUS, host, mask

if TYPE_CHECKING:
    from agent.topology import Discovery, Host, Pcpu

LIST = "core_cpus_list"
MASK = "core_cpus"


def at(path: str, text: str | None) -> Attribute | None:
    return None if text is None else Attribute(path, text)


def two(cpu: CpuReading, online: str = "0-1") -> Discovery:
    """A host of two pCPUs, of which 1 is as given."""
    other = CpuReading(0, siblings=at(LIST, "0-1"), l3=at(LIST, "0-1"))
    return topology.interpret(Readings(cpus=(other, cpu), online=at("online", online)))


def the(found: Discovery, cpu: int = 1) -> Pcpu:
    return next(pcpu for pcpu in found.host.cpus if pcpu.id == cpu)


@pytest.mark.parametrize(
    ("text", "known", "problems"),
    [
        pytest.param(None, None, 0, id="no file: unknown"),
        pytest.param("0", 0, 0, id="zero is an id"),
        pytest.param("8442", 8442, 0, id="arm64 prints offsets into a firmware table"),
        pytest.param("65535", 65535, 0, id="sixteen bits of ones are an id like any other"),
        pytest.param("65536", 65536, 0, id="an id may need more than sixteen bits"),
        pytest.param("-1", None, 0, id="the architecture has no such level"),
        pytest.param("4294967295", None, 0, id="minus one, printed as unsigned"),
        pytest.param("", None, 1, id="an empty file is wrong"),
        pytest.param("none", None, 1, id="a word is wrong"),
        pytest.param("1.0", None, 1, id="a fraction is wrong"),
        pytest.param("0x1", None, 1, id="hexadecimal is wrong"),
        pytest.param("1\n2", None, 1, id="two ids are wrong"),
        pytest.param("\u0661", None, 1, id="an arabic digit is wrong"),
        pytest.param("9" * 5000, None, 1, id="five thousand digits are wrong"),
    ],
)
def test_ids(text: str | None, known: int | None, problems: int) -> None:
    one = at("id", text)
    found = two(CpuReading(1, package=one, die=one, core=one))
    assert (the(found).package, the(found).die, the(found).core) == (known, known, known)
    assert len(found.problems) == problems * 3


@pytest.mark.parametrize(
    ("name", "text", "known", "problems"),
    [
        pytest.param(LIST, None, None, 0, id="no file: unknown"),
        pytest.param(LIST, "0-1", "0-1", 0, id="a list that the other confirms"),
        pytest.param(MASK, "3", "0-1", 0, id="a mask whose first word is short"),
        pytest.param(MASK, "00000000,00000003", "0-1", 0, id="a mask of two words"),
        pytest.param(MASK, "0," * 40 + "3", "0-1", 0, id="a mask of over 1,024 bits"),
        pytest.param("thread_siblings", "3", "0-1", 0, id="a mask by its deprecated name"),
        pytest.param("shared_cpu_map", "3", "0-1", 0, id="a mask of sharers"),
        pytest.param(LIST, "0-1,8191", "0-1", 0, id="a pCPU that is not online is left out"),
        pytest.param(LIST, "", None, 1, id="an empty list is wrong: it lacks the pCPU itself"),
        pytest.param(MASK, "00000000", None, 1, id="an empty mask is wrong as well"),
        pytest.param(LIST, "0", None, 1, id="a list without the pCPU itself is wrong"),
        pytest.param(LIST, "0-", None, 1, id="half a range is wrong"),
        pytest.param(LIST, "1-0", None, 1, id="a range that runs backwards is wrong"),
        pytest.param(LIST, "0-99999", None, 1, id="no kernel has so many"),
        pytest.param(LIST, "(null)", None, 1, id="an unset pointer is wrong"),
        pytest.param(LIST, "\ufffd\ufffd", None, 1, id="binary rubbish is wrong"),
        pytest.param(MASK, "", None, 1, id="an empty file is no mask"),
        pytest.param(MASK, "fg", None, 1, id="a mask of other letters is wrong"),
        pytest.param(MASK, "f" * 9, None, 1, id="a word of over 32 bits is wrong"),
        pytest.param(LIST, "1", "1", 1, id="alone: the one that claims it is disputed instead"),
    ],
)
def test_sets(name: str, text: str | None, known: str | None, problems: int) -> None:
    found = two(CpuReading(1, siblings=at(name, text), l3=at(name, text)))
    expected = None if known is None else CpuSet.parse(known)
    assert (the(found).siblings, the(found).l3) == (expected, expected)
    assert len(found.problems) == problems * 2


def test_a_set_that_a_member_contradicts_is_unknown() -> None:
    found = two(CpuReading(1, siblings=at(LIST, "1"), l3=at(LIST, "0-1")))
    assert (the(found, 0).siblings, the(found, 1).siblings) == (None, CpuSet.of(1))
    assert the(found, 0).l3 == CpuSet.of(0, 1)
    assert found.problems == ("pCPUs 0 say that 0-1 share a core, pCPUs 1 of these say otherwise",)


def test_a_member_that_says_nothing_contradicts_nothing() -> None:
    found = two(CpuReading(1))
    assert (the(found, 0).siblings, the(found, 1).siblings) == (CpuSet.of(0, 1), None)
    assert not found.problems


def test_one_wrong_set_does_not_cost_the_others_theirs() -> None:
    cpus = tuple(CpuReading(n, l3=at(LIST, "0-7" if n == 3 else str(n))) for n in range(8))
    found = topology.interpret(Readings(cpus=cpus))
    assert [cpu.l3 for cpu in found.host.cpus] == [
        None if n == 3 else CpuSet.of(n) for n in range(8)
    ]


def test_of_an_offline_pcpu_only_the_ids_are_taken() -> None:
    stale = at(LIST, "0-1")
    found = two(
        CpuReading(1, siblings=stale, l3=stale, package=at("id", "5"), core=at("id", "7")), "0"
    )
    off = the(found)
    assert (off.online, off.siblings, off.l3, off.cell) == (False, None, None, None)
    assert (off.package, off.core) == (5, 7)
    assert the(found, 0).siblings == CpuSet.of(0)


@pytest.mark.parametrize(
    ("online", "present", "switches", "expected"),
    [
        pytest.param("0,2", "0-3", "1111", ("0,2", "0-3"), id="the lists say it"),
        pytest.param(None, "0-3", "1-01", ("0-1,3", "0-3"), id="no list: the switches say it"),
        pytest.param("", "0-3", "0-10", ("1-2", "0-3"), id="nobody reads an empty list"),
        pytest.param("0-", None, "1001", ("0,3", "0-3"), id="a broken list is no list"),
        pytest.param("0", None, "----", ("0", "0-3"), id="no list of the present: directories"),
        pytest.param("0", "0-1", "----", ("0", "0-1"), id="a directory of a pCPU not present"),
        pytest.param("0-1", "0", "", ("0-1", "0-1"), id="what is online is present"),
        pytest.param(None, "0-9", "11", ("0-1", "0-9"), id="present without a directory: offline"),
        pytest.param(None, None, "1?", ("0", "0-1"), id="a broken switch does not say online"),
        pytest.param("8191", "0,8191", "1", ("8191", "0,8191"), id="the largest id there is"),
        pytest.param(None, None, "", ("", ""), id="nothing at all"),
    ],
)
def test_online_and_present(
    online: str | None, present: str | None, switches: str, expected: tuple[str, str]
) -> None:
    readings = Readings(
        online=at("online", online),
        present=at("present", present),
        cpus=tuple(
            CpuReading(number, online=None if switch == "-" else at("online", switch))
            for number, switch in enumerate(switches)
        ),
    )
    found = topology.interpret(readings).host
    assert (str(found.online), str(CpuSet(cpu.id for cpu in found.cpus))) == expected
    assert topology.online_cpus(readings) == found.online


@pytest.mark.parametrize(
    ("text", "isolated", "problems"),
    [
        pytest.param(None, "", 0, id="no file"),
        pytest.param("", "", 0, id="none"),
        pytest.param("(null)", "", 0, id="a list that was never made"),
        pytest.param("1-2", "1-2", 0, id="one of them is offline"),
        pytest.param("2,700", "2", 0, id="one of them is not present"),
        pytest.param("managed_irq", "", 1, id="a word is wrong"),
    ],
)
def test_isolated(text: str | None, isolated: str, problems: int) -> None:
    found = topology.interpret(
        Readings(
            online=at("online", "0-1"), present=at("present", "0-2"), isolated=at("isolated", text)
        )
    )
    assert str(found.host.isolated) == isolated
    assert CpuSet(cpu.id for cpu in found.host.cpus if cpu.isolated) == found.host.isolated
    assert len(found.problems) == problems


def nodes(*lists: str | None, name: str = "cpulist") -> tuple[NodeReading, ...]:
    return tuple(NodeReading(CellId(n), cpus=at(name, text)) for n, text in enumerate(lists))


def linked(*targets: tuple[int, ...]) -> tuple[CpuReading, ...]:
    return tuple(
        CpuReading(n, linked=tuple(CellId(node) for node in to)) for n, to in enumerate(targets)
    )


@pytest.mark.parametrize(
    ("readings", "homes", "problems"),
    [
        pytest.param(Readings(), [0, 0, 0, None], 0, id="no node: one cell, of what is online"),
        pytest.param(Readings(nodes=nodes("0-1", "2-3")), [0, 0, 1, 1], 0, id="lists"),
        pytest.param(Readings(nodes=nodes("3", "c", name="cpumap")), [0, 0, 1, 1], 0, id="masks"),
        pytest.param(
            Readings(nodes=nodes("0-87", "88-175")), [0, 0, 0, 0], 0, id="absent ones are named"
        ),
        pytest.param(
            Readings(nodes=nodes("0-3,8", "8")), [0, 0, 0, 0], 0, id="an absent one is in two"
        ),
        pytest.param(
            Readings(nodes=nodes("0-1", "")), [0, 0, None, None], 0, id="some are in no node"
        ),
        pytest.param(
            Readings(nodes=nodes("0-3", "0-3")), [0, 0, 0, 0], 1, id="all are in all nodes"
        ),
        pytest.param(
            Readings(nodes=nodes("3", "2-3", "0-3")), [2, 2, 1, 0], 2, id="nodes in nodes"
        ),
        pytest.param(
            Readings(nodes=nodes("0-1", "2-")), [0, 0, None, None], 1, id="a list is broken"
        ),
        pytest.param(
            Readings(nodes=nodes("0-1", None)), [0, 0, None, None], 0, id="a list is missing"
        ),
        pytest.param(
            Readings(nodes=nodes(None, None), cpus=linked((1,), (0,), (1,), (0,))),
            [1, 0, 1, 0],
            0,
            id="no lists: the links say it",
        ),
        pytest.param(
            Readings(nodes=nodes("0-2", None), cpus=linked((0,), (0,), (0,), (1,))),
            [0, 0, 0, 1],
            0,
            id="an offline one is in no list, its link says where it is",
        ),
        pytest.param(
            Readings(nodes=nodes("0-1", "2-3"), cpus=linked((1,), (1,), (0,), (0,))),
            [0, 0, 1, 1],
            0,
            id="lists before links",
        ),
        pytest.param(
            Readings(cpus=linked((3,), (3,), (70,), (70,))),
            [3, 3, 70, 70],
            0,
            id="no node directory, but links to them",
        ),
        pytest.param(
            Readings(cpus=linked((0,), (0, 1), (), ())),
            [0, None, None, None],
            0,
            id="a link to two nodes is no answer",
        ),
        pytest.param(
            Readings(nodes=nodes(None), cpus=linked((0,), (1,), (1,), ())),
            [0, None, None, None],
            0,
            id="a link that dangles is no answer",
        ),
    ],
)
def test_cells_of_pcpus(readings: Readings, homes: list[int | None], problems: int) -> None:
    """Of four pCPUs, the last of which is offline."""
    found = topology.interpret(
        Readings(
            cpus=readings.cpus,
            nodes=readings.nodes,
            online=at("online", "0-2"),
            present=at("present", "0-3"),
        )
    )
    assert [cpu.cell for cpu in found.host.cpus] == homes
    assert_invariants(found.host)
    assert len(found.problems) == problems


@pytest.mark.parametrize(
    ("online", "possible", "row", "distances", "problems"),
    [
        pytest.param("0,4,9", None, "10 20 30", {0: 10, 9: 30}, 0, id="by the online nodes"),
        pytest.param(None, None, "10 20 30", {0: 10, 9: 30}, 0, id="by the directories"),
        pytest.param("0-", "", "10 20 30", {0: 10, 9: 30}, 1, id="the list is broken"),
        pytest.param("0,9", "0,4,9", "10 20 30", {0: 10, 9: 30}, 0, id="all that can be"),
        pytest.param("0,9", "0,4,9", "10 30", {0: 10, 9: 30}, 0, id="4 is offline"),
        pytest.param("0,4,9", "0-63", "10 20", {}, 1, id="a column is missing"),
        pytest.param("0,4,9", None, "10 20 30 40", {}, 1, id="a column is too much"),
        pytest.param("4,9", None, "10 20", {}, 1, id="the node itself has no column"),
        pytest.param("0,4,9", None, "10 x 30", {}, 1, id="a column is a word"),
        pytest.param("0,4,9", None, "10 -1 30", {}, 1, id="a column is negative"),
        pytest.param("0,4,9", None, "", {}, 1, id="an empty row"),
        pytest.param("0,4,9", None, None, {}, 0, id="no row"),
    ],
)
def test_distances(
    online: str | None,
    possible: str | None,
    row: str | None,
    distances: dict[int, int],
    problems: int,
) -> None:
    """From node 0 of nodes 0, 4 (without pCPUs) and 9."""
    found = topology.interpret(
        Readings(
            online=at("online", "0-1"),
            nodes=(
                NodeReading(CellId(0), cpus=at("cpulist", "0"), distance=at("distance", row)),
                NodeReading(CellId(4), cpus=at("cpulist", "")),
                NodeReading(CellId(9), cpus=at("cpulist", "1")),
            ),
            nodes_online=at("online", online),
            nodes_possible=at("possible", possible),
        )
    )
    assert [cell.id for cell in found.host.cells] == [0, 9]
    assert dict(found.host.cells[0].distances) == distances
    assert len(found.problems) == problems


@pytest.mark.parametrize(
    ("text", "memory", "problems"),
    [
        pytest.param(None, None, 0, id="no file"),
        pytest.param("Node 0 MemTotal:        7881912 kB\nNode 0 MemFree: 1 kB", 8071077888, 0),
        pytest.param("Node 0 MemTotal:       0 kB", 0, 0, id="a node without memory"),
        pytest.param("", None, 1, id="empty"),
        pytest.param("Node 0 MemFree:        7881912 kB", None, 1, id="other figures only"),
        pytest.param("Node 0 MemTotal:   78819", None, 1, id="cut off within the figure"),
    ],
)
def test_memory(text: str | None, memory: int | None, problems: int) -> None:
    node = NodeReading(CellId(0), cpus=at("cpulist", "0"), meminfo=at("meminfo", text))
    found = topology.interpret(Readings(online=at("online", "0"), nodes=(node,)))
    assert [cell.memory_bytes for cell in found.host.cells] == [memory]
    assert len(found.problems) == problems


@pytest.mark.parametrize(
    ("level", "kind", "expected"),
    [
        ("3", "Unified", True),
        ("3", "Data", True),
        ("3", "Instruction", False),
        ("2", "Unified", False),
        ("4", "Unified", False),
        ("3", "", False),
        ("", "Unified", False),
        ("33", "Unified", False),
    ],
)
def test_which_cache_is_the_l3(
    level: str,
    kind: str,
    expected: bool,  # noqa: FBT001 - a column of the table
) -> None:
    assert topology.is_l3(level, kind) is expected


@pytest.mark.parametrize(
    ("attribute", "cpu", "expected"),
    [
        (None, None, False),
        (Attribute("cpulist", ""), None, False),
        (Attribute("cpulist", "3-"), None, False),
        (Attribute("cpulist", "3"), None, True),
        (Attribute("cpulist", "3"), 3, True),
        (Attribute("cpulist", "3"), 4, False),
        (Attribute("cpumap", "8"), 3, True),
    ],
)
def test_whether_a_file_has_the_set_that_is_sought(
    attribute: Attribute | None,
    cpu: int | None,
    expected: bool,  # noqa: FBT001 - a column of the table
) -> None:
    assert topology.names_cpu(attribute, cpu) is expected


def test_what_could_not_be_read_is_told_with_what_could_not_be_understood() -> None:
    found = topology.interpret(
        Readings(online=at("/sys/online", "zero"), problems=("/sys/x: '': Permission denied",))
    )
    assert found.problems == (
        "/sys/x: '': Permission denied",
        "/sys/online: 'zero': 'zero' is neither a CPU nor a range like 0-3",
    )


def test_json_has_each_fact_in_its_form() -> None:
    told = host(TWO_CELLS_EIGHT_CPUS)
    answer = topology.to_json(told)
    assert json.loads(json.dumps(answer)) == answer
    assert list(answer) == ["schema", "cells", "cpus"]
    assert answer["schema"] == 1
    assert answer["cells"] == [
        {"id": 0, "cpus": "0-3", "memory_bytes": 2**36, "distances": {"0": 10, "1": 21}},
        {"id": 1, "cpus": "4-7", "memory_bytes": 2**36, "distances": {"0": 21, "1": 10}},
    ]
    cpus = answer["cpus"]
    assert isinstance(cpus, list)
    assert [cpu["id"] for cpu in cpus] == list(range(8))
    assert cpus[5] == {
        "id": 5,
        "online": True,
        "isolated": False,
        "cell": 1,
        "package": 1,
        "die": 0,
        "core": 0,
        "siblings": "4-5",
        "l3": "4-7",
    }


def test_json_has_null_for_what_the_kernel_does_not_tell() -> None:
    found = topology.interpret(
        Readings(online=at("online", "0"), present=at("present", "0-1"), isolated=at("i", "1"))
    )
    unknown = dict.fromkeys(("package", "die", "core", "siblings", "l3"))
    assert topology.to_json(found.host) == {
        "schema": 1,
        "cells": [{"id": 0, "cpus": "0", "memory_bytes": None, "distances": {}}],
        "cpus": [
            {"id": 0, "online": True, "isolated": False, "cell": 0, **unknown},
            {"id": 1, "online": False, "isolated": True, "cell": None, **unknown},
        ],
    }


def test_a_host_without_numa_has_one_cell() -> None:
    assert host(NO_NUMA).cells == (Cell(CellId(0), CpuSet(range(4)), None, ()),)


def assert_invariants(told: Host) -> None:
    """Hold the promises of the module's docstring."""
    ids = [cpu.id for cpu in told.cpus]
    assert ids == sorted(set(ids))
    assert CpuSet(cpu.id for cpu in told.cpus if cpu.online) == told.online
    assert CpuSet(cpu.id for cpu in told.cpus if cpu.isolated) == told.isolated
    assert_cells(told)
    by_id = {cpu.id: cpu for cpu in told.cpus}
    for cpu in told.cpus:
        for name in ("siblings", "l3"):
            cpus: CpuSet | None = getattr(cpu, name)
            assert cpus is None or (cpu.online and cpu.id in cpus and cpus <= told.online)
            assert all(getattr(by_id[n], name) in {None, cpus} for n in cpus or ())


def assert_cells(told: Host) -> None:
    cells = [cell.id for cell in told.cells]
    assert cells == sorted(set(cells))
    assert set(cells) == {cpu.cell for cpu in told.cpus if cpu.online} - {None}
    for cell in told.cells:
        assert cell.cpus == CpuSet(c.id for c in told.cpus if c.online and c.cell == cell.id)
        to = [other for other, _ in cell.distances]
        assert to == sorted(set(to))
        assert set(to) <= set(cells)


TEXTS = st.one_of(
    st.sampled_from(("", "0", "1", "-1", "0-3", "0-7,9", "3", "(null)", "0,2-", "^1", "8191")),
    st.sets(st.integers(0, 9)).map(CpuSet).map(str),
    st.sets(st.integers(0, 9)).map(CpuSet).map(mask),
    st.lists(st.integers(0, 99), max_size=4).map(lambda row: " ".join(map(str, row))),
    st.text(max_size=20),
)
FILES = st.none() | st.builds(
    Attribute, st.sampled_from(("cpulist", "cpumap", "core_cpus", "level")), TEXTS
)
IDS = st.integers(0, 9)
READINGS = st.builds(
    Readings,
    cpus=st.lists(
        st.builds(
            CpuReading,
            id=IDS,
            linked=st.lists(IDS.map(CellId), max_size=2).map(tuple),
            online=FILES,
            package=FILES,
            die=FILES,
            core=FILES,
            siblings=FILES,
            l3=FILES,
        ),
        max_size=6,
        unique_by=lambda cpu: cpu.id,
    ).map(tuple),
    nodes=st.lists(
        st.builds(NodeReading, id=IDS.map(CellId), cpus=FILES, meminfo=FILES, distance=FILES),
        max_size=4,
        unique_by=lambda node: node.id,
    ).map(tuple),
    online=FILES,
    present=FILES,
    isolated=FILES,
    nodes_online=FILES,
    nodes_possible=FILES,
)


@given(READINGS)
def test_any_texts_make_a_sound_host(readings: Readings) -> None:
    found = topology.interpret(readings)
    assert_invariants(found.host)
    assert all("\n" not in line for line in found.problems)
    json.dumps(topology.to_json(found.host))
    assert topology.interpret(readings) == found
