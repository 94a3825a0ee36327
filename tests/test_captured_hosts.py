"""Trees of real hosts, against what hwloc and lscpu agree on about them.

The trees lie beside the repository, not in it: ../shared/topologies, with a README that says
what each fact means.
"""

from __future__ import annotations

import functools
import json
import os
import tarfile
import tempfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest

from agent import topology
from agent.cpuset import CpuSet
from agent.sysfs import Sysfs
from tests.hosts import MEMORY
from tests.schemas import validated
from tests.test_topology import assert_invariants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.topology import Discovery, Host, Pcpu

    Discover = Callable[[Path], Discovery]

CAPTURED = Path(__file__).resolve().parents[2] / "shared/topologies"
AGREE = sorted(CAPTURED.glob("agree/*.tar.xz"))
SURVIVE = sorted(CAPTURED.glob("survive/*.tar.xz"))

# The facts name the pCPUs of a package; a host has the package of each pCPU. The two cannot be
# compared where a kernel tells packages without an id (s390, with -1), or gives one id to pCPUs
# that its own lists say do not share a package (a phone).
WITHOUT_PACKAGE_CPUS = frozenset({"hwloc__20s390-2g6s4c", "cpuinfo__pixel-8"})

BY_ID = "the package has an id, and who has the same one is in it; lscpu wants lists as well"
MODULES = "two integer cores of one module: the kernel lists them as threads of one core"
ONE_MASK = "one mask among these is broken, its list is not: both are documented, the list is read"

# What the two peers disagree on, what we say of the first pCPU that it concerns, and why. The
# kernel's documents (ABI/stable/sysfs-devices-system-cpu and -node) say what a file means.
DISPUTED = {
    ("cpuinfo__pixel-8", "package"): (0, "physical_package_id says 0 of each pCPU"),
    ("cpuinfo__pixel-8", "package_cpus"): ("0-3", "with the same id; its own lists say otherwise"),
    ("hwloc__40intel64-4n10c+pci-conflicts", "package"): (3, "physical_package_id says 3"),
    ("hwloc__40intel64-4n10c+pci-conflicts", "package_cpus"): (
        "3,7,11,15,19,23,27,31,35,39",
        ONE_MASK,
    ),
    ("hwloc__40intel64-4n10c+pci-conflicts", "l3"): ("2,6,10,14,18,22,26,30,34,38", ONE_MASK),
    ("hwloc__4fake-4gr1nu1pu", "package_cpus"): ("0-3", BY_ID),
    ("hwloc__5intel64-hybrid-lakefield", "l3"): (
        "0-4",
        "shared_cpu_list says so of all five; lscpu leaves the big core out",
    ),
    ("hwloc__64amd64-4p2n4ca2co", "siblings"): ("0-1", MODULES),
    ("hwloc__64amd64-4s2n4ca2co", "siblings"): ("0-1", MODULES),
    ("hwloc__fakeheterocpunuma", "node"): (5, "node5 alone lists it; hwloc drops nodes that meet"),
    ("iree__synthetic_big_little", "package_cpus"): ("0-3", BY_ID),
    ("iree__synthetic_dual_socket_no_siblings", "package_cpus"): ("0-3", BY_ID),
    ("iree__synthetic_fragmented_cpulist", "package_cpus"): ("0-199", BY_ID),
    ("iree__synthetic_invalid_package", "package_cpus"): ("0-3", BY_ID),
    ("iree__synthetic_memory_only_node", "package_cpus"): ("0-3", BY_ID),
    ("iree__synthetic_meteor_lake", "package_cpus"): ("0-21", BY_ID),
    ("iree__synthetic_snc", "package_cpus"): ("0-7", BY_ID),
}
# Hosts on which one of the peers fails, and what is online there.
FAILED = {
    "cpuinfo__nexus-s": (
        "0",
        "hwloc does not load a host without topology directories; online says 0",
    ),
    "hwloc__2ps3-2t": ("0-1", "lscpu crashes; online says both"),
}

pytestmark = pytest.mark.skipif(
    not CAPTURED.is_dir(), reason=f"there are no captured hosts in {CAPTURED}"
)


def name(archive: Path) -> str:
    return archive.name.removesuffix(".tar.xz")


def facts(archive: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(archive.with_name(f"{name(archive)}.json").read_text())
    return told


def extract(archive: Path, root: Path) -> Path:
    """Unpack directories, files and links, all of which must stay below `root`."""
    links: set[PurePosixPath] = set()
    with tarfile.open(archive) as members:
        for member in members:
            path = PurePosixPath(member.name)
            assert not path.is_absolute(), member.name
            assert ".." not in path.parts, member.name
            assert links.isdisjoint(path.parents), member.name
            if member.issym():
                links.add(path)
            _extract_one(members, member, root)
    return root


def _extract_one(members: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    target = root / member.name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
    elif member.issym():
        end = Path(os.path.normpath(target.parent / member.linkname))
        assert end.is_relative_to(root), member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(member.linkname)
    else:
        content = members.extractfile(member)
        assert content is not None, member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.read())


@pytest.fixture(scope="module")
def discover() -> Discover:
    """Discover a captured host, once for all tests."""

    @functools.cache
    def found(archive: Path) -> Discovery:
        with tempfile.TemporaryDirectory(dir=MEMORY) as root:
            return examine(Sysfs(extract(archive, Path(root))))

    return found


def examine(sysfs: Sysfs) -> Discovery:
    """Discover a host, and hold what is true of any."""
    found = sysfs.discover()
    assert sysfs.online() == found.host.online
    assert_invariants(found.host)
    validated("topology", topology.to_json(found.host))
    return found


def told_of(pcpu: Pcpu, told: Host) -> dict[str, object]:
    """Return what a host has of a pCPU, in the form of the facts."""
    package = CpuSet(c.id for c in told.cpus if c.online and c.package == pcpu.package)
    return {
        "node": pcpu.cell,
        "package": pcpu.package,
        "package_cpus": None if pcpu.package is None else str(package),
        "siblings": None if pcpu.siblings is None else str(pcpu.siblings),
        "l3": None if pcpu.l3 is None else str(pcpu.l3),
    }


def differences(archive: Path, told: Host) -> tuple[Counter[str], list[str]]:
    """Count the facts about pCPUs by name, and tell which are different."""
    agreed = facts(archive)["agreed"]
    counted: Counter[str] = Counter(online=1)
    wrong = [] if str(told.online) == agreed["online"] else [f"online: {told.online}"]
    by_id = {str(cpu.id): cpu for cpu in told.cpus}
    for cpu, fact in agreed["cpus"].items():
        ours = told_of(by_id[cpu], told)
        for field, value in fact.items():
            if value is None or (field == "package_cpus" and name(archive) in WITHOUT_PACKAGE_CPUS):
                continue
            counted[field] += 1
            if ours[field] != value:
                wrong.append(f"pCPU {cpu}, {field}: {ours[field]}, not {value}")
    return counted, wrong


def node_differences(archive: Path, told: Host) -> tuple[Counter[str], list[str]]:
    """Count the facts about nodes that have pCPUs, and tell which are different."""
    nodes: dict[str, Any] = facts(archive)["nodes"] or {}
    counted: Counter[str] = Counter()
    wrong = []
    cells = {str(cell.id): cell for cell in told.cells}
    wrong += [f"{n} is no cell" for n, fact in nodes.items() if fact["cpus"] and n not in cells]
    wrong += [f"{n} is a cell" for n, fact in nodes.items() if not fact["cpus"] and n in cells]
    for node in nodes.keys() & cells.keys():
        cell, fact = cells[node], nodes[node]
        kib = None if cell.memory_bytes is None else cell.memory_bytes // 1024
        ours = {"cpus": str(cell.cpus), "mem_kib": kib, "distance": list(cell.distances)}
        theirs = {**fact, "distance": list(row(fact["distance"], nodes, cells))}
        for field, value in ours.items():
            counted[field] += 1
            if theirs[field] != value:
                wrong.append(f"node {node}, {field}: {value}, not {theirs[field]}")
    return counted, wrong


def row(text: str, nodes: dict[str, Any], cells: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield (cell, distance) of a row as the file has it, one column per online node."""
    ids = sorted(int(node) for node in nodes)
    columns = [int(word) for word in text.split()]
    if len(columns) == len(ids) + 1:  # node 0 was taken out of one capture, but not its column
        ids.insert(0, 0)
    yield from ((n, far) for n, far in zip(ids, columns, strict=True) if str(n) in cells)


@pytest.mark.parametrize("archive", AGREE, ids=name)
def test_a_host_is_what_hwloc_and_lscpu_agree_it_is(archive: Path, discover: Discover) -> None:
    found = discover(archive)
    _, wrong = differences(archive, found.host)
    _, wrong_nodes = node_differences(archive, found.host)
    assert not wrong + wrong_nodes
    assert not found.problems


@pytest.mark.parametrize("archive", SURVIVE, ids=name)
def test_an_awkward_host_is_survived(archive: Path, discover: Discover) -> None:
    found = discover(archive)
    if facts(archive)["agreed"] is not None:
        _, wrong = differences(archive, found.host)
        assert not wrong


@pytest.mark.parametrize("archive", SURVIVE, ids=name)
def test_where_the_peers_disagree_the_kernels_own_words_count(
    archive: Path, discover: Discover
) -> None:
    """Each disagreement has its row, and no row is about another thing."""
    found = discover(archive).host
    disputes = facts(archive)["hwloc_vs_lscpu"]
    fields = {dispute["field"] for dispute in disputes} - {"error"}
    assert fields == {field for tree, field in DISPUTED if tree == name(archive)}
    assert ("error" in {dispute["field"] for dispute in disputes}) == (name(archive) in FAILED)
    by_id = {cpu.id: cpu for cpu in found.cpus}
    for dispute in disputes:
        if dispute["field"] == "error":
            assert str(found.online) == FAILED[name(archive)][0]
        else:
            ours = told_of(by_id[dispute["first"]], found)[dispute["field"]]
            assert ours == DISPUTED[name(archive), dispute["field"]][0]


def test_nothing_is_left_out_of_the_comparison(discover: Discover) -> None:
    assert (len(AGREE), len(SURVIVE)) == (12, 23)
    counted: Counter[str] = Counter()
    nodes: Counter[str] = Counter()
    for archive in AGREE + SURVIVE:
        told = discover(archive).host
        if facts(archive)["agreed"] is not None:
            counted += differences(archive, told)[0]
            nodes += node_differences(archive, told)[0]
    assert counted == {
        "online": 33,
        "node": 861,
        "package": 943,
        "package_cpus": 686,
        "siblings": 597,
        "l3": 654,
    }
    assert nodes == {"cpus": 27, "mem_kib": 27, "distance": 27}


def test_a_wrong_host_is_told_apart(discover: Discover) -> None:
    """The comparison can fail: each host is compared with the facts of the next."""
    archive, other = AGREE[0], AGREE[1]
    told = discover(archive).host
    assert differences(other, told)[1]
    assert node_differences(other, told)[1]
