"""From libvirt's announcement of a start to the emulator threads being on the pool.

Single arrivals, with other guests there already. The clock is a connection of its own: from the
STARTED that it hears to the TUNABLE that libvirt sends once cpuset and mask are set. Then /proc
must say at once that every emulator thread is on the pool; if it does not, the time until it does
is added. All contestants are judged by the same clock, in turns; who has no turn is stopped.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks import hook
from benchmarks.findings import Chart, Findings, Goal, compared
from benchmarks.stage import CLAIM, ISOLATE, ZERO, Client, Stage, alone, placed, settled, verify

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from benchmarks.findings import Points, Table
    from benchmarks.suite import Effort
    from benchmarks.watch import Watch
    from tests.guests import Guest
    from tests.service import Service

GOAL_MEDIAN: Final = 1.3
GOAL_TAIL: Final = 2.0
AGENT: Final = "agent"
FLOOR: Final = "floor"
BLIND: Final = "floor without a look"
EVERY: Final = "all re-pinned on each event"
LOOP: Final = "hook, one virsh for each guest"
BATCH: Final = "hook, one virsh for all guests"
NEWCOMER: Final = "hook, one virsh for the newcomer"
POLLER: Final = "looks each 10 s"
RIVALS: Final = (
    (BLIND, "blind", None),
    (EVERY, "every", None),
    (NEWCOMER, "virsh", hook.NEWCOMER),
    (BATCH, "virsh", hook.BATCH),
    (LOOP, "virsh", hook.LOOP),
)
RARELY: Final = 8  # turns of agent and floor for one of each rival
PERIOD: Final = 10.0


@dataclass(frozen=True, slots=True)
class Ground:
    """One libvirtd with the agent, the bare client, the clock and the guests that are there."""

    stage: Stage
    service: Service
    floor: Client
    watch: Watch

    def turn(
        self,
        name: str,
        number: int,
        *,
        isolate: bool = False,
        others: Sequence[int] = (),
        within: AbstractContextManager[object] | None = None,
        paused: bool = False,
    ) -> float:
        """Start a guest, and return the seconds until it was where it belongs."""
        guest = self.stage.libvirtd.guest(
            f"-{name}-{number}",
            metadata_policy="isolate" if isolate else "ignore",
            **CLAIM,  # its pCPU is its own, as isolate has it
        ).define()
        settled(self.service)
        with within or nullcontext(), alone(*others):
            guest.start(paused=paused)
            seconds = self.watch.reaction(guest.uuid, "0") + self._missing([guest])
        self.stage.leave([guest])
        return seconds

    @staticmethod
    def _missing(guests: list[Guest]) -> float:
        """Return the seconds until /proc agrees: 0 if it does already."""
        if all(guest.masks("emulator") == {ZERO} for guest in guests):
            return 0.0
        began = time.monotonic()
        verify(guests, ZERO)
        return time.monotonic() - began

    def fill(self, number: int) -> list[Guest]:
        guests = self.stage.crowd("there", number, **ISOLATE, **CLAIM)
        placed(self.service, number)
        verify(guests, ZERO)
        return guests


def run(effort: Effort) -> Findings:
    """Measure with 0, 50 and 100 guests there."""
    sizes = effort.pick((0, 50, 100), (0, 4))
    found: dict[int, dict[str, list[float]]] = {}
    with Stage() as stage:
        hook.install(stage.libvirtd)
        for size in sizes:
            with ExitStack() as own:
                service = own.enter_context(stage.service(name=f"agent-{size}"))
                floor = own.enter_context(Client("floor", stage.libvirtd.uri))
                watch = own.enter_context(stage.watch())
                ground = Ground(stage, service, floor, watch)
                there = ground.fill(size)
                found[size] = measure(ground, effort)
                stage.leave(there)
    return findings(found)


def measure(ground: Ground, effort: Effort) -> dict[str, list[float]]:
    """Return the seconds of each contestant, with the guests that are there now."""
    agent, floor = ground.service.process.pid, ground.floor.process.pid
    turns = effort.of(80, 2)
    times: dict[str, list[float]] = {FLOOR: [], AGENT: []}

    for number in range(turns):
        paused = bool(number % 2)  # Nova starts guests paused, until their network is there
        times[FLOOR].append(ground.turn("floor", number, others=(agent,), paused=paused))
        times[AGENT].append(
            ground.turn("agent", number, isolate=True, others=(floor,), paused=paused)
        )
        if number % RARELY == 0:
            for name, word, body in RIVALS:
                within = None if body is None else hook.hooked(ground.stage.libvirtd, body)
                # The bare client serves as those without a hook, too.
                others = (agent,) if body is None else (agent, floor)
                taken = ground.turn(word, number, others=others, within=within)
                times.setdefault(name, []).append(taken)
    times[POLLER] = polled(ground, effort)
    return times


def polled(ground: Ground, effort: Effort) -> list[float]:
    """Return the seconds until a reconciler looks, for arrivals spread evenly over its period."""
    period, turns = effort.pick(PERIOD, 0.5), effort.of(4, 1)
    times = []
    with Client("poller", ground.stage.libvirtd.uri, str(period)) as poller:
        for number in range(turns):
            poller.tell("when")
            looked = float(poller.answer())
            phase = (number + 0.5) / turns * period
            time.sleep((looked + phase - time.monotonic()) % period)
            times.append(ground.turn("poller", number))
    return times


def findings(found: dict[int, dict[str, list[float]]]) -> Findings:
    """Return tables and goals, one of each for each number of guests."""
    goals: list[Goal] = []
    tables: list[Table] = []
    figures = {}
    for size, times in found.items():
        table, figures[str(size)] = compared(f"{size} guests there", times)
        tables.append(table)
        own = figures[str(size)][AGENT]
        goals += [
            Goal(f"median, {size} guests there", own["ratio"], GOAL_MEDIAN, "times the floor"),
            Goal(f"p99, {size} guests there", own["p99_ratio"], GOAL_TAIL, "times the floor"),
        ]
    return Findings(goals, tables, [picture(figures)], figures=figures)


def picture(figures: dict[str, dict[str, dict[str, float]]]) -> Chart:
    """Draw the medians against the guests that are there, by how long they take."""

    def lines(**names: str) -> list[tuple[str, Points]]:
        return [
            (
                shown.replace("_", " "),
                [(float(n), own[name]["median"] * 1e3) for n, own in figures.items()],
            )
            for shown, name in names.items()
        ]

    return Chart(
        "arrivals",
        "From a guest's start to its emulator threads on the pool",
        "medians; who looks each 10 s needs 5 s on average, and is not drawn",
        "guests there",
        [
            ("milliseconds", lines(agent=AGENT, floor=FLOOR)),
            (
                "milliseconds: what operators have",
                lines(agent=AGENT, all_each_time=EVERY, virsh_newcomer=NEWCOMER, one_virsh=BATCH),
            ),
            ("milliseconds: a shell loop", lines(agent=AGENT, virsh_for_each=LOOP)),
        ],
    )
