"""The benchmarks' own parts: what is on file, the document, the clock's helpers, and that all run.

`--quick` runs of what needs no guests are made here, and one of what does; the others are the same
code with other numbers, and are run by `make bench ARGS=--quick`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import document, results, suite
from benchmarks.__main__ import INTERRUPTED
from benchmarks.findings import Chart, Findings, Goal, Table, compared, p99, quartiles, summary
from benchmarks.stage import Stage
from benchmarks.storms import OPENING
from benchmarks.suite import BENCHMARKS
from benchmarks.tap import HIDDEN, Tap
from tests import runner
from tests.guests import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.guests import Guest
    from tests.libvirtd import Libvirtd

FOUND = Findings(
    goals=[Goal("time", 1.5, 1.2, "times the floor", why="it is slow"), Goal("calls", 1.0, 1.1)],
    tables=[Table("who is fast", ("", "ms"), [("agent", "2.0"), ("floor", "1.0")])],
    charts=[Chart("fast", "Who is fast", "medians", "guests", [("ms", [("agent", [(1, 2)])])])],
    notes=["on a busy machine"],
    figures={"agent": 2.0},
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def taken(found: Findings | str = FOUND) -> results.Document:
    return results.add(results.begin(quick=True), "one", "One", 1.25, found)


def test_a_run_on_file_says_what_was_found_and_where(tmp_path: Path) -> None:
    path = tmp_path / "results/latest.json"
    results.write(taken(), path)
    read = results.read(path)
    assert read is not None
    assert read == taken() | {"taken": read["taken"], "machine": read["machine"]}
    entry = read["benchmarks"]["one"]
    assert results.goals(entry) == list(FOUND.goals)
    assert [chart.draw() for chart in results.charts(entry)] == [FOUND.charts[0].draw()]
    assert {"pcpus", "model", "kernel", "cpuset", "memory_gib"} <= read["machine"].keys()
    assert {"emupool", "python", "libvirt", "qemu"} <= read["versions"].keys()


def test_what_is_no_run_of_ours_counts_as_none(tmp_path: Path) -> None:
    for text in ("", "[]", '{"schema": 0}'):
        (tmp_path / "latest.json").write_text(text)
        assert results.read(tmp_path / "latest.json") is None
    assert results.read(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [
        pytest.param({}, True, id="broken off"),
        pytest.param({"commit": "another"}, False, id="the code has changed"),
        pytest.param({"quick": False}, False, id="more effort is asked for"),
        pytest.param({"benchmarks": {"one": {}, "two": {}}}, False, id="it was whole"),
    ],
)
def test_a_run_that_was_broken_off_is_taken_up_if_nothing_has_changed(
    change: dict[str, Any], *, goes_on: bool
) -> None:
    assert results.continues(taken() | change, taken(), ["one", "two"]) is goes_on


def test_the_document_shows_what_the_results_say() -> None:
    # one run for both: each `taken` asks the machine's load anew
    found = [taken()]
    old = (
        "before <!-- results: one -->\nold\n<!-- end --> <!-- results: goals -->\n<!-- end -->\n"
        "<!-- results: two -->\nold\n<!-- end -->\n<!-- results: run -->\n<!-- end --> after"
    )
    new = document.renewed(old, found)
    assert "| agent | 2.0 |\n" in new
    assert "![Who is fast](benchmarks/fast.svg)" in new
    assert "- on a busy machine" in new
    assert "| One | time | 1.500 times the floor | at most 1.2 | **missed**: it is slow |" in new
    assert "| One | calls | 1.000 | at most 1.1 | met |" in new
    assert f"two -->\n{document.NOTHING}" in new
    assert new.startswith("before ")
    assert new.endswith("<!-- end --> after")
    assert document.renewed(new, found) == new


def test_a_benchmark_that_failed_is_told_of_and_fails_the_run() -> None:
    failed = taken("AssertionError: not all were pinned")
    assert "**failed**: AssertionError" in document.renewed(
        "<!-- results: goals -->\n<!-- end -->", [failed]
    )
    assert not document.succeeded(failed)
    assert not document.succeeded(taken())
    assert document.succeeded(taken(Findings([FOUND.goals[1]])))
    assert "FAILED" in document.text(failed["benchmarks"]["one"])
    assert "MISSED" in document.text(taken()["benchmarks"]["one"])


def test_the_document_is_what_the_results_on_file_say() -> None:
    text = document.DOCUMENT.read_text()
    assert document.renewed(text, document.on_file()) == text, "run: make bench ARGS=--document"
    for name, svg in document.pictures(document.on_file()).items():
        assert (document.PICTURES / f"{name}.svg").read_text() == svg


def test_every_benchmark_has_its_place_in_the_document() -> None:
    text = document.DOCUMENT.read_text()
    for one in BENCHMARKS:
        assert f"<!-- results: {one.name} -->" in text
        assert callable(one.run)


def test_a_goal_is_met_at_its_limit_and_no_further() -> None:
    assert Goal("", 1.2, 1.2).met
    assert not Goal("", 1.21, 1.2).met
    assert Goal("", 1.0, 1.0, least=True).met
    assert not Goal("", 0.99, 1.0, least=True).met


def test_medians_spreads_and_ratios() -> None:
    values = [float(n) for n in range(1, 101)]
    assert p99(values) == 99
    assert quartiles(values) == (25.75, 75.25)
    assert quartiles([3.0]) == (3.0, 3.0)
    assert summary(values)["median"] == 50.5
    _, figures = compared("", {"floor": [1.0, 2.0, 3.0], "agent": [2.0, 3.0, 9.0]})
    assert figures["agent"]["ratio"] == 1.5
    assert figures["agent"]["p99_ratio"] == 3


def test_benchmarks_are_chosen_by_name_and_the_largest_only_on_demand() -> None:
    assert [one.name for one in suite.chosen(["rest", "storm"], large=False)] == ["rest", "storm"]
    assert {one.name for one in suite.chosen([], large=True)} == {"large"}
    assert "large" not in {one.name for one in suite.chosen([], large=False)}
    done = run("rest", "nothing-of-that-name")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no benchmark 'nothing-of-that-name': there are arrivals," in done.stderr


def test_what_needs_no_guests_runs(tmp_path: Path) -> None:
    names = [one.name for one in BENCHMARKS if not one.real and one.name != "cycle"]
    done = run(*names, "--quick", "--to", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["benchmarks"].keys() == set(names), done.stderr
    assert [one["error"] for one in found["benchmarks"].values()] == [None] * len(names)
    for svg in document.pictures([found]).values():
        ET.fromstring(svg)


@pytest.mark.real
def test_a_run_with_guests_verifies_and_counts(tmp_path: Path) -> None:
    done = run("reload", "widening", "--quick", "--to", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    assert [one["error"] for one in found.values()] == [None, None], done.stderr
    calls = found["reload"]["figures"]["calls"]
    assert calls["DomainPinEmulator"] == 6
    assert calls["DomainGetXMLDesc"] < 12, "what came before the reload is not counted"
    assert found["widening"]["figures"]["agent"][0] == 0


CLIENT = """\
import libvirt, sys
connection = libvirt.open(sys.argv[1])
domain, = [one for one in connection.listAllDomains(0) if one.name() == sys.argv[2]]
domain.XMLDesc(0)
domain.pinEmulator((True,), libvirt.VIR_DOMAIN_AFFECT_LIVE)
connection.lookupByUUIDString(domain.UUIDString()).pinEmulator((True,), 1)
"""


def test_a_tap_names_and_counts_the_calls_of_a_client(
    libvirtd: Libvirtd, make_guest: Callable[..., Guest], tmp_path: Path
) -> None:
    guest = make_guest("a").define().start(paused=True)
    with Tap(tmp_path / "tap", libvirtd.home / "libvirt-sock") as tap:
        subprocess.run([sys.executable, "-c", CLIENT, tap.uri, guest.name], check=True, timeout=60)
        counted = tap.taken()
        assert not tap.taken()
    assert {name: times for name, times in counted.items() if name not in OPENING} == {
        "ConnectListAllDomains": 1,
        "DomainGetXMLDesc": 1,
        "DomainLookupByUUID": 1,
        "DomainPinEmulator": 2,
        HIDDEN: 2,
    }


@pytest.mark.real
def test_a_run_that_is_told_to_end_leaves_nothing() -> None:
    command = [sys.executable, "-m", "benchmarks", "reload", "--quick"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:

        def runners() -> list[int]:
            return [pid for pid, parent, _ in runner.processes() if parent == process.pid]

        def guests() -> list[Path]:
            return [path for _, path in runner.guest_cgroups(lambda pid: pid in runners())]

        wait_until(guests, 60, "a guest")
        (pid, *_) = runners()
        process.terminate()
        assert process.wait(60) == INTERRUPTED
    assert not runner.home_of(pid).exists()
    assert not list(runner.guest_cgroups(lambda other: other == pid))


@pytest.mark.real
def test_a_benchmark_that_fails_leaves_nothing() -> None:
    runners = []

    def fail() -> None:
        with Stage() as stage:
            runners.append(stage.libvirtd.runner)
            stage.crowd("a", 1)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert not runner.home_of(runners[0]).exists()
    assert not list(runner.guest_cgroups(lambda pid: pid == runners[0]))
