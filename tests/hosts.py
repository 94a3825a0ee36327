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
from typing import TYPE_CHECKING, Final, Literal

from hypothesis import strategies as st

from agent.cpuset import EMPTY, CellId, CpuSet
from agent.topology import Cell, Host, Pcpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

GIB: Final = 2**30

# Trees have a thousand small files: ten times faster in memory, where there is such a place.
MEMORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a kernel tells: each field is a habit that some have, and the defaults are of Linux 6."""

    lists: bool = True  # False: masks only, as the oldest had
    present_names: bool = True  # False: before 5.3, no `core_cpus` nor `die_id`
    top_level: bool = True  # False: no `online`, `present`, `possible`
    node_directories: bool = True  # False: only the links of the pCPUs say what node they are in
    keeps_offline: bool = False  # an offline pCPU keeps a stale `topology` and `cache`
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
    cell_ids: tuple[int, ...] = ()  # by default from 0 up, without holes
    memory_only: tuple[int, ...] = ()  # further nodes, without pCPUs
    memory_bytes: int | None = 64 * GIB  # of each cell
    near: int = 12  # between cells of one package
    far: int | None = 21  # between packages; None: the kernel does not tell distances
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

MACHINES: Final = {
    "one cell, two pCPUs": ONE_CELL_TWO_CPUS,
    "two cells, eight pCPUs": TWO_CELLS_EIGHT_CPUS,
    "two sockets with SMT": TWO_SOCKET_SMT,
    "EPYC with four cells to a socket and an L3 to four cores": EPYC_NPS4,
    "Xeon whose L3 is wider than its cells": XEON_SNC,
    "kernel without NUMA": NO_NUMA,
    "desktop with cores of two kinds": HYBRID_DESKTOP,
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


def host(machine: Machine) -> Host:
    """Return what a machine is."""
    threads = _threads(machine)
    online = CpuSet(t.id for t in threads) - machine.offline
    return Host(
        cells=_cells(machine, threads, online),
        cpus=tuple(_pcpu(machine, thread, threads, online) for thread in threads),
        online=online,
        isolated=machine.isolated,
    )


def write(machine: Machine, root: Path) -> Path:
    """Lay out the files of a machine below `root`, and return it."""
    threads = _threads(machine)
    system = root / "sys/devices/system"
    texts = dict(
        itertools.chain(
            _cpu_files(machine, threads),
            _node_files(machine, threads),
            _top_level(machine, threads),
        )
    )
    for folder in {path.rpartition("/")[0] for path in texts}:
        (system / folder).mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        (system / path).write_text(text.rstrip("\n") + machine.kernel.ending)
    for thread in threads:
        directory = system / f"cpu/cpu{thread.id}"
        directory.mkdir(exist_ok=True)
        if machine.numa:
            _link(directory, system / f"node/node{thread.cell}", machine)
    return root


@st.composite
def machines(draw: st.DrawFn, most: int = 2) -> Machine:
    """Draw a machine, with one to `most` of each thing that it can have several of."""
    some = st.integers(1, most)
    numa = draw(st.booleans())
    made = Machine(
        packages=draw(some) if numa else 1,
        dies=draw(some),
        cells=draw(some) if numa else 1,
        cores=draw(some),
        threads=draw(st.sampled_from((1, 2, 4, 8)).filter(lambda n: n <= 2 * most)),
        small_cores=draw(st.integers(0, most)),
        numbering=draw(st.sampled_from(("adjacent", "interleaved"))),
        l3_cores=draw(st.none() | st.integers(0, most)),
        memory_only=tuple(draw(st.sets(st.integers(80, 90), max_size=most))) if numa else (),
        memory_bytes=draw(st.none() | st.integers(1, 2**32).map(lambda kib: kib * 1024)),
        far=draw(st.none() | st.integers(13, 254)),
        numa=numa,
    )
    count = made.packages * made.cells
    ids = st.sets(st.integers(0, 70), min_size=count, max_size=count)
    cpus = st.sets(st.integers(0, len(_threads(made)) - 1)).map(CpuSet)
    return dataclasses.replace(
        made,
        cell_ids=tuple(sorted(draw(ids))) if numa else (),
        offline=draw(cpus.filter(lambda off: len(off) < len(_threads(made)))),
        isolated=draw(cpus),
        kernel=draw(kernels()),
    )


def kernels() -> st.SearchStrategy[Kernel]:
    """Draw a kernel."""
    return st.builds(Kernel, ending=st.sampled_from(("\n", "", "\0", "\0\n", "\n\n")))


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
        for number, (package, cell, core, _) in enumerate(places)
    )


def _cell_ids(machine: Machine) -> tuple[CellId, ...]:
    ids = machine.cell_ids or tuple(range(machine.packages * machine.cells))
    return tuple(CellId(cell) for cell in ids)


def _alike(threads: Iterable[Thread], key: Callable[[Thread], object], thread: Thread) -> CpuSet:
    return CpuSet(other.id for other in threads if key(other) == key(thread))


def _core(thread: Thread) -> tuple[int, int]:
    return thread.package, thread.core


def _l3(thread: Thread) -> tuple[int, int | None]:
    return thread.package, thread.l3


def _package(thread: Thread) -> int:
    return thread.package


def _pcpu(machine: Machine, thread: Thread, threads: tuple[Thread, ...], online: CpuSet) -> Pcpu:
    is_online = thread.id in online
    has_ids = is_online or machine.kernel.keeps_offline
    return Pcpu(
        id=thread.id,
        online=is_online,
        isolated=thread.id in machine.isolated,
        cell=thread.cell if machine.numa else CellId(0) if is_online else None,
        package=thread.package if has_ids else None,
        die=thread.die if has_ids and machine.kernel.present_names else None,
        core=thread.core if has_ids else None,
        siblings=_alike(threads, _core, thread) & online if is_online else None,
        l3=_alike(threads, _l3, thread) & online if is_online and thread.l3 is not None else None,
    )


def _cells(machine: Machine, threads: tuple[Thread, ...], online: CpuSet) -> tuple[Cell, ...]:
    if not machine.numa:
        return (Cell(CellId(0), online, memory_bytes=None, distances=()),)
    homes = {thread.id: thread.cell for thread in threads}
    ids = sorted({homes[cpu] for cpu in online})
    told = machine.kernel.node_directories
    return tuple(
        Cell(
            id=cell,
            cpus=CpuSet(cpu for cpu in online if homes[cpu] == cell),
            memory_bytes=machine.memory_bytes if told else None,
            distances=tuple(
                (other, _distance(machine, cell, other)) for other in ids if told and machine.far
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
    return machine.near if len(packages) == 1 else machine.far or 0


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


def _top_level(machine: Machine, threads: tuple[Thread, ...]) -> Iterator[tuple[str, str]]:
    present = CpuSet(thread.id for thread in threads)
    yield "cpu/isolated", str(machine.isolated)
    yield "cpu/nohz_full", "(null)"
    if machine.kernel.top_level:
        yield "cpu/online", str(present - machine.offline)
        yield "cpu/present", str(present)
        yield "cpu/possible", str(present | CpuSet(range(present.bits.bit_length() + 8)))


def _cpu_files(machine: Machine, threads: tuple[Thread, ...]) -> Iterator[tuple[str, str]]:
    online = CpuSet(thread.id for thread in threads) - machine.offline
    for thread in threads:
        is_online = thread.id in online
        here = f"cpu/cpu{thread.id}"
        if thread.id or not is_online:  # what boots the machine cannot be unplugged, on most
            yield f"{here}/online", str(int(is_online))
        if is_online or machine.kernel.keeps_offline:
            seen = online | CpuSet.of(thread.id)
            yield from _topology_files(machine, thread, threads, seen)
            yield from _cache_files(machine, thread, threads, seen)


def _topology_files(
    machine: Machine, thread: Thread, threads: tuple[Thread, ...], seen: CpuSet
) -> Iterator[tuple[str, str]]:
    here = f"cpu/cpu{thread.id}/topology"
    core = _alike(threads, _core, thread) & seen
    package = _alike(threads, _package, thread) & seen
    yield f"{here}/physical_package_id", str(thread.package)
    yield f"{here}/core_id", str(thread.core)
    yield from _set(machine.kernel, f"{here}/thread_siblings", "_list", core)
    yield from _set(machine.kernel, f"{here}/core_siblings", "_list", package)
    if machine.kernel.present_names:
        yield f"{here}/die_id", str(thread.die)
        yield from _set(machine.kernel, f"{here}/core_cpus", "_list", core)
        yield from _set(machine.kernel, f"{here}/package_cpus", "_list", package)


def _cache_files(
    machine: Machine, thread: Thread, threads: tuple[Thread, ...], seen: CpuSet
) -> Iterator[tuple[str, str]]:
    core = _alike(threads, _core, thread) & seen
    caches = [(1, "Data", core), (1, "Instruction", core), (2, "Unified", core)]
    if thread.l3 is not None:
        caches.append((3, "Unified", _alike(threads, _l3, thread) & seen))
    for index, (level, kind, sharers) in enumerate(caches):
        here = f"cpu/cpu{thread.id}/cache/index{index}"
        yield f"{here}/level", str(level)
        yield f"{here}/type", kind
        yield from _set(machine.kernel, f"{here}/shared_cpu_map", "list", sharers)


def _node_files(machine: Machine, threads: tuple[Thread, ...]) -> Iterator[tuple[str, str]]:
    if not machine.numa or not machine.kernel.node_directories:
        return
    nodes = _nodes(machine)
    if machine.kernel.top_level:
        yield "node/online", str(CpuSet(nodes))
        yield "node/possible", str(CpuSet(range(max(nodes) + 1)))
    for node in nodes:
        here = f"node/node{node}"
        cpus = CpuSet(thread.id for thread in threads if thread.cell == node) - machine.offline
        yield from _set(machine.kernel, f"{here}/cpumap", "list", cpus)
        if machine.memory_bytes is not None:
            yield f"{here}/meminfo", _meminfo(node, machine.memory_bytes // 1024)
        if machine.far is not None:
            yield f"{here}/distance", " ".join(str(_distance(machine, node, n)) for n in nodes)


def _meminfo(node: int, kib: int) -> str:
    return f"Node {node} MemTotal:  {kib:>12} kB\nNode {node} MemFree:   {kib // 3:>12} kB\n"


def _link(cpu: Path, node: Path, machine: Machine) -> None:
    """Link a pCPU and its node, both ways, as the kernel does."""
    (cpu / node.name).symlink_to(f"../../node/{node.name}")
    if machine.kernel.node_directories:
        (node / cpu.name).symlink_to(f"../../cpu/{cpu.name}")
