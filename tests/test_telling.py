"""What an operator hears of faults that last: that they begin and that they end, once each."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from agent import logs
from agent.accounting import BillingSettings
from agent.cpusets import NOTHING_MENDED, Cut, Mended
from agent.cycle import PARTIAL, Cause
from agent.errors import (
    EmupoolError,
    GuestFailed,
    NotPermitted,
    SysfsError,
    unforeseen,
)
from agent.metrics import Metrics
from agent.telling import Teller
from agent.threads import Times
from agent.usage import EmulatorTime, PoolUsage
from tests.logbook import DOCUMENT, Logbook
from tests.node import Node, cpus, pools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent.cycle import CycleResult
    from agent.metrics import Shown
    from agent.snapshot import Kernel

AGAIN: Final = 1000
BILLING: Final = BillingSettings()


class Told:
    """A node whose cycles are told as the daemon tells them."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.metrics = Metrics()
        self._teller = Teller(self.metrics, PoolUsage(), EmulatorTime(), node.fake.times)

    def tell(self, result: CycleResult | None, billing: BillingSettings = BILLING) -> None:
        if result is not None:
            self._teller.cycle(result, self.node.settings.pool, billing)

    @property
    def shown(self) -> Shown:
        return self.metrics._now.shown

    def failed(self, error: Exception) -> None:
        self._teller.failed(Cause.EVENT, error)

    def cycles(self) -> None:
        """Run cycles of all sorts: for what came in, for another guest, for time alone, full."""
        self.tell(self.node.react())
        self.tell(self.node.cycle(Cause.RECONCILE))
        other = self.node.start("other", metadata_policy="ignore")
        self.tell(self.node.react())
        self.tell(self.node.cycle(Cause.EVENT))
        patience = self.node.patience()
        if patience is not None:
            self.node.clock.now += patience
            self.tell(self.node.cycle(Cause.DEADLINE))
        self.tell(self.node.cycle(Cause.CPU))
        self.node.fake.destroy(other)
        self.tell(self.node.react())
        self.tell(self.node.cycle(Cause.RECONCILE))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "state.json")
    yield made
    made.stop()


@pytest.fixture
def book() -> Iterator[Logbook]:
    with Logbook() as kept:
        yield kept


# --- faults of cycles: what makes one begin returns what makes it end ----------------------------


def unwritable(node: Node) -> Callable[[], object]:
    node.path.unlink()
    node.path.mkdir()
    node.start("a")
    return node.path.rmdir


def short(node: Node) -> Callable[[], object]:
    node.rebalancer.reconfigure(pools(1, cpus=cpus("1")))
    node.start("a")
    b = node.start("b")
    return lambda: node.fake.destroy(b)


def colliding(node: Node) -> Callable[[], object]:
    node.rebalancer.reconfigure(pools(reserved_cpus=cpus("0-3")))
    node.start("a", emulatorpin="7")
    claimer = node.start("claimer", claim=7, emulatorpin="6")
    return lambda: [node.fake.destroy(claimer), node.fake.undefine(claimer)]  # type: ignore[func-returns-value]


def failing(name: str, error: EmupoolError) -> Callable[[Node], Callable[[], object]]:
    def begin(node: Node) -> Callable[[], object]:
        node.fake.fail(name, error, node.start("a"), times=AGAIN)
        return node.fake._faults.clear

    return begin


def busy(node: Node) -> Callable[[], object]:
    uuid = node.start("a")
    node.hold(uuid).refuse()
    return lambda: node.fake.free(uuid)


def stuck(node: Node) -> Callable[[], object]:
    uuid = node.start("a", emulatorpin="1")
    node.fake.may_loosen = False
    node.rebalancer.reconfigure(pools(cpus=cpus("1-2"), min_cpus=2))
    return lambda: node.fake.destroy(uuid)


def unverified(node: Node) -> Callable[[], object]:
    node.fake._cpusets = False
    uuid = node.start("a")
    node.fake._cpusets = True
    return lambda: node.fake.destroy(uuid)


def mislabelled(node: Node) -> Callable[[], object]:
    uuid = node.start("a")
    node.fake.label(uuid, "isolate", weight="much")
    return lambda: node.fake.label(uuid, "isolate", weight="2")


def odd_host(node: Node) -> Callable[[], object]:
    node.fake.problems = ("/sys/devices/x: 'y': is no number",)
    return lambda: setattr(node.fake, "problems", ())


def cut(node: Node) -> Callable[[], object]:
    machine = Cut("/sys/fs/cgroup/cpuset/machine", cpus("3"), cpus("0-3"), "Permission denied")
    node.fake.mended = Mended(left=(machine,))
    return lambda: setattr(node.fake, "mended", NOTHING_MENDED)


class Row(NamedTuple):
    about: str
    text: str
    begin: Callable[[Node], Callable[[], object]]


ROWS: Final = {
    "the state file cannot be written": Row("state", "state.json", unwritable),
    "a pool lacks pCPUs": Row("shortage", "the pool lacks 1 pCPUs", short),
    "a guest has nowhere to go": Row("collision", "nowhere to go", colliding),
    "a guest cannot be read": Row("guest", ": odd", failing("xml", GuestFailed("odd"))),
    "a guest's threads cannot be read": Row("guest", "a: no", failing("read", NotPermitted("no"))),
    "a guest cannot be found": Row("guest", "a: no", failing("locate", NotPermitted("no"))),
    "a pin fails": Row("guest", "a: odd", failing("pin_emulator", GuestFailed("odd"))),
    "a guest stays busy": Row("guest", "a: cannot acquire state change lock", busy),
    "threads are stuck": Row("stuck", "of a", stuck),
    "a guest has no cpuset": Row("unverified", "of a", unverified),
    "metadata are wrong": Row("warning", "much", mislabelled),
    "a cpuset stays cut": Row("cpuset", "write 0-3 to its cpuset.cpus", cut),
    "the host's files are odd": Row("sysfs", "is no number", odd_host),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_lasting_fault_is_told_when_it_begins_and_when_it_ends(
    node: Node, book: Logbook, row: Row
) -> None:
    told = Told(node)
    end = row.begin(node)
    for _ in range(3):
        told.cycles()
    (began,) = [e for e in book.told("fault.began") if e["about"][0] == row.about]
    assert row.text in began["text"]
    assert [e for e in book.told("fault.ended") if e["about"] == began["about"]] == []
    end()
    for _ in range(3):
        told.cycles()
    ended = [e["about"] for e in book.told("fault.began", "fault.ended")]
    assert ended.count(began["about"]) == 2
    assert book.told("fault.ended")[-1]["about"] == began["about"]


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_cycle_that_changed_nothing_is_debug_whatever_is_wrong(
    node: Node, book: Logbook, row: Row
) -> None:
    told = Told(node)
    row.begin(node)
    told.cycles()
    book.clear()
    told.cycles()
    done = book.told("cycle.done")
    assert {(event["level"], event["pins"] > 0) for event in done} <= {
        ("info", True),
        ("debug", False),
    }
    others = [e for e in book.told(least="info") if e["event"] != "cycle.done"]
    assert others == []


def test_a_cpuset_that_was_mended_is_told_with_the_vcpus_that_lost_theirs(
    node: Node, book: Logbook
) -> None:
    told = Told(node)
    machine, other = "/cpuset/machine", "/cpuset/machine.slice"
    lost = tuple(f"{machine}/qemu-{n}-a.libvirt-qemu/vcpu0" for n in range(30))
    node.fake.mended = Mended(given=((machine, cpus("3")), (other, cpus("2-3"))), empty=lost)
    told.tell(node.cycle(Cause.CPU))
    first, second = book.told("cpuset.mended")
    assert (first["partition"], first["cpus"], first["unpinned"]) == (machine, "3", list(lost[:20]))
    assert (second["partition"], second["cpus"], second["unpinned"]) == (other, "2-3", [])


def test_only_a_cycle_that_looks_at_everything_mends(node: Node) -> None:
    for cause in Cause:
        node.cycle(cause)
        assert node.fake.count("mend") == (cause not in PARTIAL)


def test_the_document_knows_each_kind_of_fault() -> None:
    kinds = re.findall(r"^\| `([a-z]+)`, .* \|.*\|.*\|.*\|$", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(kinds) == sorted({row.about for row in ROWS.values()})


def test_the_document_names_gauges_that_there_are() -> None:
    exposed = Metrics().expose("")[1].decode()
    named = set(re.findall(r"`(emupool_[a-z_]+)", DOCUMENT.read_text()))
    assert len(named) > 5
    assert {name for name in named if f"# TYPE {name} " not in exposed} == set()


def test_an_error_of_a_guest_that_nobody_expects_is_told_with_its_traceback(
    node: Node, book: Logbook
) -> None:
    told = Told(node)
    bug = unforeseen(ZeroDivisionError("by nobody"))
    node.fake.fail("pin_emulator", bug, node.start("a"), times=AGAIN)
    known = NotPermitted("known")
    known.__cause__ = ValueError("what libvirt raised")
    node.fake.fail("pin_emulator", known, node.start("b"), times=AGAIN)
    told.cycles()
    by_text = {event["text"]: event for event in book.told("fault.began")}
    assert "ZeroDivisionError" in by_text["a: ZeroDivisionError: by nobody"]["exception"]
    assert "exception" not in by_text["b: known"]


def test_a_busy_guest_ends_no_fault_by_not_being_tried(node: Node, book: Logbook) -> None:
    told = Told(node)
    uuid = node.start("a")
    node.hold(uuid).refuse()
    told.tell(node.reacted())
    for _ in range(3):  # it backs off, and full cycles leave it alone
        told.tell(node.cycle(Cause.RECONCILE))
    assert len(book.told("fault.began", "fault.ended")) == 1
    node.fake.free(uuid)
    told.tell(node.reacted())
    assert [event["about"] for event in book.told("fault.ended")] == [["guest", uuid]]


def test_many_guests_are_counted_and_some_are_named(node: Node, book: Logbook) -> None:
    told = Told(node)
    node.fake._cpusets = False
    for number in range(8):
        node.start(f"g{number}")
    told.cycles()
    (began,) = [e for e in book.told("fault.began") if e["about"][0] == "unverified"]
    assert began["text"].endswith("of g0, g1, g2, g3, g4 and 3 more")


HOSTILE: Final = "\n\u202e\u2028\x85{evil}=1 level=error '\"\\" + "é" * 1_000_000


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_hostile_name_breaks_no_line(node: Node, form: str) -> None:
    with Logbook(form) as book:
        told = Told(node)
        node.fake.fail("pin_emulator", GuestFailed(HOSTILE), node.start(HOSTILE), times=AGAIN)
        node.fake._cpusets = False
        node.fake.label(node.start(HOSTILE + "2"), HOSTILE, weight=HOSTILE)
        told.cycles()
        told.failed(NotPermitted(HOSTILE))
        told.failed(unforeseen(ValueError(HOSTILE)))
    lines = book.text.split("\n")[:-1]
    assert sum("evil" in line for line in lines) > 5
    assert all(len(line) < logs.LINE and line.isprintable() for line in lines)
    assert all(re.match(r'{"timestamp":"|[0-9-]{10}T|    ', line) for line in lines)


# --- cycles that fail ----------------------------------------------------------------------------


def test_cycles_that_fail_alike_are_told_once_and_when_they_are_over(
    node: Node, book: Logbook
) -> None:
    told = Told(node)
    told.tell(node.cycle())
    for error in (NotPermitted("no"), NotPermitted("no, 2"), SysfsError("/sys", "?", "odd")):
        told.failed(error)
        told.failed(error)
    told.failed(ZeroDivisionError("by nobody"))
    told.tell(node.cycle())
    told.tell(node.cycle())
    assert [event["event"] for event in book.told(least="info")] == [
        *["cycle.failed"] * 3,
        "cycle.recovered",
    ]
    failures = book.told("cycle.failed")
    assert [event["level"] for event in failures] == [
        *("error", "debug", "debug", "debug"),
        *("error", "debug", "error"),
    ]
    assert ["exception" in event for event in failures] == [False] * 6 + [True]


# --- gauges -------------------------------------------------------------------------------------


def without_kernel(result: CycleResult) -> CycleResult:
    return replace(result, guests=tuple(replace(one, kernel=None) for one in result.guests))


def with_one_stuck(result: CycleResult) -> CycleResult:
    return replace(result, stuck={result.guests[0].uuid: frozenset({1})})


def lingering(result: CycleResult) -> CycleResult:
    cells = {cell: replace(kept, lingering=cpus("3")) for cell, kept in result.memory.cells.items()}
    return replace(result, memory=replace(result.memory, cells=cells))


@pytest.mark.parametrize(
    ("change", "billing"),
    [
        pytest.param(without_kernel, BILLING, id="a guest is not to be seen"),
        pytest.param(with_one_stuck, BILLING, id="a thread is stuck"),
        pytest.param(lingering, BILLING, id="a pool still has what it leaves"),
        pytest.param(replace, BillingSettings(Fraction(2)), id="another billing"),
    ],
)
def test_gauges_follow_what_changes_beside_the_plan(
    node: Node, change: Callable[[CycleResult], CycleResult], billing: BillingSettings
) -> None:
    """They are not made anew while nothing changes."""
    node.start("a")
    node.start("b", vcpus=2)
    node.react()
    node.cycle(Cause.RECONCILE)
    result, again = node.cycle(Cause.RECONCILE), node.cycle(Cause.RECONCILE)
    assert again.plan is result.plan
    changed = change(again)
    gauges = [Told(node), Told(node)]
    gauges[0].tell(result)
    before = gauges[0].shown
    gauges[0].tell(again)
    assert gauges[0].shown is before
    for told in gauges:
        told.tell(changed, billing)
    assert gauges[0].shown == gauges[1].shown != before
    gauges[0].tell(again)
    assert gauges[0].shown == before


def test_gauges_follow_the_plan(node: Node) -> None:
    told = Told(node)
    for name in "abc":
        node.start(name)
        told.tell(node.react())
        other = Told(node)
        other.tell(node.cycle(Cause.RECONCILE))
        assert told.shown == other.shown
    told.tell(node.cycle(Cause.RECONCILE))
    before = told.shown
    node.rebalancer.reconfigure(pools(7, cpus=cpus("0-1"), min_cpus=2))  # and nobody moves
    result = node.cycle(Cause.RECONCILE)
    told.tell(result)
    assert not result.steps
    assert told.shown.series["emulator_overcommit_ratio"] == ((("0",), 7.0), (("1",), 7.0))
    assert told.shown != before


def test_what_guests_of_a_cell_used_is_added_up(node: Node) -> None:
    for name in "abc":
        node.start(name)
    node.react()
    metrics = Metrics()
    spent = {0: 0.0}

    def times(kernel: Kernel) -> Times:
        return Times(
            emulator=tuple((one.tid, int(spent[0] * 1e9), 0) for one in kernel.threads),
            iothreads=(),
        )

    teller = Teller(metrics, PoolUsage(), EmulatorTime(), times)
    result = node.cycle(Cause.RECONCILE)
    threads = sum(len(one.kernel.threads) for one in result.guests if one.kernel)
    for spent[0] in (1.0, 3.0, 4.0):
        teller.used(result)
    counted = metrics.counters()
    assert counted['emupool_emulator_cpu_seconds_total{cell="0",kind="emulator"}'] == 3 * threads
