"""Whether a configuration fits the host it is for: its pCPUs and its NUMA cells are there.

A pCPU that is off line is present, but the kernel may not tell its cell, and then that is not
judged: Nova's power management takes all pCPUs of an idle cell off line, and a cell without one
that is on line looks like none. The daemon must start there all the same.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from agent.config.values import shown
from agent.cpuset import CpuSet
from agent.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.config.settings import Config
    from agent.cpuset import CellId
    from agent.pool import PoolSettings
    from agent.topology import Host


def check_host(
    config: Config,
    host: Host,
    file: str,  # noqa: ARG001 - callers hold (config, host, file); a Problem has no file
) -> tuple[Problem, ...]:
    """Return what `config` names that `host` does not have, or has in another cell."""
    pool, general = config.pool, _lists(config.pool, None)
    of_cells = (_check_cell(pool, cell, host) for cell in pool.cells)
    return (*_absent("pool", general, host), *chain.from_iterable(of_cells))


def _check_cell(pool: PoolSettings, cell: CellId, host: Host) -> Iterator[Problem]:
    path = f"pool.cell.{cell}"
    known = {pcpu.cell for pcpu in host.cpus}
    if cell not in known and None not in known:
        cells = ", ".join(str(each.id) for each in host.cells)
        yield Problem(
            path, str(cell), f"this host has no such NUMA cell with a pCPU: it has {cells}"
        )
        return
    lists = _lists(pool, cell)
    yield from _absent(path, lists, host)
    elsewhere = CpuSet(pcpu.id for pcpu in host.cpus if pcpu.cell not in (None, cell))
    own = CpuSet(pcpu.id for pcpu in host.cpus if pcpu.cell == cell)
    for key, cpus in lists.items():
        if cpus & elsewhere:
            remedy = f"{cpus & elsewhere} is not in cell {cell}, which has {own}"
            yield Problem(f"{path}.{key}", shown(str(cpus)), remedy)


def _absent(path: str, lists: Mapping[str, CpuSet], host: Host) -> Iterator[Problem]:
    present = CpuSet(pcpu.id for pcpu in host.cpus)
    for key, cpus in lists.items():
        if cpus - present:
            remedy = f"{cpus - present} is not present: this host has {present}"
            yield Problem(f"{path}.{key}", shown(str(cpus)), remedy)


def _lists(pool: PoolSettings, cell: CellId | None) -> dict[str, CpuSet]:
    """Return the CPU lists of `[pool]`, or those that a cell has of its own."""
    general = {"cpus": pool.default.cpus, "reserved_cpus": pool.default.reserved_cpus}
    if cell is None:
        return general
    settings = pool.of(cell)
    own = {"cpus": settings.cpus, "reserved_cpus": settings.reserved_cpus}
    return {key: cpus for key, cpus in own.items() if cpus != general[key]}
