"""Hosts for tests: a short description, the host it means, and the sysfs tree that tells of it.

`host` says what a machine is without reading anything; `write` lays out the files that a kernel
would show for it. That the production code gets from the second to the first is a property test,
so the tests of other modules may take `host(TWO_SOCKET_SMT)` for what discovery would return.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from hypothesis import strategies as st

from agent.cpuset import EMPTY, LIMIT, CellId, CpuSet
from agent.topology import Cell, Host, Pcpu

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
    from pathlib import Path

GIB: Final = 2**30
_SYSTEM: Final = "sys/devices/system"

# Trees have a thousand small files: ten times faster in memory, where there is such a place.
MEMORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


_SHARED_LEVEL: Final = 3
_CACHES: Final = ((1, "Data"), (1, "Instruction"), (2, "Unified"), (_SHARED_LEVEL, "Unified"))
_GEOMETRY: Final = (
    ("size", "1024K"),
    ("coherency_line_size", "64"),
    ("number_of_sets", "1024"),
    ("physical_line_partition", "1"),
    ("ways_of_associativity", "16"),
)


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a kernel tells: each field is a habit that some have, and the defaults are of Linux 6."""

    lists: bool = True  # False: masks only, as the oldest had
    present_names: bool = True  # False: before 5.3, no `core_cpus` nor `die_id`
    top_level: bool = True  # False: no `online`, `present`, `possible`
    node_directories: bool = True  # False: only the links of the pCPUs say what node they are in
    keeps_offline: bool = False  # an offline pCPU keeps a stale `topology` and `cache`
    ids: bool = True  # False: the architecture has neither packages nor dies, and says -1
    unset_isolated: str | None = ""  # what `isolated` says when there are none; None: no such file
    ending: str = "\n"


@dataclass(frozen=True, slots=True)
class Machine:
    """A regular machine: all its packages are alike, and so are all cells of a package."""

    packages: int = 1
    dies: int = 1  # per package
    cells: int = 1  # per package
    cores: int = 2  # per cell
    threads: int = 1  # per core
    small_cores: int = 0  # per cell, of one thread each, after the others
    numbering: Literal["adjacent", "interleaved"] = "adjacent"  # of the threads of a core
    l3_cores: int | None = None  # how many share an L3; None: all of the package, 0: there is none
    cpu_ids: tuple[int, ...] = ()  # by default from 0 up, without holes; ascending
    cell_ids: tuple[int, ...] = ()  # likewise
    memory_only: tuple[int, ...] = ()  # further nodes, without pCPUs
    memory_bytes: int | None = 64 * GIB  # of each cell
    near: int = 12  # between cells of one package
    far: int | None = 21  # between packages; None: the kernel does not tell distances
    asymmetry: int = 0  # what it is further to a node of lower id than from it
    numa: bool = True  # False: a kernel without NUMA
    offline: CpuSet = EMPTY
    isolated: CpuSet = EMPTY
    kernel: Kernel = Kernel()


ONE_CELL_TWO_CPUS: Final = Machine()
TWO_CELLS_EIGHT_CPUS: Final = Machine(packages=2, threads=2)
TWO_SOCKET_SMT: Final = Machine(packages=2, cores=8, threads=2, numbering="interleaved")
EPYC_NPS4: Final = Machine(
    packages=2, cells=4, cores=8, threads=2, numbering="interleaved", l3_cores=4, far=32
)
XEON_SNC: Final = Machine(
    packages=2, cells=2, cores=10, threads=2, numbering="interleaved", near=11
)
NO_NUMA: Final = Machine(cores=4, numa=False)
HYBRID_DESKTOP: Final = Machine(cores=8, threads=2, small_cores=8)
ONE_L3_PER_THREAD: Final = Machine(packages=2, cores=4, l3_cores=1)
POWER_SMT_OFF: Final = Machine(
    packages=16,
    cores=32,
    threads=8,
    l3_cores=1,
    cell_ids=tuple(range(0, 64, 4)),
    memory_only=(252,),
    near=10,
    far=40,
    offline=CpuSet(cpu for cpu in range(4096) if cpu % 8),
)
SPARSE_IDS: Final = Machine(packages=2, cores=2, cpu_ids=(0, 7, 4095, 8191), cell_ids=(3, 70))
MAINFRAME: Final = Machine(
    cores=6, threads=2, numa=False, kernel=Kernel(ids=False, unset_isolated="(null)")
)
LINUX_2_6: Final = Machine(
    packages=2,
    cores=2,
    threads=2,
    offline=CpuSet.of(3),
    kernel=Kernel(lists=False, present_names=False, unset_isolated=None),
)

MACHINES: Final = {
    "one cell, two pCPUs": ONE_CELL_TWO_CPUS,
    "two cells, eight pCPUs": TWO_CELLS_EIGHT_CPUS,
    "two sockets with SMT": TWO_SOCKET_SMT,
    "EPYC with four cells to a socket and an L3 to four cores": EPYC_NPS4,
    "Xeon whose L3 is wider than its cells": XEON_SNC,
    "kernel without NUMA": NO_NUMA,
    "desktop with cores of two kinds": HYBRID_DESKTOP,
    "virtual machine with an L3 to each thread": ONE_L3_PER_THREAD,
    "POWER with 4096 pCPUs, of eight to a core one on line": POWER_SMT_OFF,
    "ids far apart": SPARSE_IDS,
    "mainframe without package ids": MAINFRAME,
    "kernel that has masks only": LINUX_2_6,
}


@dataclass(frozen=True, slots=True)
class Thread:
    """One pCPU of a machine, and where it is."""

    id: int
    package: int
    die: int
    cell: CellId
    core: int  # unique in its package, as `core_id` is
    l3: int | None  # unique in its package


_Key = TypeVar("_Key", bound="Hashable")


@dataclass(frozen=True, slots=True)
class _Layout:
    """The pCPUs of a machine by id, and for each of them with which it shares what."""

    threads: tuple[Thread, ...]
    cores: Mapping[int, CpuSet]
    caches: Mapping[int, CpuSet]
    packages: Mapping[int, CpuSet]
    nodes: Mapping[int, CpuSet]  # by node
    online: CpuSet

    @classmethod
    def of(cls, machine: Machine) -> _Layout:
        threads = _threads(machine)
        return cls(
            threads,
            _sharers(threads, lambda thread: (thread.package, thread.core)),
            _sharers(threads, lambda thread: (thread.package, thread.l3)),
            _sharers(threads, lambda thread: thread.package),
            _grouped(threads, lambda thread: thread.cell),
            CpuSet(thread.id for thread in threads) - machine.offline,
        )


def host(machine: Machine) -> Host:
    """Return what a machine is."""
    layout = _Layout.of(machine)
    return Host(
        cells=_cells(machine, layout),
        cpus=tuple(_pcpu(machine, thread, layout) for thread in layout.threads),
        online=layout.online,
        isolated=machine.isolated,
    )


def write(machine: Machine, root: Path, *, whole: bool = False) -> Path:
    """Lay out the files of a machine below `root`, which is made, and return it.

    What only other programs read is left out unless it is to be `whole`: the tests write millions
    of files.
    """
    texts, links = files(machine, whole=whole)
    root.mkdir(exist_ok=True)
    top = os.open(root, os.O_RDONLY)
    try:
        for folder in _folders([*texts, *links]):
            os.mkdir(folder, dir_fd=top)
        for path, text in texts.items():
            fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=top)
            os.write(fd, text.encode())
            os.close(fd)
        for path, target in links.items():
            os.symlink(target, path, dir_fd=top)
    finally:
        os.close(top)
    return root


def files(machine: Machine, *, whole: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Return the files of a machine and their texts, and its links and where they lead."""
    layout = _Layout.of(machine)
    texts = itertools.chain(
        _cpu_files(machine, layout, whole=whole),
        _node_files(machine, layout),
        _top_level(machine, layout),
    )
    ending = machine.kernel.ending
    ended = {f"{_SYSTEM}/{path}": text.rstrip("\n") + ending for path, text in texts}
    return ended, {f"{_SYSTEM}/{path}": target for path, target in _links(machine, layout)}


def _folders(paths: Iterable[str]) -> list[str]:
    """Return the directories that `paths` lie in, outer ones first."""
    found: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return sorted(found)


@st.composite
def machines(draw: st.DrawFn, most: int = 2, least: int = 1) -> Machine:
    """Draw a machine, with `least` to `most` of each thing that it can have several of."""
    some = st.integers(least, most)
    numa = draw(st.booleans())
    made = Machine(
        packages=draw(some) if numa else 1,
        dies=draw(some),
        cells=draw(some) if numa else 1,
        cores=draw(some),
        threads=draw(st.sampled_from([n for n in (1, 2, 4, 8) if n <= 2 * most])),
        small_cores=draw(st.integers(0, most)),
        numbering=draw(st.sampled_from(("adjacent", "interleaved"))),
        l3_cores=draw(st.none() | st.integers(0, most)),
        memory_only=tuple(draw(st.sets(st.integers(80, 90), max_size=most))) if numa else (),
        memory_bytes=draw(st.none() | st.integers(1, 2**32).map(lambda kib: kib * 1024)),
        far=draw(st.none() | st.integers(13, 254)),
        asymmetry=draw(st.integers(0, 1)),
        numa=numa,
        kernel=draw(kernels()),
    )
    return _numbered(draw, made)


def _numbered(draw: st.DrawFn, machine: Machine) -> Machine:
    """Draw the ids of a machine's pCPUs and cells, and which pCPUs are off line or isolated."""
    count, cells = len(_threads(machine)), machine.packages * machine.cells
    ids = range(count)
    if draw(st.booleans()):
        gap, first = draw(st.integers(1, 8190 // count)), draw(st.integers(0, 1))
        ids = range(first, first + count * gap, gap)
    nodes = st.sets(st.integers(0, 70), min_size=cells, max_size=cells)
    places = st.sets(st.integers(0, count - 1), max_size=count - 1)
    return dataclasses.replace(
        machine,
        cpu_ids=tuple(ids),
        cell_ids=tuple(sorted(draw(nodes))) if machine.numa else (),
        offline=CpuSet(ids[place] for place in draw(places)),
        isolated=CpuSet(ids[place] for place in draw(places)),
    )


def kernels() -> st.SearchStrategy[Kernel]:
    """Draw a kernel."""
    return st.builds(
        Kernel,
        lists=st.booleans(),
        present_names=st.booleans(),
        top_level=st.booleans(),
        node_directories=st.booleans(),
        keeps_offline=st.booleans(),
        ids=st.booleans(),
        unset_isolated=st.sampled_from(("", "(null)", None)),
        ending=st.sampled_from(("\n", "", "\0", "\0\n", "\n\n")),
    )


def _threads(machine: Machine) -> tuple[Thread, ...]:
    """Return the pCPUs of a machine by id."""
    sizes = [machine.threads] * machine.cores + [1] * machine.small_cores
    places = [
        (package, cell, core, thread)
        for package in range(machine.packages)
        for cell in range(machine.cells)
        for core, size in enumerate(sizes)
        for thread in range(size)
    ]
    if machine.numbering == "interleaved":
        places.sort(key=lambda place: (place[3], place))
    ids = _cell_ids(machine)
    of_package = machine.cells * len(sizes)
    l3_cores = of_package if machine.l3_cores is None else machine.l3_cores
    return tuple(
        Thread(
            id=number,
            package=package,
            die=(cell * len(sizes) + core) * machine.dies // of_package,
            cell=ids[package * machine.cells + cell],
            core=cell * len(sizes) + core,
            l3=(cell * len(sizes) + core) // l3_cores if l3_cores else None,
        )
        for number, (package, cell, core, _) in zip(
            machine.cpu_ids or range(len(places)), places, strict=True
        )
    )


def _cell_ids(machine: Machine) -> tuple[CellId, ...]:
    ids = machine.cell_ids or tuple(range(machine.packages * machine.cells))
    return tuple(CellId(cell) for cell in ids)


def _grouped(threads: Iterable[Thread], key: Callable[[Thread], _Key]) -> dict[_Key, CpuSet]:
    """Return the pCPUs that have a key in common, by key."""
    bits: dict[_Key, int] = {}
    for thread in threads:
        bits[key(thread)] = bits.get(key(thread), 0) | 1 << thread.id
    return {found: CpuSet.from_bits(cpus) for found, cpus in bits.items()}


def _sharers(threads: tuple[Thread, ...], key: Callable[[Thread], Hashable]) -> dict[int, CpuSet]:
    """Return, for each pCPU, those that have its key."""
    groups = _grouped(threads, key)
    return {thread.id: groups[key(thread)] for thread in threads}


def _pcpu(machine: Machine, thread: Thread, layout: _Layout) -> Pcpu:
    kernel, online = machine.kernel, layout.online
    is_online = thread.id in online
    has_ids = is_online or kernel.keeps_offline
    return Pcpu(
        id=thread.id,
        online=is_online,
        isolated=thread.id in machine.isolated,
        cell=thread.cell if machine.numa else CellId(0) if is_online else None,
        package=thread.package if has_ids and kernel.ids else None,
        die=thread.die if has_ids and kernel.ids and kernel.present_names else None,
        core=thread.core if has_ids else None,
        siblings=layout.cores[thread.id] & online if is_online else None,
        l3=layout.caches[thread.id] & online if is_online and thread.l3 is not None else None,
    )


def _cells(machine: Machine, layout: _Layout) -> tuple[Cell, ...]:
    if not machine.numa:
        return (Cell(CellId(0), layout.online, memory_bytes=None, distances=()),)
    ids = sorted(cell for cell, cpus in layout.nodes.items() if cpus & layout.online)
    told = machine.kernel.node_directories
    return tuple(
        Cell(
            id=CellId(cell),
            cpus=layout.nodes[cell] & layout.online,
            memory_bytes=machine.memory_bytes if told else None,
            distances=tuple(
                (CellId(other), _distance(machine, cell, other))
                for other in ids
                if told and machine.far
            ),
        )
        for cell in ids
    )


def _nodes(machine: Machine) -> tuple[int, ...]:
    return tuple(sorted((*_cell_ids(machine), *machine.memory_only)))


def _distance(machine: Machine, one: int, other: int) -> int:
    if one == other:
        return 10
    ids = _cell_ids(machine)
    packages = {ids.index(CellId(n)) // machine.cells if n in ids else n for n in (one, other)}
    far = machine.near if len(packages) == 1 else machine.far or 0
    return far + machine.asymmetry * (one > other)


def _set(kernel: Kernel, name: str, suffix: str, cpus: CpuSet) -> Iterator[tuple[str, str]]:
    """Yield the file of a set as a mask, and as a list, of a name like the mask's."""
    yield name, mask(cpus)
    if kernel.lists:
        yield name.removesuffix("map") + suffix, str(cpus)


def mask(cpus: CpuSet) -> str:
    """Write a set as the kernel's mask, with a short first word."""
    digits = f"{cpus.bits:x}"
    words = [digits[max(0, end - 8) : end] for end in range(len(digits), 0, -8)]
    return ",".join(reversed(words))


def _top_level(machine: Machine, layout: _Layout) -> Iterator[tuple[str, str]]:
    present = layout.online | machine.offline
    isolated = str(machine.isolated) or machine.kernel.unset_isolated
    if isolated is not None:
        yield "cpu/isolated", isolated
    yield "cpu/nohz_full", "(null)"
    yield "cpu/kernel_max", "8191"
    if machine.kernel.top_level:
        yield "cpu/online", str(layout.online)
        yield "cpu/present", str(present)
        yield "cpu/possible", str(CpuSet(range(min(present.bits.bit_length() + 8, LIMIT))))


def _cpu_files(machine: Machine, layout: _Layout, *, whole: bool) -> Iterator[tuple[str, str]]:
    for thread in layout.threads:
        is_online = thread.id in layout.online
        here = f"cpu/cpu{thread.id}"
        if thread.id or not is_online:  # what boots the machine cannot be unplugged, on most
            yield f"{here}/online", str(int(is_online))
        if is_online or machine.kernel.keeps_offline:
            seen = layout.online | CpuSet.of(thread.id)
            yield from _topology_files(machine, thread, layout, seen)
            yield from _cache_files(machine, thread, layout, seen)
            if whole:
                yield from _foreign_files(machine, thread, layout, seen)


def _topology_files(
    machine: Machine, thread: Thread, layout: _Layout, seen: CpuSet
) -> Iterator[tuple[str, str]]:
    here = f"cpu/cpu{thread.id}/topology"
    core = layout.cores[thread.id] & seen
    yield f"{here}/physical_package_id", str(thread.package if machine.kernel.ids else -1)
    yield f"{here}/core_id", str(thread.core)
    yield from _set(machine.kernel, f"{here}/thread_siblings", "_list", core)
    if machine.kernel.present_names:
        yield f"{here}/die_id", str(thread.die if machine.kernel.ids else -1)
        yield from _set(machine.kernel, f"{here}/core_cpus", "_list", core)


def _cache_files(
    machine: Machine, thread: Thread, layout: _Layout, seen: CpuSet
) -> Iterator[tuple[str, str]]:
    for index, (level, kind) in enumerate(_CACHES):
        here = f"cpu/cpu{thread.id}/cache/index{index}"
        if level < _SHARED_LEVEL or thread.l3 is not None:
            yield f"{here}/level", str(level)
            yield f"{here}/type", kind
        if level == _SHARED_LEVEL and thread.l3 is not None:
            sharers = layout.caches[thread.id] & seen
            yield from _set(machine.kernel, f"{here}/shared_cpu_map", "list", sharers)


def _foreign_files(
    machine: Machine, thread: Thread, layout: _Layout, seen: CpuSet
) -> Iterator[tuple[str, str]]:
    """Yield what lscpu and hwloc read, and this program does not."""
    here, kernel = f"cpu/cpu{thread.id}", machine.kernel
    package = layout.packages[thread.id] & seen
    yield from _set(kernel, f"{here}/topology/core_siblings", "_list", package)
    if kernel.present_names:
        yield from _set(kernel, f"{here}/topology/package_cpus", "_list", package)
    for index, (level, _) in enumerate(_CACHES):
        cache = f"{here}/cache/index{index}"
        if level < _SHARED_LEVEL:
            core = layout.cores[thread.id] & seen
            yield from _set(kernel, f"{cache}/shared_cpu_map", "list", core)
        if level < _SHARED_LEVEL or thread.l3 is not None:
            for name, text in _GEOMETRY:
                yield f"{cache}/{name}", text


def _node_files(machine: Machine, layout: _Layout) -> Iterator[tuple[str, str]]:
    if not machine.numa or not machine.kernel.node_directories:
        return
    nodes = _nodes(machine)
    if machine.kernel.top_level:
        yield "node/online", str(CpuSet(nodes))
        yield "node/possible", str(CpuSet(range(max(nodes) + 1)))
    for node in nodes:
        here = f"node/node{node}"
        cpus = layout.nodes.get(node, EMPTY) & layout.online
        yield from _set(machine.kernel, f"{here}/cpumap", "list", cpus)
        if machine.memory_bytes is not None:
            yield f"{here}/meminfo", _meminfo(node, machine.memory_bytes // 1024)
        if machine.far is not None:
            yield f"{here}/distance", " ".join(str(_distance(machine, node, n)) for n in nodes)


def _meminfo(node: int, kib: int) -> str:
    return f"Node {node} MemTotal:  {kib:>12} kB\nNode {node} MemFree:   {kib // 3:>12} kB\n"


def _links(machine: Machine, layout: _Layout) -> Iterator[tuple[str, str]]:
    """Yield the links between pCPUs and their nodes, both ways, as the kernel has them."""
    if machine.numa:
        for thread in layout.threads:
            cpu, node = f"cpu{thread.id}", f"node{thread.cell}"
            yield f"cpu/{cpu}/{node}", f"../../node/{node}"
            if machine.kernel.node_directories:
                yield f"node/{node}/{cpu}", f"../../cpu/{cpu}"
