"""libvirt's view of the host against the kernel's: read, compared, asked for and told once."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from agent import config as configuration
from agent import logs
from agent.cpuset import CellId, CpuSet
from agent.daemon import Daemon
from agent.errors import HypervisorAway, NotPermitted
from agent.events import HostTold
from agent.hypervisor import Libvirt, capabilities
from agent.metrics import Metrics
from agent.opinion import Opinion
from agent.parts import Parts
from agent.sysfs import Sysfs
from agent.telling import Teller
from agent.threads import Threads
from agent.topology import ForeignCell, disagreements
from agent.usage import EmulatorTime, PoolUsage
from lab.inside.agent import toml
from tests.fake import Fake
from tests.hosts import NO_NUMA, POWER_SMT_OFF, TWO_CELLS_EIGHT_CPUS, Machine, host, write
from tests.service import Service, wait

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.events import Event
    from tests.libvirtd import Libvirtd


def cell(number: int, cpus: str, *cores: str) -> ForeignCell:
    """Return a cell; its pCPUs' siblings are told by cores."""
    sets = [CpuSet.parse(core) for core in cores]
    siblings = tuple((cpu, core) for core in sets for cpu in core)
    return ForeignCell(CellId(number), CpuSet.parse(cpus), siblings)


ZERO = cell(0, "0-3", "0-1", "2-3")
ONE = cell(1, "4-7", "4-5", "6-7")


@pytest.mark.parametrize(
    ("offline", "told", "lines"),
    [
        pytest.param("", [ZERO, ONE], [], id="the same"),
        pytest.param("", [ONE, ZERO], [], id="in another order"),
        pytest.param("", [ZERO, ONE, cell(5, "")], [], id="a cell without pCPUs"),
        pytest.param("3", [ZERO, ONE], [], id="it names one that is off line"),
        pytest.param("3", [cell(0, "0-2", "0-1", "2"), ONE], [], id="it does not"),
        pytest.param("", [cell(0, "0-3"), cell(1, "4-7")], [], id="it tells no siblings"),
        pytest.param(
            "",
            [cell(0, "0-4"), cell(1, "5-7")],
            [
                "cell 0 has pCPUs 0-3, libvirt says 0-4",
                "cell 1 has pCPUs 4-7, libvirt says 5-7",
            ],
            id="a pCPU is elsewhere",
        ),
        pytest.param(
            "",
            [cell(0, "0-3"), cell(2, "4-7")],
            [
                "cell 1 has pCPUs 4-7, libvirt says none",
                "cell 2 has pCPUs none, libvirt says 4-7",
            ],
            id="a cell has another number",
        ),
        pytest.param(
            "",
            [cell(0, "0-3", "0", "1", "2-3"), ONE],
            ["pCPU 0 shares its core with 0-1, libvirt says 0, and 1 more pCPUs are like it"],
            id="a core is cut in two",
        ),
        pytest.param(
            "1",
            [cell(0, "0-3", "0,2", "3"), ONE],
            ["pCPU 0 shares its core with 0, libvirt says 0,2, and 2 more pCPUs are like it"],
            id="cores are others",
        ),
        pytest.param(
            "",
            [],
            ["cell 0 has pCPUs 0-3, libvirt says none", "cell 1 has pCPUs 4-7, libvirt says none"],
            id="it tells nothing at all",
        ),
    ],
)
def test_what_libvirt_and_the_kernel_disagree_on(
    offline: str, told: list[ForeignCell], lines: list[str]
) -> None:
    machine = Machine(packages=2, threads=2, offline=CpuSet.parse(offline))
    assert list(disagreements(host(machine), told)) == lines


@pytest.mark.parametrize("machine", [NO_NUMA, POWER_SMT_OFF, TWO_CELLS_EIGHT_CPUS])
def test_a_host_agrees_with_itself(machine: Machine) -> None:
    assert disagreements(host(machine), Fake(machine).cells()) == ()


# --- libvirt's text ------------------------------------------------------------------------------


def document(cells: str) -> str:
    return f"<capabilities><host><topology><cells>{cells}</cells></topology></host></capabilities>"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("", (), id="no text"),
        pytest.param("<capabilities/>", (), id="no topology"),
        pytest.param(
            document(
                "<cell id='1'><cpus num='1'><cpu id='4' siblings='4'/></cpus></cell>"
                "<cell id='0'><memory unit='KiB'>1</memory><cpus num='2'>"
                "<cpu id='0' socket_id='0' die_id='0' core_id='0' siblings='0-1'/>"
                "<cpu id='1' socket_id='0' die_id='0' core_id='0' siblings='0-1'/></cpus></cell>"
            ),
            (cell(0, "0-1", "0-1"), cell(1, "4", "4")),
            id="cells by id",
        ),
        pytest.param(
            document("<cell id='0'><cpus num='1'><cpu id='7'/></cpus></cell>"),
            (cell(0, "7"),),
            id="a pCPU that is off line",
        ),
        pytest.param(
            document("<cell id='2'><cpus num='0'></cpus></cell>"), (cell(2, ""),), id="memory only"
        ),
        pytest.param(
            document(
                "<cell id='x'/><cell><cpus/></cell><cell id='3'><cpus><cpu id='-1'/><cpu/>"
                "<cpu id='99999'/><cpu id='2' siblings='2-'/></cpus></cell>"
            ),
            (cell(3, "2"),),
            id="nonsense",
        ),
    ],
)
def test_cells_are_read_from_capabilities(text: str, told: tuple[ForeignCell, ...]) -> None:
    assert capabilities.cells(text) == told


def test_libvirts_test_driver_has_a_host_of_its_own() -> None:
    asked = Libvirt("test:///default", 5, 3).cells()
    assert [(one.id, len(one.cpus)) for one in asked] == [(0, 8), (1, 8)]


@pytest.mark.real
def test_libvirt_and_the_kernel_agree_on_this_machine(libvirtd: Libvirtd) -> None:
    told = Libvirt(libvirtd.uri, 5, 3).cells()
    found = Sysfs(Path("/")).discover().host
    assert {one.id: one.cpus for one in told} == {one.id: one.cpus for one in found.cells}
    assert dict(pair for one in told for pair in one.siblings) == {
        cpu.id: cpu.siblings for cpu in found.cpus if cpu.online
    }
    assert disagreements(found, told) == ()


# --- asking and telling --------------------------------------------------------------------------


class Asked:
    """An opinion that waits for `answer`."""

    def __init__(self) -> None:
        self.put: SimpleQueue[Event] = SimpleQueue()
        self.asked: SimpleQueue[None] = SimpleQueue()
        self.answers: SimpleQueue[tuple[ForeignCell, ...] | Exception] = SimpleQueue()
        self.opinion = Opinion(self.ask, self.put.put)

    def ask(self) -> tuple[ForeignCell, ...]:
        self.asked.put(None)
        answer = self.answers.get(timeout=10)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ended(self) -> None:
        for thread in threading.enumerate():
            if thread.name == "opinion":
                thread.join(10)
                assert not thread.is_alive()


def test_one_question_is_asked_at_a_time_and_again_after_the_answer() -> None:
    bench = Asked()
    bench.opinion.seek()
    bench.asked.get(timeout=10)
    bench.opinion.seek()
    bench.answers.put((ZERO,))
    assert bench.put.get(timeout=10) == HostTold((ZERO,))
    bench.ended()
    assert bench.asked.empty()
    bench.opinion.seek()
    bench.answers.put((ONE,))
    assert bench.put.get(timeout=10) == HostTold((ONE,))


@pytest.mark.parametrize("error", [HypervisorAway("gone"), NotPermitted("no")])
def test_who_cannot_be_asked_has_no_opinion(error: Exception) -> None:
    bench = Asked()
    bench.opinion.seek()
    bench.answers.put(error)
    bench.ended()
    assert bench.put.empty()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    written = io.StringIO()
    logs.configure("info", "json", written)
    yield written
    logs.configure("warning", "auto", sys.__stderr__ or io.StringIO())


def test_a_disagreement_is_told_once(log: io.StringIO) -> None:
    teller = Teller(Metrics(), PoolUsage(), EmulatorTime(), lambda _: None)
    seen = host(TWO_CELLS_EIGHT_CPUS)
    other = cell(1, "4-6")
    for told in ((ZERO, ONE), (ZERO, other), (ZERO, other), (ZERO, ONE), (ZERO,)):
        teller.opinion(seen, told)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["event"], line["about"]) for line in lines] == [
        ("topology.disagrees", ["cell 1 has pCPUs 4-7, libvirt says 4-6"]),
        ("topology.disagrees", ["cell 1 has pCPUs 4-7, libvirt says none"]),
    ]


@pytest.fixture
def _signals() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
def test_a_daemon_tells_of_a_libvirt_that_sees_another_host(
    log: io.StringIO, tmp_path: Path
) -> None:
    """It goes on with what the kernel says, and tells once, also if libvirt comes back."""
    file = tmp_path / "config.toml"
    file.write_text(toml({"state": {"path": str(tmp_path / "state.json")}}))
    fake, kernel = Fake(Machine(packages=2)), Sysfs(write(Machine(cores=4), tmp_path / "root"))
    daemon = Daemon(configuration.load(file), Parts(fake, kernel, Threads()))

    def live() -> None:
        try:
            wait(lambda: "topology.disagrees" in log.getvalue(), "the disagreement to be told")
            fake.lose()
            wait(lambda: fake.count("cells") == 2, "libvirt to be asked again")
            wait(lambda: log.getvalue().count("libvirt.connected") == 2, "a second connection")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    living = threading.Thread(target=live)
    living.start()
    daemon.run()
    living.join()
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    told = [line["about"] for line in lines if line["event"] == "topology.disagrees"]
    assert told == [
        ["cell 0 has pCPUs 0-3, libvirt says 0-1", "cell 1 has pCPUs none, libvirt says 2-3"]
    ]
    cells = json.loads(daemon.status())["cells"]
    assert [cell["id"] for cell in cells] == [0]


@pytest.mark.real
def test_a_daemon_that_agrees_with_libvirt_says_nothing(libvirtd: Libvirtd, tmp_path: Path) -> None:
    with Service(libvirtd.uri, tmp_path) as service:
        told = 2  # that there is a connection, and what libvirt takes the host for
        wait(lambda: service.metric("events_total", event="connection") == told, "an answer")
        service.settle()
        assert service.saw("topology.disagrees") is None
