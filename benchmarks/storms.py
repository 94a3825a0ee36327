"""Storms: many guests arrive, a reload resizes the pool, libvirtd restarts.

The time is that of the last guest to be right, against a bare client that makes the same calls
over the same number of connections. The calls of the agent are counted in runs of their own, by a
relay (`tap`), against the least possible: a list, a definition of each guest that changed, a pin
of each that moved. The binding's hidden getCPUMap, one for each pin, is told apart, and so is what
opening connections takes.

The masks are read from the kernel, of each thread. At the end of each turn /proc must say that all
is right.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Final

from benchmarks.findings import Chart, Findings, Goal, Table, compared, ms
from benchmarks.stage import (
    BOTH,
    CLAIM,
    ISOLATE,
    PATIENCE,
    ZERO,
    Client,
    Lanes,
    Stage,
    alone,
    placed,
    settled,
    verify,
)
from benchmarks.tap import HIDDEN, Tap
from tests.guests import wait_until

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.suite import Effort
    from benchmarks.watch import Watch
    from tests.guests import Guest
    from tests.service import Service

GOAL_TIME: Final = 1.2
GOAL_CALLS: Final = 1.1
LINEAR: Final = 1.5
HERE: Final[Mapping[str, Path | None]] = {"agent": None}
OPENING: Final = frozenset(
    {
        "AuthList",
        "ConnectClose",
        "ConnectDomainEventCallbackRegisterAny",
        "ConnectOpen",
        "ConnectRegisterCloseCallback",
        "ConnectSupportsFeature",
    }
)
WHY_BACK: Final = (
    "libvirtd holds its guests for a while after its start, and the agent waits for nobody's lock: "
    "what is not there in 50 ms is asked for again when that call has returned; the floor waits"
)
WHY_CALLS: Final = (
    "a connection that pins looks each guest up once, for the handle that a pin needs; "
    "and what runs, and whether a job holds a guest, is asked besides"
)


# calls


@dataclass(slots=True)
class Calls:
    """What the agent asked of libvirtd in one storm, against the least possible."""

    counted: Counter[str]
    least: int

    @property
    def asked(self) -> int:
        """All calls, but for the binding's own and those of opening connections."""
        apart = {HIDDEN, *OPENING}
        return sum(times for name, times in self.counted.items() if name not in apart)

    @property
    def ratio(self) -> float:
        return self.asked / self.least

    def table(self, title: str) -> Table:
        rows = [(name, f"{times:,}") for name, times in self.counted.most_common()]
        return Table(title, ("call", "times"), [*rows, ("least possible", f"{self.least:,}")])


def counted_service(stage: Stage, name: str) -> tuple[Tap, Service]:
    """Return a relay, and an agent that is behind it."""
    tap = Tap(stage.folder / f"{name}.sock", stage.libvirtd.home / "libvirt-sock")
    return tap, stage.service(tap.uri, name)


# guests arrive


def arrive(effort: Effort) -> Findings:
    """Start 100 guests as fast as libvirtd can."""
    count, turns = effort.pick(100, 6), effort.of(2, 1)
    ends: dict[str, list[float]] = {"floor": [], "agent": []}
    lags: dict[str, list[float]] = {"floor": [], "agent": []}
    with Stage() as stage, stage.watch() as watch:
        for number in range(turns):
            with Client("floor", stage.libvirtd.uri):
                end, own = arrival(stage, watch, "-floor", count, "ignore")
                ends["floor"].append(end)
                lags["floor"] += own
            with stage.service(name=f"agent-{number}"):
                end, own = arrival(stage, watch, "-agent", count, "isolate")
                ends["agent"].append(end)
                lags["agent"] += own
        calls = counted_arrival(stage, count)
    whole, figures = compared("from the first announcement to the last pin", ends)
    each, of_each = compared("of each guest, from its announcement to its pin", lags)
    goals = [
        Goal("time", figures["agent"]["ratio"], GOAL_TIME, "times the floor"),
        Goal("calls", calls.ratio, GOAL_CALLS, "times the least", why=WHY_CALLS),
    ]
    return Findings(
        goals,
        [whole, each, calls.table(f"calls of the agent while {count} guests arrive")],
        figures={"whole": figures, "each": of_each, "calls": dict(calls.counted)},
    )


def arrival(
    stage: Stage, watch: Watch, prefix: str, count: int, policy: str
) -> tuple[float, list[float]]:
    """Return the seconds until all were pinned, and those of each; the guests are gone then."""
    watch.forget()
    guests = stage.crowd(prefix, count, metadata_policy=policy, **CLAIM)
    lags = [watch.reaction(guest.uuid, "0") for guest in guests]
    uuids = [guest.uuid for guest in guests]
    verify(guests, ZERO)
    seconds = watch.wait(uuids, "0") - watch.first(uuids)
    stage.leave(guests)
    return seconds, lags


def counted_arrival(stage: Stage, count: int) -> Calls:
    """Return the calls of the agent while guests start that are defined, until it is at rest."""
    tap, service = counted_service(stage, "counted")
    with tap, service:
        guests = stage.defined("-counted", count, **ISOLATE, **CLAIM)
        rested(service)
        tap.taken()
        stage.begin(guests)
        verify(guests, ZERO)
        rested(service)
        calls = Calls(tap.taken(), 1 + 2 * count)
    stage.leave(guests)
    return calls


# a reload resizes the pool


def reload(effort: Effort) -> Findings:
    """Have 100 guests move between one pCPU and two."""
    count = effort.pick(100, 6)
    with Stage() as stage:
        guests = stage.crowd("many", count, **ISOLATE)
        times = reloads(stage, guests, effort.of(20, 2))
        calls = counted_reload(stage, guests)
    table, figures = compared(f"{count} guests moved by a reload", times)
    goals = [
        Goal("time", figures["agent"]["ratio"], GOAL_TIME, "times the floor"),
        Goal("calls", calls.ratio, GOAL_CALLS, "times the least", why=WHY_CALLS),
    ]
    tables = [table, calls.table(f"calls of the agent when a reload moves {count} guests")]
    return Findings(goals, tables, figures={"time": figures, "calls": dict(calls.counted)})


def sizes(count: int) -> tuple[tuple[frozenset[int], float], ...]:
    """Return what a pool of `count` guests has at two ratios."""
    return (BOTH, count / 2), (ZERO, float(count))


def reloads(
    stage: Stage, guests: Sequence[Guest], turns: int, name: str = "agent"
) -> dict[str, list[float]]:
    """Return the seconds of each turn; the agent begins and ends with all guests on pCPU 0."""
    count, uuids = len(guests), [guest.uuid for guest in guests]
    times: dict[str, list[float]] = {"floor": [], "agent": []}
    lanes = Lanes.of(guests)
    pool = {"emulator_overcommit_ratio": count}
    with (
        stage.service(name=name, pool=pool) as service,
        Client("floor", stage.libvirtd.uri) as floor,
    ):
        agent = service.process.pid
        for number in range(turns):
            cpus, ratio = sizes(count)[number % 2]
            back = ZERO if cpus == BOTH else BOTH
            placed(service, count)
            lanes.wait(back)
            settled(service)
            service.configure(pool={"emulator_overcommit_ratio": ratio})
            with alone(floor.process.pid):
                began = time.monotonic()
                service.hup()
                times["agent"].append(lanes.wait(cpus) - began)
            verify(guests, cpus)
            # The floor undoes it (its own turn), and the agent, when it wakes, puts it right again.
            with alone(agent):
                began = time.monotonic()
                floor.tell("pin", ",".join(map(str, sorted(back))), *uuids)
                end = lanes.wait(back)
                floor.expect("done")
                times["floor"].append(end - began)
                verify(guests, back)
            lanes.wait(cpus)
    return times


def counted_reload(stage: Stage, guests: Sequence[Guest]) -> Calls:
    """Return the calls of the agent from a reload until it is at rest."""

    def reload(service: Service) -> None:
        service.configure(pool={"emulator_overcommit_ratio": len(guests) / 2})
        service.hup()

    return counted_move(stage, guests, "counted-reload", reload)


def counted_move(
    stage: Stage, guests: Sequence[Guest], name: str, move: Callable[[Service], object]
) -> Calls:
    """Return the calls of an agent at rest, from `move` until it has moved all and rests again."""
    count = len(guests)
    tap, service = counted_service(stage, name)
    service.configure(pool={"emulator_overcommit_ratio": count})
    with tap, service:
        placed(service, count)
        verify(guests, ZERO)
        rested(service)
        tap.taken()
        move(service)
        verify(guests, BOTH)
        rested(service)
        return Calls(tap.taken(), 1 + 2 * count)


def rested(service: Service) -> None:
    """Wait until the agent has made its full look, and nothing is left in its inbox."""
    wait_until(lambda: calm(service), PATIENCE, "the agent at rest")


def calm(service: Service) -> bool:
    """Tell whether no cycle was made for half a second."""
    before = service.cycles()
    time.sleep(0.5)
    return service.cycles() == before and service.metric("inbox_depth") == 0


# libvirtd restarts


def restart(effort: Effort) -> Findings:
    """Restart libvirtd, with a pool that is to be resized meanwhile, so that each guest moves."""
    count = effort.pick(100, 6)
    with Stage() as stage:
        guests = stage.crowd("many", count, **ISOLATE)
        times = restarts(stage, guests, effort.of(6, 2))
        calls = counted_restart(stage, guests)
    table, figures = compared(f"{count} guests moved, from libvirtd's first answer", times)
    goals = [
        Goal("time", figures["agent"]["ratio"], GOAL_TIME, "times the floor", why=WHY_BACK),
        Goal("calls", calls.ratio, GOAL_CALLS, "times the least", why=WHY_CALLS),
    ]
    tables = [table, calls.table(f"calls of the agent when libvirtd restarts under {count} guests")]
    return Findings(goals, tables, figures={"time": figures, "calls": dict(calls.counted)})


def restarts(
    stage: Stage,
    guests: Sequence[Guest],
    turns: int,
    name: str = "agent",
    trees: Mapping[str, Path | None] = HERE,
) -> dict[str, list[float]]:
    """Return the seconds from libvirtd's first answer until all guests had moved.

    `trees` are the agents by name, and where the source of each lies.
    """
    count = len(guests)
    times: dict[str, list[float]] = {"floor": [], **{agent: [] for agent in trees}}
    lanes = Lanes.of(guests)
    for number, (agent, tree) in product(range(turns), trees.items()):
        pool = {"emulator_overcommit_ratio": count}
        with stage.service(name=f"{name}-{agent}-{number}", tree=tree, pool=pool) as service:
            lanes.wait(ZERO)
            rested(service)
            times[agent].append(one_restart(stage, service, lanes, count))
            verify(guests, BOTH)
        with Client("floor", stage.libvirtd.uri) as floor:
            stage.libvirtd.terminate()
            floor.tell("back", "0", str(count))
            stage.libvirtd.start()
            began = time.monotonic()
            times["floor"].append(lanes.wait(ZERO) - began)
            floor.expect("done")
            verify(guests, ZERO)
    return times


def one_restart(stage: Stage, service: Service, lanes: Lanes, count: int) -> float:
    """Return the seconds from libvirtd's first answer until the agent had moved all guests."""
    stage.libvirtd.terminate()
    wait_until(lambda: not service.ready(), PATIENCE, "the agent notices")
    service.configure(pool={"emulator_overcommit_ratio": count / 2})
    service.hup()
    wait_until(lambda: service.saw("config.changed"), PATIENCE, "the agent has reloaded")
    stage.libvirtd.start()
    began = time.monotonic()
    return lanes.wait(BOTH) - began


def counted_restart(stage: Stage, guests: Sequence[Guest]) -> Calls:
    """Return the calls of the agent over its new connections, until it is at rest."""
    lanes, count = Lanes.of(guests), len(guests)
    return counted_move(
        stage, guests, "counted-restart", lambda service: one_restart(stage, service, lanes, count)
    )


# up to a thousand guests


def scale(effort: Effort) -> Findings:
    """Reload and restart with more and more guests: where does the cost stop being linear?"""
    steps = effort.pick((100, 200, 400, 700, 1000), (4, 8))
    found: dict[int, dict[str, float]] = {}
    with Stage() as stage:
        guests: list[Guest] = []
        for count in steps:
            guests += stage.crowd(f"upto{count}", count - len(guests), **ISOLATE)
            turns = effort.of(6, 2)
            moved = compared("", reloads(stage, guests, turns, f"reload-{count}"))[1]
            back = compared("", restarts(stage, guests, max(1, turns // 2), f"restart-{count}"))[1]
            calls = counted_reload_at(stage, guests)
            found[count] = {
                "reload": moved["agent"]["median"],
                "reload_floor": moved["floor"]["median"],
                "restart": back["agent"]["median"],
                "restart_floor": back["floor"]["median"],
                "calls": calls.asked,
                "calls_ratio": calls.ratio,
            }
    return scaled(found)


def counted_reload_at(stage: Stage, guests: Sequence[Guest]) -> Calls:
    calls = counted_reload(stage, guests)
    for name in ("counted-reload", "counted-reload.sock"):
        path = stage.folder / name
        path.rename(stage.folder / f"{len(guests)}-{name}")
    return calls


def scaled(found: Mapping[int, Mapping[str, float]]) -> Findings:
    least, most = found[min(found)], found[max(found)]
    grown = max(found) / min(found)
    goals = [
        Goal(
            f"{what}: time of a guest among {max(found):,}",
            most[what] / least[what] / grown,
            LINEAR,
            f"times that among {min(found):,}",
        )
        for what in ("reload", "restart")
    ]
    rows = [
        (
            f"{count:,}",
            ms(own["reload"]),
            f"{own['reload'] / own['reload_floor']:.2f}",
            ms(own["restart"]),
            f"{own['restart'] / own['restart_floor']:.2f}",
            f"{own['calls']:,.0f}",
            f"{own['calls_ratio']:.2f}",
        )
        for count, own in found.items()
    ]
    columns = ("guests", "reload ms", "to floor", "restart ms", "to floor", "calls", "to least")
    panels = [
        (
            f"{what}: milliseconds for each guest",
            [
                (who, [(float(n), own[key] * 1e3 / n) for n, own in found.items()])
                for who, key in (("agent", what), ("floor", f"{what}_floor"))
            ],
        )
        for what in ("reload", "restart")
    ]
    chart = Chart("large", "Storms of up to 1,000 guests", "medians", "guests", panels)
    table = Table("Storms by the number of guests", columns, rows)
    figures = {str(count): dict(own) for count, own in found.items()}
    return Findings(goals, [table], [chart], figures=figures)
