"""Hosts of 2, 32 and 512 pCPUs as a daemon would tell of them: what pictures are tried on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from agent.config import Config, to_json
from agent.cycle import Cause, CycleResult
from agent.pool import OnShortage
from agent.status import Standing, status
from tests.builders import cpus, guest, obedient, pool_settings
from tests.hosts import ONE_CELL_TWO_CPUS, TWO_SOCKET_SMT, Machine, host
from tests.worlds import World

if TYPE_CHECKING:
    from agent.snapshot import Guest

LARGEST: Final = Machine(
    packages=2, cells=4, cores=32, threads=2, numbering="interleaved", l3_cores=8, far=32
)
"""512 pCPUs, in eight cells with four L3 caches each."""
CROWD: Final = 500


def told(world: World, **standing: Any) -> dict[str, Any]:  # noqa: ANN401 - those of Standing
    """Return the status of a daemon that has decided, but not yet acted."""
    decided = world.plan()
    result = CycleResult(
        cause=Cause.EVENT,
        seconds=0.0031,
        host=world.host,
        plan=decided,
        guests=world.guests,
        steps=world.steps(decided),
        outcomes=(),
        memory=decided.memory,
        stuck={},
    )
    made = Standing("qemu:///system", connected=True, result=result, at=1.7e9)
    document = status(replace(made, config=to_json(Config()), **standing), {})
    for row, cell in zip(document["cells"], decided.cells, strict=True):
        row["pool_now"] = str(cell.pool_now)  # as it was before the cycle that is to act
    return document


def small() -> World:
    """One cell of two pCPUs: a guest has one, the pool the other."""
    return World(host(ONE_CELL_TWO_CPUS), (_pinned(1, "0"),)).settle()


def middle() -> World:
    """Two sockets of 16 pCPUs with each use of a pCPU: a guest has claimed one of the pool."""
    machine = replace(TWO_SOCKET_SMT, offline=cpus("31"), isolated=cpus("14-15"))
    settings = pool_settings(
        cpus="2-5,8-13,18-22,24-28",
        reserved_cpus="0,16",
        ratio=2,
        on_shortage=OnShortage.SPILL,
    )
    crowd = [_pinned(number, str(number + 5), memnode=(0,)) for number in range(1, 3)]
    crowd += [_pinned(number, str(number + 20), memnode=(1,), realtime=True) for number in (4, 5)]
    crowd += [guest(number, memnode=(0,), kernel=obedient(cpus("3"))) for number in range(7, 27)]
    crowd.append(guest(40, name="stopped", running=False, pins=("29",)))
    world = World(host(machine), tuple(crowd), settings).settle()
    pool = world.plan().cells[0].emulator_cpus
    newcomer = _pinned(30, str(pool.first()), memnode=(0,), name="newcomer")
    return world.having(*world.guests, newcomer)


def large() -> World:
    """512 pCPUs and 500 guests, of which each has two pCPUs up to nobody having one left."""
    machine = host(LARGEST)
    crowd = []
    for number in range(CROWD):
        cell = machine.cells[number % len(machine.cells)]
        own = sorted(cell.cpus)[number // len(machine.cells) * 2 :][:2]
        pins = tuple(map(str, own)) if number < CROWD // 2 - 64 else ()
        one = guest(
            number, pins=pins, memnode=(cell.id,), kernel=obedient(cell.cpus), realtime=number < 16
        )
        crowd.append(one)
    return World(machine, tuple(crowd), pool_settings(ratio="2.5")).settle()


def _pinned(number: int, cpu: str, **properties: Any) -> Guest:  # noqa: ANN401 - of `guest`
    return guest(number, pins=(cpu,), kernel=obedient(cpus(cpu)), **properties)


WORLDS: Final = {"2 pCPUs": small, "32 pCPUs": middle, "512 pCPUs": large}
