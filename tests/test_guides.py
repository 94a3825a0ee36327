"""The guides for Nova, plain libvirt and oVirt: their commands run, their figures come out."""

from __future__ import annotations

import json
import re
import tomllib
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from agent.cpuset import CpuSet
from agent.domainxml import parse
from agent.policy import Policy, Source
from tests import hosts
from tests.builders import resolved
from tests.commands import Commands
from tests.guests import guest_xml
from tests.guides import (
    FOLDER,
    GUIDES,
    LANGUAGES,
    Block,
    Place,
    as_here,
    blocks,
    config_of,
    text_of,
)
from tests.providerconfig import fault, inventory
from tests.service import Service, free_port, wait_on
from tests.worlds import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.guests import Guest
    from tests.libvirtd import Libvirtd

MACHINE: Final = hosts.TWO_SOCKET_SMT
CELLS: Final = {0: CpuSet.parse("0-7,16-23"), 1: CpuSet.parse("8-15,24-31")}
HOST_OWN: Final = CpuSet.parse("0,8,16,24")

AS_HERE: Final = {"1,9,17,25": "1", "0,8,16,24": "0", "0-31": "0-1"}
"""What the guides name of their host, and what is tried instead on a machine of two pCPUs."""

START: Final = "systemctl enable --now emupool\n"
STOP: Final = "systemctl disable --now emupool\n"


# what is in them


def lacking(text: str) -> list[str]:
    """Return what in a guide is neither run nor said why not."""
    fenced = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found = [f"indented: {line}" for line in re.findall(r"^ {4}.*$", fenced, re.MULTILINE)]
    found += [f"language: {b.text}" for b in blocks(text) if b.language not in LANGUAGES]
    if text.count("```") != 2 * len(blocks(text)):
        found.append("a block that is not read")
    if text.count("<!--") != sum(block.reason is not None for block in blocks(text)):
        found.append("a comment that marks no block")
    for guide in GUIDES:
        if text == text_of(guide):
            ran = {b for variant in VARIANTS for b in commands_of(*variant)}
            found += [b.text for b in blocks(text, "sh") if not b.reason and b not in ran]
    return found


VARIANTS: Final = [(guide, way) for guide in GUIDES for way in ("Consolidate", "Narrow")]


def commands_of(guide: str, way: str) -> list[Block]:
    """Return what is typed for one way; what belongs to no way is typed with the first."""
    common = way == "Consolidate"
    return [
        block
        for block in blocks(text_of(guide), "sh")
        if block.section == way or (common and block.section != "Narrow")
    ]


@pytest.mark.parametrize("guide", GUIDES)
def test_each_block_is_run_or_says_why_not(guide: str) -> None:
    assert lacking(text_of(guide)) == []
    assert len(blocks(text_of(guide), "sh")) > 5


@pytest.mark.parametrize(
    "added",
    [
        pytest.param("    emupool plan\n", id="an indented block"),
        pytest.param("```\nemupool plan\n```\n", id="a block without a language"),
        pytest.param("```console\nemupool plan\n```\n", id="a block of an unknown language"),
        pytest.param("```sh\nemupool `plan`\n```\n", id="a block that cannot be read"),
        pytest.param("<!-- not run in tests: -->\n```sh\na\n```\n", id="a mark without a reason"),
        pytest.param("<!-- not run in tests: x -->\n\n```sh\na\n```\n", id="a mark above nothing"),
    ],
)
def test_a_block_that_nobody_runs_is_found(added: str) -> None:
    assert lacking(f"{text_of('nova')}\n{added}")


def test_both_guides_are_linked_from_the_readme() -> None:
    readme = (FOLDER.parent / "README.md").read_text()
    assert [guide for guide in GUIDES if f"(docs/{guide}.md)" not in readme] == []


# the configurations


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as started:
        yield started


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hosts.write(MACHINE, tmp_path_factory.mktemp("host") / "root")


CONFIGS: Final = [
    pytest.param(block.text, id=f"{guide}: {block.section}")
    for guide in GUIDES
    for block in blocks(text_of(guide), "toml")
]


@pytest.mark.parametrize("config", CONFIGS)
def test_each_configuration_is_good_for_the_host_of_the_guides(
    config: str, commands: Commands, root: Path, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(config)
    done = commands.run("check-config", file, "--sysfs-root", root)
    assert (done.returncode, done.stderr) == (0, "")


def test_all_configurations_are_found() -> None:
    assert len(CONFIGS) == 6


# the figures, from files


class Desk:
    """A host of files: the guides' machine, with guests that are described."""

    def __init__(self, commands: Commands, root: Path, folder: Path, config: str) -> None:
        self._commands = commands
        self._config = folder / "config.toml"
        self._config.write_text(config)
        self._domains = folder / "domains"
        self._domains.mkdir()
        self._files = ("--sysfs-root", root, "--domains", self._domains, "--config", self._config)
        self._count = 0

    def add(self, *vcpus: int, emulator: str | None = None, **more: Any) -> None:  # noqa: ANN401 - as guest_xml
        """Start a guest whose vCPUs are pinned to these pCPUs."""
        self._count += 1
        pins = {n: str(cpu) for n, cpu in enumerate(vcpus)}
        memory = next(str(cell) for cell, cpus in CELLS.items() if vcpus[0] in cpus)
        xml = guest_xml(
            f"guest-{self._count}",
            vcpus=len(vcpus),
            vcpupins=pins,
            emulatorpin=emulator,
            memnode0=memory,
            **more,
        )
        running = xml.replace("<domain type='qemu'>", f"<domain type='qemu' id='{self._count}'>")
        (self._domains / f"{self._count}.xml").write_text(running)

    def plan(self, *more: object) -> dict[str, Any]:
        done = self._commands.run("plan", "--json", *self._files, *more)
        assert (done.returncode, done.stderr) == (0, "")
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def provider_yaml(self) -> str:
        done = self._commands.run("provider-yaml", *self._files)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.fixture
def desk(commands: Commands, root: Path, tmp_path: Path) -> Callable[[str, str], Desk]:
    return lambda guide, section: Desk(commands, root, tmp_path, config_of(guide, section))


def pools(document: dict[str, Any]) -> list[CpuSet]:
    return [CpuSet.parse(cell["pool"]) for cell in document["cells"]]


def states(document: dict[str, Any]) -> set[str]:
    return {guest["state"] for guest in document["guests"]}


def add_isolated(one: Desk, **more: Any) -> None:  # noqa: ANN401 - as guest_xml
    """Start four guests of two vCPUs in each cell, each with a pCPU for its emulator threads."""
    for cpus in CELLS.values():
        usable = list(cpus - HOST_OWN)
        for first in range(0, 12, 3):
            a, b, emulator = usable[first : first + 3]
            one.add(a, b, emulator=str(emulator), **more)


@pytest.mark.parametrize(
    ("guide", "more"), [("nova", {"nova_policy": "isolate"}), ("libvirt", {})], ids=GUIDES
)
def test_consolidating_eight_guests_leaves_six_pcpus_idle(
    guide: str, more: dict[str, str], desk: Callable[[str, str], Desk]
) -> None:
    one = desk(guide, "Consolidate")
    add_isolated(one, **more)
    document = one.plan()
    aside = {guest["original"] for guest in document["guests"]}
    assert [len(pool) for pool in pools(document)] == [1, 1]
    assert {str(pool) for pool in pools(document)} < aside, "only what was set aside"
    assert (len(aside), states(document)) == (8, {"placed"})
    compared = one.plan("--ratio", "2", "--ratio", "8")["ratios"]
    assert [(row["ratio"], row["cpus_freed"]) for row in compared] == [("2", 4), ("8", 6)]


def dedicated() -> CpuSet:
    (ini,) = (block.text for block in blocks(text_of("nova"), "ini"))
    found = re.search(r"^cpu_dedicated_set = (.+)$", ini, re.MULTILINE)
    assert found
    return CpuSet.parse(found[1])


SHARED: Final = "1,9,17,25"


def test_narrowing_makes_room_for_as_many_guests_as_the_guide_says(
    desk: Callable[[str, str], Desk],
) -> None:
    one = desk("nova", "Narrow")
    rows = re.findall(
        r"^\|[^|]+\| (\d+) \| (\d) \| (\d) \| (\d+) \|$", text_of("nova"), re.MULTILINE
    )
    (isolated, shared) = (tuple(map(int, row)) for row in rows)
    before = [len(cpus - HOST_OWN) for cpus in CELLS.values()]
    after = [len(cpus & dedicated()) for cpus in CELLS.values()]
    assert isolated == (sum(before), 2 + 1, before[0] // 3, sum(size // 3 for size in before))
    assert shared == (sum(after), 2, after[0] // 2, sum(size // 2 for size in after))
    for cpus in CELLS.values():
        usable = list(cpus & dedicated())
        for a, b in zip(usable[::2], usable[1::2], strict=True):
            one.add(a, b, emulator=SHARED, nova_policy="share", iothreads=1)
    document = one.plan()
    assert len(document["guests"]) == shared[-1]
    assert states(document) == {"placed"}
    assert [cell["claimed"] for cell in document["cells"]] == [
        str(cpus & dedicated()) for cpus in CELLS.values()
    ]
    assert [len(pool) for pool in pools(document)] == [1, 1]
    assert all(pool <= CpuSet.parse(SHARED) for pool in pools(document))
    assert document["warnings"] == []


def test_guests_of_before_join_the_pools_of_the_set(desk: Callable[[str, str], Desk]) -> None:
    one = desk("nova", "Narrow")
    one.add(2, 18, emulator="3", nova_policy="isolate")
    one.add(4, 20, emulator=SHARED, nova_policy="share")
    document = one.plan()
    assert {guest["emulator_pcpus"] for guest in document["guests"]} == {"1"}


def test_the_set_of_the_guide_is_out_of_novas_reach_and_beside_no_vcpu() -> None:
    mine = CpuSet.parse(SHARED)
    cores = [pcpu.siblings for pcpu in hosts.host(MACHINE).cpus if pcpu.id in mine]
    assert mine.isdisjoint(dedicated())
    assert all(siblings is not None and siblings <= mine for siblings in cores)
    assert all(mine & cpus for cpus in CELLS.values())


def test_the_inventory_of_the_guide_is_what_is_printed(desk: Callable[[str, str], Desk]) -> None:
    printed = desk("nova", "Narrow").provider_yaml()
    (shown,) = (block.text for block in blocks(text_of("nova"), "yaml"))
    assert fault(shown) is None
    assert printed.endswith(shown)
    assert yaml.safe_load(printed) == yaml.safe_load(shown)
    assert "carry 32 guests" in printed
    assert "set carry 32" in text_of("nova")


def test_on_isolated_pcpus_each_guest_gets_a_single_one(commands: Commands, tmp_path: Path) -> None:
    isolated = replace(MACHINE, isolated=CpuSet.parse(SHARED))
    root = hosts.write(isolated, tmp_path / "root")
    one = Desk(commands, root, tmp_path, config_of("nova", "Narrow"))
    for cpu in range(2, 6):
        one.add(cpu, cpu + 16, emulator=SHARED, nova_policy="share")
    document = one.plan("--ratio", "2")
    assert pools(document)[0] == CpuSet.parse("1,17")
    assert {guest["placement"] for guest in document["guests"]} == {"single"}
    targets = sorted(guest["emulator_pcpus"] for guest in document["guests"])
    assert targets == ["1", "1", "17", "17"]


@pytest.mark.parametrize("number", [0, 1], ids=["free", "set"])
def test_without_pins_of_their_own_eight_guests_leave_six_pcpus(
    commands: Commands, root: Path, tmp_path: Path, number: int
) -> None:
    one = Desk(commands, root, tmp_path, config_of("libvirt", "Narrow", number))
    for cpus in CELLS.values():
        usable = list(cpus - HOST_OWN - CpuSet.parse(SHARED))
        for first in range(0, 8, 2):
            one.add(*usable[first : first + 2], metadata_policy="isolate")
    document = one.plan()
    pooled = sum(map(len, pools(document)))
    claimed = sum(len(CpuSet.parse(cell["claimed"])) for cell in document["cells"])
    assert (claimed, pooled, 24 - claimed - pooled) == (16, 2, 6)
    assert states(document) == {"placed"}
    assert all(pool.isdisjoint(HOST_OWN) for pool in pools(document))


def test_the_definition_in_the_guide_is_a_managed_guest_of_cell_0() -> None:
    (xml,) = (block.text for block in blocks(text_of("libvirt"), "xml"))
    (guest,) = resolved([parse(xml.replace("<domain ", "<domain id='1' "))])
    assert (guest.verdict.policy, guest.verdict.source) == (Policy.ISOLATE, Source.METADATA)
    assert str(guest.domain.claims) == "2,18"
    assert World(hosts.host(MACHINE), (guest,)).plan().guests[0].cell == 0


def test_vms_of_ovirt_are_found_by_name(desk: Callable[[str, str], Desk], tmp_path: Path) -> None:
    one = desk("libvirt", "Beside oVirt")
    one.add(2, 18)
    one.add(3, 19, emulator="2,18")
    for file in (tmp_path / "domains").iterdir():
        file.write_text(file.read_text().replace("guest-1", "nfv-1"))
    document = one.plan()
    assert {guest["name"]: guest["emulator_pcpus"] for guest in document["guests"]} == {
        "nfv-1": "1",
        "guest-2": None,
    }
    (ini,) = (block.text for block in blocks(text_of("libvirt"), "ini"))
    assert f"cpu_affinity = {SHARED}\n" in ini


# the commands, on a real libvirtd


class Operator:
    """Types the commands of a guide; where that needs systemd, what the unit does is done."""

    def __init__(self, place: Place, service: Service, here: dict[str, str]) -> None:
        self._place = place
        self._service = service
        self._here = here

    def type(self, block: Block) -> str:
        """Return what the commands answer."""
        if block.reason is None:
            return self._place.run(as_here(block.text, self._here))
        if block.text == START:
            self._service.start()
        elif block.text == STOP:
            assert self._service.stop() == 0
        return ""

    def read(self, path: str) -> str:
        """Return a file that the commands have made."""
        return self._place.run(f"cat {path}")


@pytest.fixture
def operator(
    libvirtd: Libvirtd, tmp_path: Path
) -> Iterator[Callable[[str, str, dict[str, str]], Operator]]:
    """Return one who has written the configuration of a guide's section."""
    with ExitStack() as stack:

        def make(guide: str, way: str, here: dict[str, str]) -> Operator:
            tables = tomllib.loads(as_here(config_of(guide, way), here))
            listen = {"listen": f"127.0.0.1:{free_port()}"}
            service = Service(libvirtd.uri, tmp_path, http=listen, **tables)
            stack.push(service)
            place = Place(libvirtd.home / "libvirt-sock", tmp_path, service.config)
            return Operator(stack.enter_context(place), service, here)

        yield make


GUESTS: Final = {
    ("nova", "Consolidate"): [
        {"emulatorpin": "0", "nova_policy": "isolate"},
        {"emulatorpin": "1", "nova_policy": "isolate"},
    ],
    ("nova", "Narrow"): [{"emulatorpin": "0-1", "nova_policy": "share"}] * 2,
    ("libvirt", "Consolidate"): [
        {"emulatorpin": "0", "metadata_policy": "isolate"},
        {"emulatorpin": "1"},  # which is told by the guide's own command
    ],
    ("libvirt", "Narrow"): [{"metadata_policy": "isolate"}] * 2,
}


@pytest.mark.parametrize(("guide", "way"), VARIANTS)
def test_the_commands_do_what_the_guide_says(
    guide: str,
    way: str,
    operator: Callable[[str, str, dict[str, str]], Operator],
    make_guest: Callable[..., Guest],
    tmp_path: Path,
) -> None:
    guests = [
        make_guest(f"{guide}-{n}", **keys).define().start()
        for n, keys in enumerate(GUESTS[guide, way])
    ]
    one = operator(guide, way, {**AS_HERE, "DOM": guests[1].name, "/var/tmp": str(tmp_path)})
    pool = frozenset({0 if way == "Consolidate" else 1})
    for block in commands_of(guide, way):
        answer = one.type(block)
        if block.text == START:
            wait_on(pool, *guests)
        if "--remove" in block.text:
            wait_on(frozenset({1}), guests[1])
        if "virsh emulatorpin" in block.text:
            assert re.search(rf"^ +\*: +{min(pool)}$", answer, re.MULTILINE)
    if (guide, way) == ("nova", "Narrow"):
        assert inventory(one.read("/etc/nova/provider_config/emupool.yaml"))["total"] == len(pool)
    if way == "Consolidate":
        assert [guest.masks("emulator") for guest in guests] == [{frozenset({0})}, {frozenset({1})}]
