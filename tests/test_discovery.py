"""Discovery of hosts that nobody wrote down: thousands of generated ones, whole and damaged.

They lie in memory, where there is such a place: each has hundreds of files.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cpuset import CpuSet
from agent.errors import SysfsError
from agent.sysfs import Sysfs
from tests.damage import CPU, DAMAGE, assert_weaker, paths, replace, truncate
from tests.hosts import (
    EPYC_NPS4,
    LINUX_2_6,
    MACHINES,
    MAINFRAME,
    MEMORY,
    TWO_CELLS_EIGHT_CPUS,
    Kernel,
    Machine,
    host,
    machines,
    write,
)
from tests.test_topology import assert_invariants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


HOSTS = 2000
LARGER_HOSTS = 50
SMALL = Machine(
    packages=2, cores=1, threads=2, memory_only=(5,), isolated=CpuSet.of(1), offline=CpuSet.of(3)
)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as made:
        yield Path(made)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES.keys())
def test_a_machine_is_discovered_as_it_is(machine: Machine) -> None:
    with folder() as root:
        found = Sysfs(write(machine, root)).discover()
    assert found.host == host(machine)
    assert not found.problems


@settings(max_examples=HOSTS)
@given(machines())
def test_thousands_of_machines_are_discovered_as_they_are_whatever_their_kernel(
    machine: Machine,
) -> None:
    """Each has at most 64 pCPUs."""
    assert_discovered(machine)


@settings(max_examples=LARGER_HOSTS)
@given(machines(least=3, most=4))
def test_larger_machines_are_discovered_as_they_are(machine: Machine) -> None:
    """Most have more than 64."""
    assert_discovered(machine)


def assert_discovered(machine: Machine) -> None:
    with folder() as root:
        sysfs = Sysfs(write(machine, root))
        found = sysfs.discover()
        assert sysfs.online() == found.host.online
    assert found.host == host(machine)
    assert not found.problems
    assert_invariants(found.host)


# --- hot-plug ------------------------------------------------------------------------------------


@contextmanager
def plugged(machine: Machine, *offline: CpuSet) -> Iterator[Iterator[Path]]:
    """Give the root of a machine, over and over: each time with the next pCPUs off line."""
    with folder() as made:

        def states() -> Iterator[Path]:
            root = made / "root"
            for number, off in enumerate(offline):
                tree = write(changed(machine, offline=off), made / str(number))
                root.unlink(missing_ok=True)
                root.symlink_to(tree)
                yield root

        yield states()


@settings(max_examples=150)
@given(machines(), st.data())
def test_a_refresh_is_what_a_discovery_would_be(machine: Machine, data: st.DataObject) -> None:
    present = [cpu.id for cpu in host(machine).cpus]
    some = st.sets(st.sampled_from(present), max_size=len(present) - 1).map(CpuSet)
    offline = data.draw(st.lists(some, min_size=2, max_size=4))
    with plugged(machine, *offline) as roots:
        sysfs = None
        for root in roots:
            sysfs = sysfs or Sysfs(root)
            assert sysfs.refresh() == Sysfs(root).discover()


def test_a_refresh_after_damage_is_a_discovery() -> None:
    """What was wrong once is not taken for what cannot have changed."""
    with plugged(TWO_CELLS_EIGHT_CPUS, CpuSet.of(3), CpuSet.of(3)) as roots:
        root = next(roots)
        replace(root / CPU / "cpu6/topology/core_id", Path.mkdir)
        sysfs = Sysfs(root)
        assert len(sysfs.discover().problems) == 1
        fresh = Sysfs(next(roots))
        assert sysfs.refresh() == fresh.discover()


@pytest.mark.parametrize(
    ("before", "after", "silent", "looked"),
    [
        pytest.param("", "5", None, 8, id="a pCPU went off line"),
        pytest.param("5", "", None, 8, id="a pCPU came on line"),
        pytest.param("5", "69", None, 8, id="its sibling went when it came"),
        pytest.param("", "5,127", None, 16, id="two that share nothing went"),
        pytest.param("", "", None, 0, id="nothing happened after all"),
        pytest.param("5", "", "topology", 128, id="one came that does not tell its siblings"),
        pytest.param("5", "", "cache", 128, id="one came that does not tell its L3"),
    ],
)
def test_a_refresh_looks_only_at_what_can_have_changed(
    before: str, after: str, silent: str | None, looked: int
) -> None:
    """Eight pCPUs of 128 share an L3."""
    with folder() as made:
        for name, offline in (("before", before), ("after", after)):
            machine = changed(EPYC_NPS4, offline=CpuSet.parse(offline))
            write(machine, made / name)
        if silent is not None:
            shutil.rmtree(made / "after" / CPU / "cpu5" / silent)
        opened = opens(
            """
            root.symlink_to("before"); sysfs = Sysfs(root); sysfs.discover()
            root.unlink(); root.symlink_to("after")
            """,
            "sysfs.refresh()",
            made / "root",
        )
    assert (opened["topology"], opened["meminfo"], opened["online"]) == (looked, 8, 2)


# --- reading -------------------------------------------------------------------------------------


def opens(before: str, watched: str, root: Path) -> Counter[str]:
    """Count what is opened, by name; in a process of its own, since an audit hook stays."""
    script = "\n".join(
        (
            "import sys; from pathlib import Path; from agent.sysfs import Sysfs",
            "root = Path(sys.argv[1])",
            textwrap.dedent(before),
            "sys.addaudithook(lambda what, args: what == 'open' and print(args[0]))",
            watched,
        )
    )
    command = [sys.executable, "-c", script, str(root)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return Counter(run.stdout.splitlines())


@pytest.mark.parametrize(
    "machine",
    [
        pytest.param(EPYC_NPS4, id="all is told"),
        pytest.param(changed(MAINFRAME, offline=CpuSet.of(1)), id="no nodes"),
        pytest.param(LINUX_2_6, id="masks only"),
        pytest.param(
            Machine(kernel=Kernel(top_level=False, node_directories=False)), id="no lists of all"
        ),
        pytest.param(
            Machine(offline=CpuSet.of(1), kernel=Kernel(keeps_offline=True)), id="stale directories"
        ),
    ],
)
def test_nothing_is_opened_twice(machine: Machine) -> None:
    """Not more often than the tree has such a name, or pCPUs that lack it."""
    with folder() as made:
        root = write(machine, made / "root", whole=True)
        there = Counter(path.name for path in root.rglob("*"))
        opened = opens("sysfs = Sysfs(root)", "sysfs.discover()", root)
    pcpus = len(host(machine).cpus)
    places = {"online": pcpus + 2}  # of each, of all, of the nodes
    most = {name: max(there[name], places.get(name, pcpus)) for name in opened}
    assert not {name for name, times in opened.items() if times > most[name]}
    of_each = ("topology", "cache")
    assert {name: opened[name] for name in of_each} == dict.fromkeys(of_each, pcpus)
    assert not opened.keys() & {"core_siblings_list", "size", "number_of_sets", "possible_cpus"}


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@settings(max_examples=15)
@given(st.data())
def test_one_damaged_file_costs_facts_but_makes_none_up(
    damage: Callable[[Path], object], data: st.DataObject
) -> None:
    with folder() as made:
        tree = write(SMALL, made)
        kept = {Path(CPU), Path(f"{CPU}/present")}  # a host without these has no or other pCPUs
        replace(
            tree / data.draw(st.sampled_from([path for path in paths(tree) if path not in kept])),
            damage,
        )
        assert_weaker(Sysfs(tree).discover().host, host(SMALL))


@settings(max_examples=250)
@given(machines(), st.data())
def test_any_damage_is_survived(machine: Machine, data: st.DataObject) -> None:
    """Also by a refresh of a host that was whole before, whose kept texts are then of another."""
    with folder() as made:
        tree = write(machine, made)
        sysfs = Sysfs(tree)
        sysfs.discover()
        kinds = st.sampled_from([*DAMAGE.values(), truncate])
        for damage in data.draw(st.lists(kinds, min_size=1, max_size=9)):
            path = tree / data.draw(st.sampled_from(paths(tree)))
            damage(path) if damage is truncate else replace(path, damage)
            if not (tree / CPU).is_dir():
                break
        try:
            assert_invariants(sysfs.refresh().host)
            found = Sysfs(tree).discover()
        except SysfsError:
            return
        assert_invariants(found.host)
        assert sysfs.online() == found.host.online


def test_each_damage_is_told() -> None:
    """And not only survived: a line names the file."""
    for name in ("rubbish", "huge", "a directory", "a loop", "a link out", "a link up", "empty"):
        with folder() as made:
            tree = write(SMALL, made)
            replace(tree / CPU / "cpu0/topology/core_id", DAMAGE[name])
            found = Sysfs(tree).discover()
            assert len(found.problems) == 1, name
            assert "cpu0/topology/core_id: " in found.problems[0] or name == "a link up"
            assert found.host.cpus[0].core is None
