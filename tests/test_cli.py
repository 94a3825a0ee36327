"""The command line from outside: documents, exit statuses, one line for each error."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests import hosts
from tests.guests import guest_xml
from tests.schemas import answer_of, validated

if TYPE_CHECKING:
    from pathlib import Path

UUID = "00000000-0000-4000-8000-00000000000"


def emupool(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "agent", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "--json" in arguments and not done.returncode:
        document = json.loads(done.stdout)
        validated(answer_of(str(arguments[0]), document), document)
    return done


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sockets of eight cores with SMT: pCPU N and N + 16 are one core."""
    hosts.write(hosts.TWO_SOCKET_SMT, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    folder = tmp_path / "domains"
    folder.mkdir()
    for number, pin in ((1, "6"), (2, "7"), (3, "14")):
        vcpupins = {0: str(int(pin) - 2)}
        xml = guest_xml(
            f"guest-{number}",
            uuid=UUID + str(number),
            nova_policy="isolate",
            emulatorpin=pin,
            vcpupins=vcpupins,
            memnode0="1" if pin == "14" else "0",
        )
        running = xml.replace("<domain type='qemu'>", f"<domain type='qemu' id='{number}'>")
        (folder / f"{number}.xml").write_text(running)
    return folder


def planned(*arguments: object) -> dict[str, Any]:
    done = emupool("plan", "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_plan_from_files_consolidates_what_novas_guests_set_aside(
    root: Path, domains: Path
) -> None:
    document = planned("--sysfs-root", root, "--domains", domains)
    pools = [(c["id"], c["guests"], c["need"], c["pool"]) for c in document["cells"]]
    assert pools == [(0, 2, 1, "6"), (1, 1, 1, "14")]
    assert [(s["uuid"][-1], s["from"], s["to"], s["reason"]) for s in document["steps"]] == [
        ("2", "7", "6", "arrive")
    ]
    assert {g["source"] for g in document["guests"]} == {"nova"}


def test_what_if_asks_for_another_ratio(root: Path, domains: Path) -> None:
    document = planned("--sysfs-root", root, "--domains", domains, "--ratio", "1")
    assert [(c["ratio"], c["pool"]) for c in document["cells"]] == [("1", "6-7"), ("1", "14")]


def test_several_ratios_are_compared(root: Path, domains: Path) -> None:
    files = ("--sysfs-root", root, "--domains", domains)
    document = planned(*files, "--ratio", "8", "--ratio", "1", "--ratio", "2.5")
    assert [
        (row["ratio"], row["pool_cpus"], row["guests"], row["guests_moved"], row["cpus_freed"])
        for row in document["ratios"]
    ] == [("1", 3, 3, 2, 0), ("5/2", 2, 3, 1, 1), ("8", 2, 3, 1, 1)]
    assert [c["pool"] for c in document["ratios"][0]["cells"]] == ["6-7", "14"]
    for ratio in ("1", "8"):
        alone = planned(*files, "--ratio", ratio)
        row = next(row for row in document["ratios"] if row["ratio"] == ratio)
        assert row["cells"] == alone["cells"]
        assert row["guests_moved"] == len({step["uuid"] for step in alone["steps"]})
    table = emupool("plan", *files, "--ratio", "8", "--ratio", "1").stdout.splitlines()
    assert [line.split()[:3] for line in table[:3]] == [
        ["ratio", "pool", "of"],
        ["1", "2:", "6-7"],
        ["8", "1:", "6"],
    ]


@pytest.mark.parametrize("more", [(), ("--json",), ("--ratio", "2", "--ratio", "3")])
def test_a_plan_from_files_neither_needs_nor_imports_libvirt(
    root: Path, domains: Path, more: tuple[str, ...]
) -> None:
    done = without_libvirt("plan", "--sysfs-root", root, "--domains", domains, *more)
    assert (done.returncode, done.stderr) == (0, "")
    assert "6" in done.stdout


def without_libvirt(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command where libvirt cannot be imported; fails if that is even tried."""
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('libvirt'): sys.exit(f'imported {name}')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"sys.argv = {['emupool', *map(str, arguments)]!r}\n"
        "from agent.cli import main\n"
        "try: main()\n"
        "finally: assert not [name for name in sys.modules if name.startswith('libvirt')]\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_command_that_plans_once_loads_nothing_of_the_daemon() -> None:
    program = "import sys, agent.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    daemons = {"agent.daemon", "agent.parts", "agent.doorkeeper", "agent.recorder", "structlog"}
    assert daemons & set(done.stdout.split()) == set()


def test_a_domain_that_is_none_is_a_warning_and_the_others_are_planned(
    root: Path, domains: Path
) -> None:
    (domains / "9.xml").write_text("<domain><name>half")
    done = emupool("plan", "--json", "--sysfs-root", root, "--domains", domains)
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["guests"]) == 3
    assert "9.xml" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_topology_document_has_every_pcpu(root: Path) -> None:
    document = json.loads(emupool("topology", "--json", "--sysfs-root", root).stdout)
    assert [cell["cpus"] for cell in document["cells"]] == ["0-7,16-23", "8-15,24-31"]
    assert len(document["cpus"]) == 32
    assert document["cpus"][0]["siblings"] == "0,16"


def test_bills_are_exact(root: Path, domains: Path) -> None:
    done = emupool("account", "--json", "--sysfs-root", root, "--domains", domains)
    document = json.loads(done.stdout)
    assert document["cells"][0] == {
        "id": 0,
        "dedicated": "2",
        "shared": "0",
        "emulator": "1/4",
        "total": "9/4",
    }


def test_check_config_tells_every_error_and_holds_it_against_a_host(
    root: Path, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[pool]\nratio = 3\nmin_cpus = "x"\n')
    bad = emupool("check-config", file)
    assert (bad.returncode, len(bad.stderr.splitlines())) == (1, 2)
    file.write_text('[pool]\ncpus = "0-40"\n')
    assert emupool("check-config", file).returncode == 0
    absent = emupool("check-config", file, "--sysfs-root", root)
    assert absent.returncode == 1
    assert "pool.cpus" in absent.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        pytest.param(("frob",), 2, "emupool --help", id="an unknown command"),
        pytest.param(("plan", "--ratio", "1e9"), 2, "1000", id="a ratio beyond its range"),
        pytest.param(("plan", "--sysfs-root", "."), 2, "--domains", id="half of the files"),
        pytest.param(("check-config",), 2, "FILE", id="a missing argument"),
        pytest.param(("check-config", "/none"), 1, "/none", id="a file that does not exist"),
        pytest.param(("status", "--url", "x"), 1, "http://", id="a URL that is none"),
        pytest.param(("status", "--url", "http://127.0.0.1:9"), 3, "daemon", id="no daemon"),
        pytest.param(("advise", "--url", "http://127.0.0.1:9"), 3, "daemon", id="none to advise"),
        pytest.param(("topology", "--sysfs-root", "tests"), 1, "pCPU", id="no host there"),
    ],
)
def test_every_refusal_is_one_line_with_its_status(
    arguments: tuple[str, ...], status: int, says: str
) -> None:
    done = emupool(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("emupool: ")
    assert says in done.stderr
