"""Hosts, guests and settings of the core's tests, as values: no file, no libvirt.

A `Guest` here is what observing would have made of a domain.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from agent import policy
from agent.cpuset import CellId, CpuSet, union
from agent.domainxml import Domain, Flaw, IoThread, NovaMetadata, Pins, Vcpu
from agent.policy import Policy, Source, Verdict
from agent.pool import CellSettings, PoolSettings
from agent.snapshot import Guest, Kernel, Thread
from agent.topology import Cell, Host, Pcpu

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ISOLATE: Final = frozenset({Policy.ISOLATE})


def cpus(text: str) -> CpuSet:
    """Return the set that `text` names."""
    return CpuSet.parse(text)


def uuid_of(number: int) -> str:
    """Return the UUID of guest `number`; they sort as the numbers do."""
    return f"00000000-0000-4000-8000-{number:012x}"


# hosts


def host(
    cells: int = 1,
    cores: int = 2,
    smt: int = 2,
    *,
    l3_cores: int | None = None,
    offline: str = "",
    isolated: str = "",
    distances: Mapping[tuple[int, int], int] | None = None,
    cell_ids: Sequence[int] | None = None,
) -> Host:
    """Return a host whose pCPUs are numbered cell by cell, core by core.

    `l3_cores` cores of a cell share an L3 (None: all of them, 0: the host tells of none).
    """
    per_cell, ids = cores * smt, list(cell_ids or range(cells))
    off = cpus(offline)
    present = range(cells * per_cell)
    online = CpuSet(present) - off
    made = tuple(
        _pcpu(cpu, CellId(ids[cpu // per_cell]), per_cell, smt, l3_cores, online, cpus(isolated))
        for cpu in present
    )
    members = {
        CellId(one): CpuSet(range(n * per_cell, (n + 1) * per_cell)) & online
        for n, one in enumerate(ids)
    }
    shown = {one: members[one] for one in sorted(members) if members[one]}
    far = distances if distances is not None else {}
    rows = {
        one: tuple((other, far.get((one, other), 10 if one == other else 20)) for other in shown)
        for one in shown
    }
    return Host(
        cells=tuple(
            Cell(one, shown[one], None, rows[one] if distances != {} else ()) for one in shown
        ),
        cpus=made,
        online=online,
        isolated=cpus(isolated),
    )


def _pcpu(
    cpu: int,
    cell: CellId,
    per_cell: int,
    smt: int,
    l3_cores: int | None,
    online: CpuSet,
    isolated: CpuSet,
) -> Pcpu:
    first_of_cell = cpu // per_cell * per_cell
    share = per_cell if l3_cores is None else l3_cores * smt
    l3_first = first_of_cell + (cpu - first_of_cell) // share * share if share else 0
    l3_end = min(l3_first + share, first_of_cell + per_cell)
    core_first = cpu // smt * smt
    on = cpu in online
    return Pcpu(
        id=cpu,
        online=on,
        isolated=cpu in isolated,
        cell=cell,
        package=0,
        die=0,
        core=cpu // smt,
        siblings=CpuSet(range(core_first, core_first + smt)) & online if on else None,
        l3=CpuSet(range(l3_first, l3_end)) & online if on and share else None,
    )


def offlined(whole: Host, off: CpuSet) -> Host:
    """Return `whole`, a host with all pCPUs on line, with `off` off line."""
    online = whole.online - off
    made = tuple(
        replace(
            pcpu,
            online=pcpu.id in online,
            siblings=pcpu.siblings & online if pcpu.siblings and pcpu.id in online else None,
            l3=pcpu.l3 & online if pcpu.l3 and pcpu.id in online else None,
        )
        for pcpu in whole.cpus
    )
    left = {cell.id for cell in whole.cells if cell.cpus & online}
    cells = tuple(
        replace(
            cell,
            cpus=cell.cpus & online,
            distances=tuple(pair for pair in cell.distances if pair[0] in left),
        )
        for cell in whole.cells
        if cell.id in left
    )
    return Host(cells, made, online, whole.isolated)


EIGHT: Final = host(cells=1, cores=8, smt=1)
TWO: Final = host(cells=2, cores=4, smt=2)


# guests


def domain(
    number: int,
    *,
    pins: Sequence[str] = (),
    emulator: str | None = None,
    realtime: bool = False,
    vcpu_cpuset: str | None = None,
    iothreads: Sequence[str | None] = (),
    memnode: Iterable[int] | None = None,
    memory: Iterable[int] | None = None,
    nova: bool = False,
    name: str | None = None,
    running: bool = True,
    emulator_realtime: bool = False,
) -> Domain:
    """Return a definition; `pins` are the effective masks of its vCPUs."""
    vcpus = tuple(Vcpu(n, cpus(text), realtime) for n, text in enumerate(pins))
    claims = union(vcpu.cpus for vcpu in vcpus if vcpu.cpus and vcpu.claim is not None)
    return Domain(
        uuid=uuid_of(number),
        name=f"guest-{number}" if name is None else name,
        id=number if running else None,
        vcpus=vcpus or (Vcpu(0, cpus(vcpu_cpuset) if vcpu_cpuset else None, realtime=False),),
        vcpu_cpuset=cpus(vcpu_cpuset) if vcpu_cpuset else None,
        emulator=cpus(emulator) if emulator else None,
        emulator_realtime=emulator_realtime,
        iothreads=tuple(
            IoThread(n, cpus(text) if text else None, realtime=False)
            for n, text in enumerate(iothreads, start=1)
        ),
        memnode=frozenset(map(CellId, memnode)) if memnode is not None else None,
        memory_nodes=frozenset(map(CellId, memory)) if memory is not None else None,
        partition=None,
        own=None,
        nova=NovaMetadata("flavor", None) if nova else None,
        claims=claims,
        realtime_claims=claims if realtime else CpuSet(),
        flaws=(),
    )


def guest(
    number: int = 1,
    *,
    policy: Policy = Policy.ISOLATE,
    weight: Fraction | int = 1,
    cell: int | None = None,
    exclusive: bool = True,
    original: str | None = "same",
    age: int | None = None,
    busy: bool = False,
    kernel: Kernel | None = None,
    pins: Sequence[str] = (),
    emulator: str | None = None,
    realtime: bool = False,
    vcpu_cpuset: str | None = None,
    iothreads: Sequence[str | None] = (),
    memnode: Iterable[int] | None = None,
    memory: Iterable[int] | None = None,
    nova: bool = False,
    name: str | None = None,
    running: bool = True,
) -> Guest:
    """Return a guest whose verdict is given; its original pins are those of now, or `original`."""
    now = domain(
        number,
        pins=pins,
        emulator=emulator,
        realtime=realtime,
        vcpu_cpuset=vcpu_cpuset,
        iothreads=iothreads,
        memnode=memnode,
        memory=memory,
        nova=nova,
        name=name,
        running=running,
    )
    started = now.pins
    if original != "same":
        pin = cpus(original) if original else None
        follow = tuple((n, pin if at == now.emulator else at) for n, at in started.iothreads)
        started = Pins(pin, follow)
    return Guest(
        domain=now,
        original=started,
        verdict=Verdict(
            policy=policy,
            source=Source.RULE,
            weight=Fraction(weight),
            cell=CellId(cell) if cell is not None else None,
            exclusive=exclusive
            and started.emulator is not None
            and started.emulator.only() is not None,
        ),
        age=number if age is None else age,
        start=f"start-{number}",
        busy=busy,
        kernel=kernel,
    )


def resolved(
    domains: Iterable[Domain], settings: policy.GuestSettings | None = None
) -> tuple[Guest, ...]:
    """Return guests as they are when seen first: originals are the pins, verdicts are resolved."""
    found = list(domains)
    shared = policy.shared_cpus(one.emulator for one in found)
    asked = settings or policy.GuestSettings()
    return tuple(
        Guest(
            domain=one,
            original=one.pins,
            verdict=policy.resolve(asked, one, one.emulator, shared),
            age=one.id or 0,
            start=f"start-{one.id}" if one.id is not None else "",
        )
        for one in found
    )


def repinned(before: Guest, emulator: CpuSet, iothreads: CpuSet | None = None) -> Guest:
    """Return the guest with another live pin; `iothreads` is where its iothreads are then."""
    threads = before.domain.iothreads
    if iothreads is not None:
        threads = tuple(replace(thread, cpus=iothreads) for thread in threads)
    return replace(before, domain=replace(before.domain, emulator=emulator, iothreads=threads))


def obedient(cpus: CpuSet, parent: CpuSet | None = None, threads: int = 2) -> Kernel:
    """Return what the kernel holds of a guest whose threads all follow a cpuset of `cpus`."""
    return Kernel(cpus, parent, tuple(Thread(tid, cpus) for tid in range(1, threads + 1)), ())


def fleet(count: int, **keys: Any) -> tuple[Guest, ...]:  # noqa: ANN401 - those of `guest`
    """Return guests that are alike."""
    return tuple(guest(number, **keys) for number in range(1, count + 1))


def flawed(one: Guest, *flaws: Flaw) -> Guest:
    return replace(one, verdict=replace(one.verdict, flaws=flaws))


def relabelled(one: Guest, policy: Policy = Policy.IGNORE) -> Guest:
    return replace(one, verdict=replace(one.verdict, policy=policy))


def kernel(
    cpuset: str | None = "2-3", threads: tuple[str, ...] = ("2-3",), iothread: str = "2-3"
) -> Kernel:
    """Return what the kernel holds of a guest with one iothread; masks as text."""
    return Kernel(
        cpus(cpuset) if cpuset else None,
        None,
        tuple(Thread(tid, cpus(mask)) for tid, mask in enumerate(threads, 100)),
        ((1, (Thread(200, cpus(iothread)),)),),
    )


# settings


def pool_settings(cells: Mapping[int, CellSettings] | None = None, /, **keys: Any) -> PoolSettings:  # noqa: ANN401 - each field has a type of its own
    """Return the settings with `keys` of `[pool]`; CPU lists may be given as text."""
    whole = {"count_inactive", "iothreads", "on_stop"}
    top = {key: value for key, value in keys.items() if key in whole}
    rest = {key: value for key, value in keys.items() if key not in whole}
    return PoolSettings(
        default=cell_settings(**rest),
        cells={CellId(cell): one for cell, one in (cells or {}).items()},
        **top,
    )


def cell_settings(**keys: Any) -> CellSettings:  # noqa: ANN401 - as above
    """Return the settings of a cell; `ratio` may be any number, CPU lists may be text."""
    values = dict(keys)
    if "ratio" in values:
        values["emulator_overcommit_ratio"] = Fraction(str(values.pop("ratio")))
    for key in ("cpus", "reserved_cpus"):
        if isinstance(values.get(key), str):
            values[key] = cpus(str(values[key]))
    return CellSettings(**values)
