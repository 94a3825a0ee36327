"""The provider configuration: valid for Nova, and what Placement then lets in."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import provider
from agent.cpuset import EMPTY, CellId
from agent.errors import Refused
from agent.policy import GuestSettings, Policy, Rule
from agent.pool import PoolSource
from agent.provider import Inventory, Share
from tests import hosts
from tests.builders import TWO, cell_settings, cpus, fleet, guest, host, pool_settings
from tests.commands import Commands
from tests.guests import guest_xml
from tests.providerconfig import capacities, fault, inventory
from tests.worlds import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXAMPLE: Final = """\
meta:
  schema_version: '1.0'
providers:
  - identification:
      uuid: '$COMPUTE_NODE'
    inventories:
      additional:
        - CUSTOM_EMULATOR_THREAD:
            total: 4
            reserved: 0
            min_unit: 1
            max_unit: 1
            step_size: 1
            allocation_ratio: 8.0
"""
"""What is printed for a pool of four pCPUs at ratio 8, without the comments."""

SET: Final = "0-1,8-9"
"""Two pCPUs of each cell of TWO."""


def told(world: World, guests: GuestSettings | None = None) -> Inventory:
    return provider.inventory(
        world.host, world.plan(), world.settings, guests or GuestSettings(manage=world.manage)
    )


def set_of(text: str, **keys: Any) -> World:  # noqa: ANN401 - as `pool_settings`
    return World(TWO, (), pool_settings(source=PoolSource.SET, cpus=text, **keys))


def without_comments(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))


# what Nova takes


def test_the_file_is_as_in_the_example() -> None:
    text = provider.document(told(set_of(SET)))
    assert without_comments(text) == EXAMPLE
    assert fault(text) is None
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param("'1.0'", "1.0", id="a version that is a number"),
        pytest.param("'1.0'", "'2.0'", id="a version that Nova does not know"),
        pytest.param("- CUSTOM_EMULATOR_THREAD", "  CUSTOM_EMULATOR_THREAD", id="no list"),
        pytest.param("CUSTOM_EMULATOR_THREAD", "EMULATOR_THREAD", id="a class that is not custom"),
        pytest.param("CUSTOM_EMULATOR_THREAD", "CUSTOM_emulator", id="a class in small letters"),
        pytest.param("total: 4", "total: '4'", id="a total that is text"),
        pytest.param("total: 4", "total: 0", id="a total that Placement refuses"),
        pytest.param("total: 4", "cores: 4", id="a key that is none"),
        pytest.param("            total: 4\n", "", id="no total"),
        pytest.param("ratio: 8.0", "ratio: 1e-5", id="a ratio that YAML reads as text"),
        pytest.param("'$COMPUTE_NODE'", "'$COMPUTE_HOST'", id="no uuid"),
        pytest.param("uuid: '$COMPUTE_NODE'", "uuid: '$COMPUTE_NODE'\n      name: a", id="two ids"),
        pytest.param("providers:", "providers: - {", id="no YAML"),
        pytest.param(
            "providers:",
            "providers:\n  - identification: {uuid: '$COMPUTE_NODE'}",
            id="a provider that is defined twice",
        ),
    ],
)
def test_the_rules_refuse_what_nova_refuses(right: str, wrong: str) -> None:
    assert fault(EXAMPLE) is None
    assert right in EXAMPLE
    assert fault(EXAMPLE.replace(right, wrong)) is not None


@pytest.mark.parametrize(
    "text", ["rt.*\nproviders: []", "# '", "\u2028\x85\x00", "\U0001f600é", "x" * 999]
)
def test_no_text_of_a_rule_leaves_its_comment(text: str) -> None:
    rules = tuple(Rule(Policy.ISOLATE, Fraction(2), **{key: text}) for key in ("flavor", "name"))
    printed = provider.document(told(set_of(SET), GuestSettings(rules=rules)))
    assert without_comments(printed) == EXAMPLE.replace("max_unit: 1", "max_unit: 2")
    assert printed.isascii()


# what Placement lets in


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    """Draw hosts of some cells, with any ratios that a configuration may have."""
    ratios = st.integers(1, 100_000).map(lambda n: Fraction(n, 100)) | st.decimals(
        "0.01", "1000", places=6
    ).map(Fraction)
    same = draw(ratios)
    shares = [
        Share(CellId(cell), draw(st.integers(0, 8192 // 4)), draw(st.just(same) | ratios))
        for cell in range(draw(st.integers(1, 4)))
    ]
    return Inventory(tuple(shares), EMPTY, EMPTY, (Fraction(1),), ())


@given(inventories())
def test_placement_lets_in_what_the_pools_carry_and_no_more(one: Inventory) -> None:
    carried = sum(floor(share.cpus * share.ratio) for share in one.shares)
    if not carried:
        return
    found = inventory(provider.document(one))
    assert capacities(found) == {carried}
    assert found["total"] == sum(share.cpus for share in one.shares)
    assert isinstance(found["allocation_ratio"], float)
    ratios = {share.ratio for share in one.shares if share.cpus}
    exact = {"total": found["total"], "reserved": 0, "allocation_ratio": float(min(ratios))}
    if len(ratios) == 1 and capacities(exact) == {carried}:
        assert Fraction(str(found["allocation_ratio"])) in ratios


@pytest.mark.parametrize(
    ("shares", "ratio"),
    [
        pytest.param([(2, "8"), (2, "8")], "8.0", id="one ratio for all"),
        pytest.param([(4, "2.5")], "2.5", id="a fraction that comes out even"),
        pytest.param([(4, "0.5")], "0.5", id="below 1: two pCPUs for each guest"),
        pytest.param([(1, "1000")], "1000.0", id="the highest there is"),
        pytest.param([(2, "4"), (2, "8")], "6.0", id="two ratios: what both carry"),
        pytest.param([(2, "4"), (0, "8")], "4.0", id="the ratio of a cell without a pool is none"),
        pytest.param([(1, "2.5"), (1, "2.5")], "2.0", id="no cell carries another's half guest"),
        pytest.param([(10, "2.1")], "2.15", id="single precision would lose a guest"),
        pytest.param([(3, "8"), (3, "8"), (1, "7")], "7.85714286", id="nine digits are enough"),
    ],
)
def test_the_ratio_that_is_printed(shares: list[tuple[int, str]], ratio: str) -> None:
    made = tuple(Share(CellId(n), size, Fraction(r)) for n, (size, r) in enumerate(shares))
    one = Inventory(made, EMPTY, EMPTY, (Fraction(1),), ())
    text = provider.document(one)
    assert f"allocation_ratio: {ratio}\n" in text
    plain = {f"{float(Fraction(r))}" for size, r in shares if size}
    assert ("The ratio is" in text) == (ratio not in plain)


# where it comes from

CELL_1: Final = {1: cell_settings(source=PoolSource.SET, cpus="8-9", max_cpus=1, ratio=4)}


@pytest.mark.parametrize(
    ("world", "total", "warned"),
    [
        pytest.param(set_of(SET), 4, [], id="all of a set, though no pool has any of it yet"),
        pytest.param(set_of(SET, max_cpus=1), 2, [], id="as far as max_cpus lets pools grow"),
        pytest.param(
            World(TWO, (), pool_settings(source=PoolSource.FREE, cpus=SET)),
            4,
            [],
            id="free, of a set that is named",
        ),
        pytest.param(
            World(TWO, fleet(9, policy=Policy.SHARE, memnode=[0]), set_of(SET).settings),
            4,
            [],
            id="whatever the guests are now",
        ),
        pytest.param(
            set_of("0-1"), 2, ["cell 1 has no pCPU"], id="a cell without a pool is told of"
        ),
        pytest.param(
            World(TWO, (), pool_settings(CELL_1, source=PoolSource.SET, cpus=SET)),
            3,
            ["ratios 4, 8"],
            id="a cell that differs",
        ),
        pytest.param(
            World(TWO, (guest(1, pins=["8"]),), set_of(SET).settings),
            3,
            ["pool.cpus: 8 not counted"],
            id="less what a vCPU claims",
        ),
        pytest.param(
            World(host(cells=2, cores=4, offline="1"), (), set_of(SET).settings),
            3,
            ["pool.cpus: 1 not counted"],
            id="less what is off line",
        ),
        pytest.param(
            World(TWO, (), set_of(SET).settings, partition=cpus("0-8")),
            3,
            ["pool.cpus: 9 not counted"],
            id="less what libvirt's partition lacks",
        ),
    ],
)
def test_the_total_is_what_the_pools_can_come_to(
    world: World, total: int, warned: list[str]
) -> None:
    one = told(world)
    assert inventory(provider.document(one))["total"] == total
    found = list(provider.warnings(one))
    assert len(found) == len(warned)
    assert all(line.startswith(start) for line, start in zip(found, warned, strict=True)), found


@pytest.mark.parametrize(
    ("world", "says"),
    [
        pytest.param(World(TWO), "auto, which beside Nova's guests is reserved", id="auto"),
        pytest.param(World(TWO, (), pool_settings(cpus="0-1")), "is auto", id="auto, though named"),
        pytest.param(
            World(TWO, (), pool_settings(source=PoolSource.RESERVED)),
            "comes and goes",
            id="reserved: there is no number that stays",
        ),
        pytest.param(
            World(TWO, (), pool_settings(source=PoolSource.FREE)), "changes with each", id="free"
        ),
        pytest.param(set_of(""), "names no pCPU", id="a set of nothing"),
        pytest.param(set_of("16-17"), "no pool can have a pCPU", id="a set that is not there"),
        pytest.param(
            World(host(cells=0), (), set_of(SET).settings), "no pool can", id="no cells at all"
        ),
        pytest.param(
            set_of("0,8", ratio="0.5"), "no whole guest", id="half a guest in each of two cells"
        ),
    ],
)
def test_what_placement_cannot_be_told_is_refused_with_what_would_be_right(
    world: World, says: str
) -> None:
    with pytest.raises(Refused, match=says) as refused:
        told(world)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("weights", "max_unit", "warned"),
    [
        pytest.param([], 1, [], id="nobody yet"),
        pytest.param([1, 3], 3, [], id="the heaviest guest"),
        pytest.param(["0.5"], 1, ["weights 1/2: "], id="a light one is rounded up, and told of"),
        pytest.param(["2.5", 1], 3, ["weights 5/2: "], id="a broken one is rounded up, likewise"),
    ],
)
def test_max_unit_is_what_the_heaviest_guest_asks_for(
    weights: list[str | int], max_unit: int, warned: list[str]
) -> None:
    guests = tuple(guest(n, weight=Fraction(w)) for n, w in enumerate(weights, 1))
    one = told(World(TWO, guests, set_of(SET).settings))
    assert inventory(provider.document(one))["max_unit"] == max_unit
    assert [
        line[: len(start)] for line, start in zip(provider.warnings(one), warned, strict=True)
    ] == warned


def test_a_guest_that_is_not_managed_weighs_nothing() -> None:
    guests = (guest(1, policy=Policy.FLOAT, weight=9),)
    one = told(World(TWO, guests, set_of(SET).settings))
    assert one.max_unit == 1


def test_the_flavors_of_rules_are_told_what_to_ask_for() -> None:
    rules = (
        Rule(None, Fraction(2), flavor="rt.*"),
        Rule(Policy.SHARE, Fraction(5, 2), name="big-*", flavor="m1.*"),
        Rule(Policy.IGNORE, Fraction(9), name="mute-*"),  # who is not managed asks for nothing
        Rule(Policy.ISOLATE, None, name="plain-*"),
        Rule(None, Fraction(1), name="one-*"),
    )
    manage = frozenset({Policy.SHARE, Policy.ISOLATE})
    one = told(set_of(SET), GuestSettings(manage=manage, rules=rules))
    assert one.max_unit == 3
    text = provider.document(one)
    assert [line for line in text.splitlines() if "resources:" in line] == [
        "#   openstack flavor set FLAVOR --property resources:CUSTOM_EMULATOR_THREAD=1",
        "#   resources:CUSTOM_EMULATOR_THREAD=2 for flavor 'rt.*' (weight 2)",
        "#   resources:CUSTOM_EMULATOR_THREAD=3 for flavor 'm1.*', name 'big-*' (weight",
    ]
    assert "guests' weight" in text
    assert "Placement knows the sum only" in text


# on the command line


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as started:
        yield started


def test_the_command_prints_a_file_from_files(commands: Commands, tmp_path: Path) -> None:
    root, domains, config = (tmp_path / name for name in ("root", "domains", "config.toml"))
    hosts.write(hosts.TWO_SOCKET_SMT, root)
    domains.mkdir()
    (domains / "1.xml").write_text(guest_xml("a", vcpupins={0: "1"}, nova_policy="share"))
    config.write_text('[pool]\nsource = "set"\ncpus = "1,9,17,25"\nemulator_overcommit_ratio = 4\n')
    files = ("--config", config, "--sysfs-root", root, "--domains", domains)
    done = commands.run("provider-yaml", *files)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith("emupool: warning: pool.cpus: 1 not counted: off line, claimed")
    found = inventory(done.stdout)
    assert (found["total"], found["allocation_ratio"]) == (3, 4)
    config.write_text("")
    refused = commands.run("provider-yaml", *files)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    alone = commands.run("provider-yaml", "--sysfs-root", root)
    assert (alone.returncode, alone.stdout, alone.stderr.count("\n")) == (2, "", 1)
