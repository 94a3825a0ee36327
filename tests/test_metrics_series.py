"""The series of a scrape: those promised, whoever comes and goes, and fit for Prometheus."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from agent import __version__
from agent.accounting import BillingSettings
from agent.cycle import Cause
from agent.metrics import CYCLES, EVENTS, OPENMETRICS, TEXT, Metrics
from agent.planner import State
from agent.telling import Teller
from agent.transition import Drift, Kind, Reason
from agent.usage import EmulatorTime, PoolUsage
from tests.exposition import assert_lint_free, series
from tests.node import DELAY, Node
from tests.test_metrics import PROMISED, full

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.cycle import CycleResult
    from tests.exposition import Series

DESIGN: Final = Path(__file__).resolve().parents[2] / "shared/DESIGN.md"

CELLS: Final = {"0", "1", "none"}
CPUS: Final = set(map(str, range(8)))
STATES: Final = {"offline", "claimed", "pool", "reserved", "free", "unmanaged", *State}
KINDS: Final = {"dedicated", "shared", *Kind, *Drift}

VALUES: Final[dict[str, set[str]]] = {
    "cell": CELLS,
    "cpu": CPUS,
    "reason": set(Reason),
    "state": STATES,
    "kind": KINDS,
    "event": {*CYCLES, *EVENTS},
    "version": {__version__},
}
"""All values that a label may have on the host of a `Node`."""


@dataclass
class Pulse:
    """Times of eight pCPUs that each spend a second busy and one idle from look to look."""

    user: float = 0.0
    idle: float = 0.0
    nice: float = 0.0
    system: float = 0.0
    iowait: float = 0.0
    irq: float = 0.0
    softirq: float = 0.0
    steal: float = 0.0

    def look(self) -> list[Pulse]:
        self.user += 1.0
        self.idle += 1.0
        return [Pulse(self.user, self.idle)] * 8


class Told:
    """A node whose cycles are told as the daemon tells them."""

    def __init__(self, state: Path) -> None:
        self.node = Node(state)
        self.metrics = Metrics()
        self.metrics.inbox_depth(self.node.inbox.depth)
        usage = PoolUsage(Pulse().look)
        self.teller = Teller(self.metrics, usage, EmulatorTime(), self.node.fake.times)
        self.peak = 0

    def cycle(self) -> CycleResult:
        result = self.node.cycle(Cause.RECONCILE)
        self.teller.cycle(result, self.node.settings.pool, BillingSettings())
        self.teller.used(result)
        self.peak = max(self.peak, len(result.guests))
        return result

    def scrape(self) -> set[Series]:
        return series(self.metrics.expose(TEXT)[1].decode())


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    made = Told(tmp_path / "state.json")
    yield made
    made.node.stop()


def test_a_thousand_guests_that_came_and_went_leave_no_series_behind(told: Told) -> None:
    staying = told.node.start("staying")
    told.cycle()
    told.cycle()  # the second look is the first that tells what a pool did
    before, counted = told.scrape(), told.metrics.counters().keys()
    wider: set[Series] = set()
    for batch in range(20):
        uuids = [
            told.node.start(f"guest-{batch}-{n}", claim=1 if n == batch else None)
            for n in range(50)
        ]
        told.cycle()
        told.cycle()
        wider |= told.scrape() - before
        for uuid in uuids:
            told.node.fake.destroy(uuid)
            told.node.fake.undefine(uuid)
        told.cycle()
    told.node.wait(DELAY)
    assert [guest.uuid for guest in told.cycle().guests] == [staying]
    assert told.peak == 51
    assert told.scrape() == before
    assert told.metrics.counters().keys() == counted
    assert {name for name, _ in wider} == {"emupool_cpu_guests"}  # for a wider pool, and no more
    assert len(wider) <= len(CPUS)


def test_a_label_has_no_value_that_is_not_on_its_list(told: Told) -> None:
    told.node.start('web-1"} 1', metadata_attributes={"cell": "0", "weight": "heavy"})
    told.node.start("other", metadata_attributes={"cell": "7"})
    told.node.fake.start(told.node.fake.define("loose", emulatorpin="0-7"))
    told.node.define("stopped")
    told.cycle()
    told.cycle()
    used: dict[str, set[str]] = {}
    for name, labels in told.scrape() | series(full().expose(TEXT)[1].decode()):
        for label, value in labels:
            if label != "le":
                assert value in VALUES[label], name
                used.setdefault(label, set()).add(value)
    assert used.keys() == VALUES.keys()


def test_prometheus_finds_nothing_to_say_about_a_scrape(told: Told) -> None:
    told.node.start("a")
    told.cycle()
    assert_lint_free(told.metrics.expose("")[1].decode())
    assert_lint_free(full().expose("")[1].decode())


@pytest.mark.skipif(not DESIGN.exists(), reason="there is no DESIGN.md beside this")
def test_the_metrics_are_those_of_the_design() -> None:
    text = DESIGN.read_text()
    table = text[text.index("\nMetrics, prefix") : text.index("\n## 8.")]
    rows = re.findall(r"^\| (`.*) \| ?([a-z]*)[^|]*\|$", table, re.MULTILINE)
    designed = {
        f"emupool_{name}": (kind, set(filter(None, labels.strip("{}").split(","))))
        for names, kind in rows
        for name, labels in re.findall(r"`([a-z_]+)((?:\{[a-z,]+\})?)`", names)
    }
    assert designed.keys() == PROMISED.keys()
    for name, (kind, labels) in designed.items():
        assert PROMISED[name][1] == labels, name
        assert kind in {PROMISED[name][0], ""}, name


@pytest.mark.skipif(not DESIGN.exists(), reason="there is no DESIGN.md beside this")
@pytest.mark.parametrize(
    ("metric", "label", "between"),
    [
        ("cell_cpus", "state", ("`cell_cpus{cell,state}`, state the first that holds of ", " |")),
        ("guests", "state", ("`guests{state}`, state one of ", " |")),
        ("drift_total", "kind", ("repaired and counted by kind: `", "`.")),
        ("billed_cpus", "kind", ("`billed_cpus{cell,kind}`, kind one of ", " |")),
    ],
)
def test_the_words_of_a_label_are_those_of_the_design(
    metric: str, label: str, between: tuple[str, str]
) -> None:
    start, end = between
    listed = re.split(r"`?, `?", DESIGN.read_text().split(start)[1].split(end)[0])
    shown = series(full().expose(TEXT)[1].decode())
    found = {dict(labels)[label] for name, labels in shown if name == f"emupool_{metric}"}
    assert found == set(listed)


def test_openmetrics_ends_as_it_has_to(told: Told) -> None:
    told.node.start("a")
    told.cycle()
    kind, body = told.metrics.expose(OPENMETRICS)
    assert kind == OPENMETRICS
    assert body.endswith(b"\n# EOF\n")
