"""Shares of time and differences of threads' times."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cpuset import CellId, CpuSet
from agent.transition import Kind
from agent.usage import CpuTimes, EmulatorTime, PoolUsage, read_cpu_times

CELL = CellId(0)
POOL = {CELL: CpuSet.parse("0-1")}


@dataclass(frozen=True)
class Times:
    user: float = 0.0
    nice: float = 0.0
    system: float = 0.0
    idle: float = 0.0
    iowait: float = 0.0
    irq: float = 0.0
    softirq: float = 0.0
    steal: float = 0.0
    guest: float = 0.0  # already in user
    guest_nice: float = 0.0  # already in nice


def usage(*readings: list[Times]) -> PoolUsage:
    left = deque(readings)

    def read() -> list[CpuTimes]:
        return list(left.popleft())

    return PoolUsage(read)


def shares(
    *readings: list[Times], online: str = "0-1", pools: dict[CellId, CpuSet] | None = None
) -> dict[CellId, float]:
    """Return what the last of `readings` says."""
    measured = usage(*readings)
    answer: dict[CellId, float] = {}
    for _ in readings:
        answer = measured.busy(CpuSet.parse(online), pools or POOL)
    return answer


@pytest.mark.parametrize(
    ("spent", "share"),
    [
        (Times(user=10), 1.0),
        (Times(nice=10), 1.0),
        (Times(system=10), 1.0),
        (Times(irq=10), 1.0),
        (Times(softirq=10), 1.0),
        (Times(steal=10), 1.0),
        (Times(idle=10), 0.0),
        (Times(iowait=10), 0.0),
        (Times(user=5, guest=5, idle=5), 0.5),
        (Times(nice=5, guest_nice=5, idle=5), 0.5),
        (Times(user=1, system=1, irq=1, softirq=1, steal=1, idle=10, iowait=5), 0.25),
    ],
)
def test_all_but_idle_and_waiting_for_disks_is_busy(spent: Times, share: float) -> None:
    assert shares([Times(), Times()], [spent, spent])[CELL] == pytest.approx(share)


def test_the_share_is_over_all_pcpus_of_the_pool() -> None:
    assert shares([Times(), Times()], [Times(user=10), Times(idle=30)]) == {CELL: 0.25}


def test_the_first_call_measures_nothing() -> None:
    assert shares([Times(user=5), Times(idle=5)]) == {}


def test_only_what_came_since_the_last_call_counts() -> None:
    before, after = Times(user=1000, idle=10), Times(user=1000, idle=20)
    assert shares([before, before], [after, after]) == {CELL: 0.0}


def test_readings_belong_to_the_pcpus_on_line_in_order() -> None:
    pools = {CellId(0): CpuSet.parse("2"), CellId(1): CpuSet.parse("7")}
    assert shares(
        [Times(), Times(), Times()],
        [Times(idle=10), Times(user=10), Times(user=5, idle=5)],
        online="0,2,7",
        pools=pools,
    ) == {CellId(0): 1.0, CellId(1): 0.5}


def test_a_reading_of_other_pcpus_than_are_on_line_is_dropped() -> None:
    pool = [Times(), Times()]
    assert shares(pool, [Times(user=9)] * 3) == {}
    assert shares(pool, [Times(user=9)] * 3, [Times(user=5, idle=5)] * 2) == {CELL: 0.5}


def test_the_last_answer_stands_while_too_little_time_has_passed() -> None:
    first, second = [Times(), Times()], [Times(user=5, idle=5)] * 2
    third = [Times(user=5.02, idle=5)] * 2  # two ticks of the kernel's clock, both busy
    assert shares(first, second, third) == {CELL: 0.5}
    assert shares(first, second, third, [Times(user=6, idle=5)] * 2) == {CELL: 1.0}


def test_times_that_went_back_count_nothing() -> None:
    before = Times(user=10, idle=100, iowait=7)
    assert shares([before] * 2, [Times(user=12, idle=40)] * 2) == {CELL: 1.0}
    assert shares([before] * 2, [Times(user=5, idle=104, iowait=7)] * 2) == {CELL: 0.0}


def test_a_pcpu_that_came_on_line_is_measured_from_then_on() -> None:
    measured = usage([Times()], [Times(idle=5), Times(user=99)], [Times(idle=9), Times(user=103)])
    assert measured.busy(CpuSet.parse("0"), POOL) == {}
    assert measured.busy(CpuSet.parse("0-1"), POOL) == {CELL: 0.0}
    assert measured.busy(CpuSet.parse("0-1"), POOL) == {CELL: 0.5}


def test_an_empty_pool_has_no_share() -> None:
    empty = {CELL: CpuSet()}
    assert shares([Times()] * 2, [Times(user=9)] * 2, pools=empty) == {}


def test_psutil_lists_the_pcpus_of_proc_stat() -> None:
    lines = Path("/proc/stat").read_text().splitlines()
    kernel = [line.split() for line in lines if line.startswith("cpu") and line[3] != " "]
    times = read_cpu_times()
    assert len(times) == len(kernel)
    for cpu, fields in zip(times, kernel, strict=True):
        # Read later; the kernel's sum of idle time is known to step back by a tick.
        assert round(cpu.user * 100) >= int(fields[1])
        assert round(cpu.idle * 100) >= int(fields[4]) - 2


def spent(**threads: tuple[int, int]) -> list[tuple[int, int, int]]:
    return [(int(tid[1:]), ran, waited) for tid, (ran, waited) in threads.items()]


SECOND = 1_000_000_000


def test_times_are_added_as_differences() -> None:
    times = EmulatorTime()
    assert times.add("g", "1", Kind.EMULATOR, spent(t1=(100 * SECOND, SECOND))) == (0.0, 0.0)
    later = spent(t1=(103 * SECOND, 2 * SECOND))
    assert times.add("g", "1", Kind.EMULATOR, later) == (3.0, 1.0)
    assert times.add("g", "1", Kind.EMULATOR, later) == (0.0, 0.0)


def test_a_thread_born_since_counts_whole() -> None:
    times = EmulatorTime()
    times.add("g", "1", Kind.EMULATOR, spent(t1=(50 * SECOND, 0)))
    grown = spent(t1=(51 * SECOND, 0), t2=(2 * SECOND, SECOND))
    assert times.add("g", "1", Kind.EMULATOR, grown) == (3.0, 1.0)


def test_a_thread_that_ended_lowers_nothing() -> None:
    times = EmulatorTime()
    times.add("g", "1", Kind.EMULATOR, spent(t1=(9 * SECOND, 0), t2=(7 * SECOND, 0)))
    assert times.add("g", "1", Kind.EMULATOR, spent(t1=(10 * SECOND, 0))) == (1.0, 0.0)
    assert times.add("g", "1", Kind.EMULATOR, []) == (0.0, 0.0)


def test_a_reused_thread_id_is_a_new_thread() -> None:
    times = EmulatorTime()
    times.add("g", "1", Kind.EMULATOR, spent(t1=(9 * SECOND, 5 * SECOND)))
    reused = spent(t1=(2 * SECOND, SECOND))
    assert times.add("g", "1", Kind.EMULATOR, reused) == (2.0, 1.0)


def test_another_start_of_a_guest_counts_from_nothing() -> None:
    times = EmulatorTime()
    times.add("g", "1", Kind.EMULATOR, spent(t1=(SECOND, 0)))
    restored = spent(t1=(500 * SECOND, 0))
    assert times.add("g", "2", Kind.EMULATOR, restored) == (0.0, 0.0)
    assert times.add("g", "2", Kind.IOTHREAD, restored) == (0.0, 0.0)


def test_kinds_and_guests_are_apart() -> None:
    times = EmulatorTime()
    for uuid, kind in (("g", Kind.EMULATOR), ("g", Kind.IOTHREAD), ("h", Kind.EMULATOR)):
        assert times.add(uuid, "1", kind, spent(t1=(9 * SECOND, 0))) == (0.0, 0.0)
    assert times.add("h", "1", Kind.EMULATOR, spent(t1=(10 * SECOND, 0))) == (1.0, 0.0)
    assert times.add("g", "1", Kind.IOTHREAD, spent(t1=(9 * SECOND, 0))) == (0.0, 0.0)


def test_a_forgotten_guest_counts_from_nothing() -> None:
    times = EmulatorTime()
    for uuid in ("g", "h"):
        times.add(uuid, "1", Kind.EMULATOR, spent(t1=(SECOND, 0)))
    times.forget(["h", "unknown"])
    assert times.add("g", "1", Kind.EMULATOR, spent(t1=(9 * SECOND, 0))) == (0.0, 0.0)
    assert times.add("h", "1", Kind.EMULATOR, spent(t1=(9 * SECOND, 0))) == (8.0, 0.0)
    times.forget([])
    assert not times._starts
    assert not times._threads


READINGS = st.lists(
    st.dictionaries(
        st.integers(1, 3), st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), max_size=3
    ),
    max_size=6,
)


@given(st.lists(st.tuples(st.sampled_from("gh"), st.sampled_from("12"), READINGS), max_size=5))
def test_nothing_is_ever_taken_away(
    lives: list[tuple[str, str, list[dict[int, tuple[int, int]]]]],
) -> None:
    times = EmulatorTime()
    for uuid, start, readings in lives:
        for reading in readings:
            threads = [(tid, *used) for tid, used in reading.items()]
            ran, waited = times.add(uuid, start, Kind.EMULATOR, threads)
            assert 0 <= ran <= sum(used[0] for used in reading.values()) / 1e9
            assert 0 <= waited <= sum(used[1] for used in reading.values()) / 1e9
