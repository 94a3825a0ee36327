"""What a scrape shows, against the table that operators were promised."""

from __future__ import annotations

import threading
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from agent import __version__
from agent.accounting import Bill
from agent.cpuset import EMPTY, CellId, CpuSet
from agent.domainxml import Pins
from agent.metrics import CYCLES, EVENTS, OPENMETRICS, OTHER, TEXT, Metrics, shown
from agent.planner import InstanceNUMACell, NUMACell, Plan, State
from agent.policy import Policy, Source
from agent.pool import NOTHING, CellSettings, Placement, PoolSettings, PoolSource
from agent.topology import Cell, Host, Pcpu
from agent.transition import Drift, Kind, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

    from agent.metrics import Shown

# What operators were promised: names without prefix, and their labels.
GAUGES: Final = {
    "emulator_overcommit_ratio": "cell",
    "pool_cpus": "cell",
    "pool_guests": "cell",
    "pool_capacity_guests": "cell",
    "pool_occupancy_ratio": "cell",
    "pool_shortage_cpus": "cell",
    "cell_cpus": "cell state",
    "cpu_guests": "cell cpu",
    "guests": "state",
    "last_cycle_success_timestamp_seconds": "",
    "inbox_depth": "",
    "libvirt_up": "",
    "stuck_threads": "cell",
    "unverified_guests": "cell",
    "dry_run": "",
    "pool_busy_ratio": "cell",
    "config_last_reload_successful": "",
    "config_last_reload_success_timestamp_seconds": "",
    "billed_cpus": "cell kind",
    "build_info": "version",
}
COUNTERS: Final = {
    "repins_total": "reason",
    "repin_errors_total": "reason",
    "drift_total": "kind",
    "cycles_total": "event",
    "events_total": "event",
    "libvirt_reconnects_total": "",
    "emulator_cpu_seconds_total": "cell kind",
    "emulator_wait_seconds_total": "cell kind",
}
HISTOGRAMS: Final = {"repin_seconds": "", "event_to_pinned_seconds": "", "cycle_seconds": ""}

PROMISED: Final = {
    f"emupool_{name}": (kind, set(labels.split()))
    for kind, table in (("gauge", GAUGES), ("counter", COUNTERS), ("histogram", HISTOGRAMS))
    for name, labels in table.items()
}

STARTED: Final = 1_700_000_000.0
ZERO, ONE = CellId(0), CellId(1)

OFFLINE: Final = {3}


def pcpu(number: int, cell: CellId | None) -> Pcpu:
    online = number not in OFFLINE
    return Pcpu(number, online, isolated=False, cell=cell, package=0, die=0, core=number,
                siblings=None, l3=None)  # fmt: skip


def host(cells: Iterable[CellId] = (ZERO, ONE)) -> Host:
    """Four pCPUs a cell; 3 is off line, 8 is in no cell."""
    cpus = [pcpu(4 * cell + n, cell) for cell in cells for n in range(4)] + [pcpu(8, None)]
    online = CpuSet(p.id for p in cpus if p.online)
    made = (Cell(cell, CpuSet(range(4 * cell, 4 * cell + 4)) & online, None, ()) for cell in cells)
    return Host(tuple(made), tuple(cpus), online, EMPTY)


def pool(cell: CellId, cpus: str, weight: str = "0", ratio: str = "8") -> NUMACell:
    """A pool of `cpus` whose guests weigh `weight`."""
    return NUMACell(
        id=cell,
        guests=int(Fraction(weight)),
        weight=Fraction(weight),
        ratio=Fraction(ratio),
        need=1,
        emulator_cpus=CpuSet.parse(cpus),
        pool_now=CpuSet.parse(cpus),
        candidates=CpuSet.parse(cpus),
        claimed=EMPTY,
        shortage=0,
        source=PoolSource.FREE,
        placement=Placement.SHARED,
    )


def guest(uuid: str, state: State | None, cpus: str | None = None) -> InstanceNUMACell:
    return InstanceNUMACell(
        uuid=uuid,
        name=uuid,
        policy=Policy.ISOLATE,
        source=Source.NOVA,
        managed=state is not None,
        weight=Fraction(1),
        cell=ZERO,
        original=Pins(None),
        emulator_pcpus=None if cpus is None else CpuSet.parse(cpus),
        placement=None,
        state=state,
        reason="",
    )


PLAN: Final = Plan(
    cells=(pool(ZERO, "1-2", weight="3", ratio="5/2"), pool(ONE, "")),
    guests=(
        guest("a", State.PLACED, "1-2"),
        guest("b", State.PLACED, "2"),
        guest("c", State.BUSY, "1-2"),
        guest("d", None),
        guest("e", None),
    ),
    warnings=(),
    memory=NOTHING,
    claimed=CpuSet.parse("3,4"),
    deadline=None,
)
SETTINGS: Final = PoolSettings(CellSettings(reserved_cpus=CpuSet.parse("2,5")))
POOLS: Final = {ZERO: CpuSet.parse("1-2")}


def show(
    plan: Plan = PLAN,
    on: Host | None = None,
    bills: tuple[Bill, ...] = (),
    pools: dict[CellId, CpuSet] | None = None,
) -> Shown:
    standing = POOLS if pools is None else pools
    return shown(plan, on or host(), SETTINGS, bills, {ZERO: 2}, {ONE: 1}, standing)


def metrics() -> Metrics:
    return Metrics(clock=lambda: STARTED)


def values(of: Metrics, name: str) -> dict[str, float]:
    """Return the series of one metric: label values in order of the label names, and value."""
    _, body = of.expose("")
    return {
        " ".join(value for _, value in sorted(sample.labels.items())): sample.value
        for family in read_text(body.decode())
        for sample in family.samples
        if sample.name == f"emupool_{name}"
    }


def full() -> Metrics:
    """Return metrics in which each has a series."""
    made = metrics()
    made.show(show(bills=(Bill("a", None, dedicated=Fraction(1)),)))
    made.pool_busy(ZERO, 0.5)
    return made


def families(of: Metrics, accept: str) -> Iterator[Metric]:
    _, body = of.expose(accept)
    reader = read_openmetrics if accept == OPENMETRICS else read_text
    return iter(reader(body.decode()))


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS])
def test_a_scrape_has_what_was_promised_and_nothing_else(accept: str) -> None:
    found: dict[str, tuple[str, set[str]]] = {}
    for family in families(full(), accept):
        assert family.samples, family.name
        assert family.documentation, family.name
        if not family.name.startswith("process_"):
            labels = {name for sample in family.samples for name in sample.labels} - {"le"}
            name = family.name + ("_total" if family.type == "counter" else "")
            found[name] = family.type, labels
    assert found == PROMISED


def test_types_are_told_under_the_names_of_each_format() -> None:
    text = full().expose(TEXT)[1].decode()
    assert "\n# TYPE emupool_libvirt_reconnects_total counter\n" in text
    assert "\nemupool_libvirt_reconnects_total 0.0\n" in text
    openmetrics = full().expose(OPENMETRICS)[1].decode()
    assert "\n# TYPE emupool_libvirt_reconnects counter\n" in openmetrics
    assert "\nemupool_libvirt_reconnects_total 0.0\n" in openmetrics
    assert openmetrics.endswith("# EOF\n")


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS])
def test_the_usual_process_metrics_are_there_and_no_created_series(accept: str) -> None:
    names = {sample.name for family in families(full(), accept) for sample in family.samples}
    assert "process_resident_memory_bytes" in names
    assert "process_cpu_seconds_total" in names
    assert not {name for name in names if name.endswith("_created")}


def test_labels_of_enums_start_at_zero() -> None:
    fresh = metrics()
    expected = {
        "repins_total": Reason,
        "repin_errors_total": Reason,
        "drift_total": Drift,
        "cycles_total": CYCLES,
        "events_total": EVENTS,
        "guests": (*State, "unmanaged"),
    }
    for name, labels in expected.items():
        assert values(fresh, name) == dict.fromkeys(map(str, labels), 0.0), name
    fresh.show(show())
    each = {f"{cell} {kind}": 0.0 for cell in (0, 1) for kind in Kind}
    assert values(fresh, "emulator_cpu_seconds_total") == each
    assert values(fresh, "emulator_wait_seconds_total") == each


def test_a_fresh_daemon_has_its_configuration_and_no_cycle() -> None:
    fresh = metrics()
    assert values(fresh, "config_last_reload_successful") == {"": 1.0}
    assert values(fresh, "config_last_reload_success_timestamp_seconds") == {"": STARTED}
    assert values(fresh, "last_cycle_success_timestamp_seconds") == {"": 0.0}
    assert values(fresh, "libvirt_up") == {"": 0.0}
    assert values(fresh, "build_info") == {__version__: 1.0}


def test_pools_are_shown_by_cell() -> None:
    made = metrics()
    made.show(show())
    assert values(made, "emulator_overcommit_ratio") == {"0": 2.5, "1": 8.0}
    assert values(made, "pool_cpus") == {"0": 2.0, "1": 0.0}
    assert values(made, "pool_guests") == {"0": 3.0, "1": 0.0}
    assert values(made, "pool_capacity_guests") == {"0": 5.0, "1": 0.0}
    assert values(made, "pool_occupancy_ratio") == {"0": 0.6, "1": 0.0}
    assert values(made, "stuck_threads") == {"0": 2.0, "1": 0.0}
    assert values(made, "unverified_guests") == {"0": 0.0, "1": 1.0}


def test_capacity_is_what_fits_whole() -> None:
    made = metrics()
    made.show(show(replace(PLAN, cells=(pool(ZERO, "1-3", ratio="5/2"),))))
    assert values(made, "pool_capacity_guests") == {"0": 7.0}


def test_guests_without_a_pool_are_beyond_any_occupancy() -> None:
    made = metrics()
    short = replace(pool(ONE, "", weight="2"), shortage=1)
    made.show(show(replace(PLAN, cells=(short,))))
    assert values(made, "pool_occupancy_ratio") == {"1": float("inf")}
    assert values(made, "pool_shortage_cpus") == {"1": 1.0}


def test_a_pcpu_counts_under_the_first_state_that_holds() -> None:
    made = metrics()
    made.show(show())
    # 3 is off line and claimed, 2 in the pool and reserved, 4 claimed, 5 reserved.
    assert values(made, "cell_cpus") == {
        "0 offline": 1.0,
        "0 claimed": 0.0,
        "0 pool": 2.0,
        "0 reserved": 0.0,
        "0 free": 1.0,
        "1 offline": 0.0,
        "1 claimed": 1.0,
        "1 pool": 0.0,
        "1 reserved": 1.0,
        "1 free": 2.0,
    }


def test_guests_are_counted_on_each_pcpu_they_may_use() -> None:
    made = metrics()
    made.show(show(pools={ZERO: CpuSet.parse("0-2")}))  # 0 only lingers
    # sorted by label name: cell, cpu
    assert values(made, "cpu_guests") == {"0 0": 0.0, "0 1": 2.0, "0 2": 3.0}


def test_guests_are_counted_by_state() -> None:
    made = metrics()
    made.show(show())
    counted = {state: n for state, n in values(made, "guests").items() if n}
    assert counted == {"placed": 2.0, "busy": 1.0, "unmanaged": 2.0}


def test_bills_add_up_exactly_by_cell_and_kind() -> None:
    tenth = Fraction(1, 10)
    bills = tuple(Bill(str(n), ZERO, Fraction(1), tenth, tenth / 10) for n in range(10))
    made = metrics()
    made.show(show(bills=(*bills, Bill("x", None, shared=Fraction(1, 16)))))
    assert values(made, "billed_cpus") == {
        "0 dedicated": 10.0,
        "0 shared": 1.0,
        "0 emulator": 0.1,
        "1 dedicated": 0.0,
        "1 shared": 0.0,
        "1 emulator": 0.0,
        "none dedicated": 0.0,
        "none shared": 0.0625,
        "none emulator": 0.0,
    }


def test_what_left_leaves_no_gauge_behind() -> None:
    made = metrics()
    made.show(show(pools={ZERO: CpuSet.parse("1-2"), ONE: CpuSet.parse("6")}))
    made.pool_busy(ZERO, 0.25)
    made.pool_busy(ONE, 0.75)
    assert values(made, "pool_busy_ratio") == {"0": 0.25, "1": 0.75}
    made.show(show(replace(PLAN, cells=PLAN.cells[:1]), host([ZERO]), pools={ZERO: CpuSet.of(2)}))
    assert values(made, "cpu_guests") == {"0 2": 3.0}
    assert values(made, "pool_busy_ratio") == {"0": 0.25}
    cells = {
        sample.labels["cell"]
        for family in families(made, TEXT)
        for sample in family.samples
        if family.type == "gauge" and "cell" in sample.labels
    }
    assert cells == {"0"}


def test_pins_and_cycles_are_counted() -> None:
    made = metrics()
    made.repinned(Reason.ARRIVE, 0.0004)
    made.repinned(Reason.ARRIVE, 0.3)
    made.repin_failed(Reason.MOVE)
    made.drifted(Drift.STUCK)
    made.event_to_pinned(0.02)
    made.cycle_done("reconcile", 0.5, 1234.5)
    made.cycle_done("event", 0.5, None)
    made.event_seen("lifecycle", 3)
    made.event_seen("job")
    made.libvirt_reconnected()
    counted = {name: value for name, value in made.counters().items() if value}
    assert counted == {
        'emupool_repins_total{reason="arrive"}': 2.0,
        'emupool_repin_errors_total{reason="move"}': 1.0,
        'emupool_drift_total{kind="stuck"}': 1.0,
        'emupool_cycles_total{event="reconcile"}': 1.0,
        'emupool_cycles_total{event="event"}': 1.0,
        'emupool_events_total{event="lifecycle"}': 3.0,
        'emupool_events_total{event="job"}': 1.0,
        "emupool_libvirt_reconnects_total": 1.0,
    }
    assert values(made, "repin_seconds_count") == {"": 2.0}
    assert values(made, "repin_seconds_bucket")["0.0005"] == 1.0
    assert values(made, "event_to_pinned_seconds_sum") == {"": 0.02}
    assert values(made, "cycle_seconds_count") == {"": 2.0}
    assert values(made, "last_cycle_success_timestamp_seconds") == {"": 1234.5}


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("repin_seconds", "0.00025", "30.0"),
        ("event_to_pinned_seconds", "0.001", "60.0"),
        ("cycle_seconds", "0.001", "60.0"),
    ],
)
def test_buckets_reach_as_far_as_what_they_measure(name: str, first: str, last: str) -> None:
    bounds = list(values(metrics(), f"{name}_bucket"))
    assert (bounds[0], bounds[-2], bounds[-1]) == (first, last, "+Inf")


def test_a_label_takes_no_text_that_is_not_its_own() -> None:
    made = metrics()
    made.cycle_done('x"} 1\nemupool_up 1', 0.1, None)
    made.event_seen("web-1")
    assert values(made, "cycles_total") == dict.fromkeys(CYCLES, 0.0) | {OTHER: 1.0}
    assert values(made, "events_total") == dict.fromkeys(EVENTS, 0.0) | {OTHER: 1.0}


def test_times_of_threads_only_grow() -> None:
    made = metrics()
    made.usage(ZERO, Kind.EMULATOR, 1.5, 0.25)
    made.usage(ZERO, Kind.EMULATOR, 1.0, 0.0)
    assert values(made, "emulator_cpu_seconds_total") == {"0 emulator": 2.5}
    assert values(made, "emulator_wait_seconds_total") == {"0 emulator": 0.25}
    made.show(show())  # does not start them again
    assert values(made, "emulator_cpu_seconds_total")["0 emulator"] == 2.5


def test_states_follow_what_is_told() -> None:
    made = metrics()
    made.libvirt_up(up=True)
    made.dry_run(dry=True)
    made.inbox_depth(lambda: 7)
    made.reload_done(ok=False, timestamp=STARTED + 60)
    assert values(made, "libvirt_up") == {"": 1.0}
    assert values(made, "dry_run") == {"": 1.0}
    assert values(made, "inbox_depth") == {"": 7.0}
    assert values(made, "config_last_reload_successful") == {"": 0.0}
    assert values(made, "config_last_reload_success_timestamp_seconds") == {"": STARTED}
    made.reload_done(ok=True, timestamp=STARTED + 90)
    assert values(made, "config_last_reload_successful") == {"": 1.0}
    assert values(made, "config_last_reload_success_timestamp_seconds") == {"": STARTED + 90}


PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1"
    ";q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain", TEXT),
        ("text/html,application/xhtml+xml,*/*;q=0.8", TEXT),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text ; Version=1.0.0", OPENMETRICS),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.9", TEXT),
        ("application/openmetrics-text;q=nonsense", TEXT),
        ("application/openmetrics-text;q=nan", TEXT),
        ("application/openmetrics-text; version=9;escaping=\x00", OPENMETRICS),
        (";;;,,,q=1;=", TEXT),
        ("x" * 1_000_000, TEXT),
    ],
    ids=lambda text: text[:40],
)
def test_the_format_is_what_the_client_prefers(accept: str, kind: str) -> None:
    assert metrics().expose(accept)[0] == kind


def test_scrapes_while_the_daemon_writes_see_whole_cycles() -> None:
    made = metrics()
    plans = [show(replace(PLAN, guests=PLAN.guests[:1] * n)) for n in range(4)]
    rounds, writers = 300, 3

    def write() -> None:
        for n in range(rounds):
            made.show(plans[n % 4])
            made.pool_busy(CellId(n), 0.5)
            made.repinned(Reason.ARRIVE, 0.001)
            made.usage(CellId(n % 5), Kind.EMULATOR, 1.0, 1.0)

    threads = [threading.Thread(target=write) for _ in range(writers)]
    for thread in threads:
        thread.start()
    scrapes = 0
    while scrapes < 5 or any(thread.is_alive() for thread in threads):
        scrapes += 1
        found = {family.name: family for family in families(made, TEXT)}
        guests = sum(sample.value for sample in found["emupool_guests"].samples)
        on_cpu = {sample.value for sample in found["emupool_cpu_guests"].samples}
        assert on_cpu <= {guests}
    for thread in threads:
        thread.join()
    assert made.counters()['emupool_repins_total{reason="arrive"}'] == rounds * writers
    assert values(made, "repin_seconds_count") == {"": rounds * writers}


def test_a_second_daemon_in_the_process_counts_on_its_own() -> None:
    one, other = metrics(), metrics()
    one.libvirt_reconnected()
    assert values(other, "libvirt_reconnects_total") == {"": 0.0}
