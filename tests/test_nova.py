"""Nova's guests as Nova writes them: what each means here, and what each source makes of it.

The definitions follow Nova's libvirt driver: with `hw:cpu_policy=dedicated` each vCPU has a pin,
and `emulatorpin` is always written: the vCPUs' own pCPUs where no policy is set (less the real-time
ones), one pCPU of guest cell 0's host cell for `isolate`, `cpu_shared_set` for `share`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import pytest

from agent.domainxml import parse
from agent.policy import Policy, Source
from agent.pool import PoolSource
from tests.builders import host, pool_settings, repinned, resolved
from tests.definitions import NOVA_1_0, domain_xml, nova_xml
from tests.worlds import World, brief, pools, target

if TYPE_CHECKING:
    from agent.snapshot import Guest

HOST: Final = host(cells=2, cores=8, smt=1)
SET: Final = "7,15"
TWO_CELLS: Final = """
  <numatune>
    <memory mode='strict' nodeset='0-1'/>
    <memnode cellid='0' mode='strict' nodeset='1'/>
    <memnode cellid='1' mode='strict' nodeset='0'/>
  </numatune>
"""
REALTIME: Final = "<vcpusched vcpus='1' scheduler='fifo' priority='1'/>"


def cputune(emulator: str, *pins: str, iothread: str | None = None, more: str = "") -> str:
    """Return the pins that Nova writes."""
    vcpus = "".join(f"<vcpupin vcpu='{n}' cpuset='{cpus}'/>" for n, cpus in enumerate(pins))
    thread = f"<iothreadpin iothread='1' cpuset='{iothread}'/>" if iothread else ""
    count = "<iothreads>1</iothreads>" if iothread else ""
    emulatorpin = f"<emulatorpin cpuset='{emulator}'/>"
    return f"{count}<cputune>{emulatorpin}{vcpus}{thread}{more}</cputune>"


ISOLATE: Final = nova_xml("isolate")
SHARE: Final = nova_xml("share")
UNSET: Final = nova_xml()
OLDER: Final = nova_xml(specs=False)  # 1.1 of a Nova before 2025.2
OLDEST: Final = nova_xml(specs=False, namespace=NOVA_1_0)
MISSPELT: Final = nova_xml("isolate", key="hw:emulator_thread_policy")


@dataclass(frozen=True, slots=True)
class Meant:
    """What a definition means; `steps` is where each source sends the guest, None: nowhere."""

    policy: Policy
    source: Source
    original: str | None
    home: int | None = None
    reserved: str | None = None
    set: str | None = None
    free: str | None = None


TABLE: Final = [
    pytest.param(
        UNSET, cputune("4-5", "4", "5"), Meant(Policy.FLOAT, Source.NOVA, "4-5"), id="unset"
    ),
    pytest.param(
        OLDER,
        cputune("4-5", "4", "5"),
        Meant(Policy.FLOAT, Source.SHAPE, "4-5"),
        id="unset, of a Nova that does not write extra specs: told by its shape",
    ),
    pytest.param(
        ISOLATE,
        cputune("6", "4", "5"),
        Meant(Policy.ISOLATE, Source.NOVA, "6", 0, reserved="6", set="7"),
        id="isolate",
    ),
    pytest.param(
        OLDER,
        cputune("6", "4", "5"),
        Meant(Policy.ISOLATE, Source.SHAPE, "6", 0, reserved="6", set="7"),
        id="isolate, 1.1 without extra specs",
    ),
    pytest.param(
        OLDEST,
        cputune("6", "4", "5"),
        Meant(Policy.ISOLATE, Source.SHAPE, "6", 0, reserved="6", set="7"),
        id="isolate, metadata 1.0",
    ),
    pytest.param(
        MISSPELT,
        cputune("4-5", "4", "5"),
        Meant(Policy.FLOAT, Source.NOVA, "4-5"),
        id="extra specs without the key: Nova floats it, a misspelt key or not",
    ),
    pytest.param(
        ISOLATE,
        cputune("6", "4", "5", iothread="6"),
        Meant(Policy.ISOLATE, Source.NOVA, "6", 0, reserved="6", set="7"),
        id="isolate with the iothread of 2026.1",
    ),
    pytest.param(
        ISOLATE,
        cputune("14", "12", "4") + TWO_CELLS,
        Meant(Policy.ISOLATE, Source.NOVA, "14", 1, reserved="14", set="15"),
        id="isolate over two cells: at home in the host cell of guest cell 0",
    ),
    pytest.param(
        SHARE,
        cputune("0-1", "4", "5"),
        Meant(Policy.SHARE, Source.NOVA, "0-1"),
        id="share with a shared set",
    ),
    pytest.param(
        OLDER,
        cputune("0-1", "4", "5"),
        Meant(Policy.SHARE, Source.SHAPE, "0-1"),
        id="share with a shared set, told by its shape",
    ),
    pytest.param(
        SHARE,
        cputune("4-5", "4", "5"),
        Meant(Policy.SHARE, Source.NOVA, "4-5"),
        id="share without a shared set: Nova floats it, and says share",
    ),
    pytest.param(
        UNSET,
        cputune("4", "4", "5", more=REALTIME),
        Meant(Policy.FLOAT, Source.NOVA, "4"),
        id="real-time with a mask: emulator threads on the vCPU that is not real-time",
    ),
    pytest.param(
        ISOLATE,
        cputune("6", "4", "5", more=REALTIME),
        Meant(Policy.ISOLATE, Source.NOVA, "6", 0, reserved="6", set="7"),
        id="real-time and isolate",
    ),
    pytest.param(
        UNSET,
        cputune("0-1,4", "4", "0-1"),
        Meant(Policy.FLOAT, Source.NOVA, "0-1,4"),
        id="mixed: dedicated and shared vCPUs",
    ),
    pytest.param(
        OLDER,
        cputune("0-1,4", "4", "0-1"),
        Meant(Policy.IGNORE, Source.DEFAULT, "0-1,4"),
        id="mixed, told by nobody: its shape is none of ours",
    ),
    pytest.param(
        ISOLATE,
        cputune("6", "4", "0-1"),
        Meant(Policy.ISOLATE, Source.NOVA, "6", 0, reserved="6", set="7"),
        id="mixed and isolate",
    ),
    pytest.param(
        UNSET, "", Meant(Policy.FLOAT, Source.NOVA, None), id="nothing dedicated: no pin at all"
    ),
    pytest.param(
        OLDEST, "", Meant(Policy.IGNORE, Source.DEFAULT, None), id="nothing dedicated, metadata 1.0"
    ),
]


def one_guest(metadata: str, inner: str, *, running: bool = True) -> Guest:
    text = domain_xml(inner, metadata=metadata, running_as=1 if running else None)
    return resolved([parse(text)])[0]


@pytest.mark.parametrize(("metadata", "inner", "meant"), TABLE)
def test_what_nova_wrote_means(metadata: str, inner: str, meant: Meant) -> None:
    one = one_guest(metadata, inner)
    original = one.original.emulator
    assert (one.verdict.policy, one.verdict.source) == (meant.policy, meant.source)
    assert (None if original is None else str(original)) == meant.original
    for source in PoolSource:
        settings = pool_settings(source=source, cpus=SET if source is PoolSource.SET else "")
        decided = World(HOST, (one,), settings).plan()
        expected = meant.reserved if source is PoolSource.AUTO else getattr(meant, source)
        assert target(decided, 1) == expected, source
        assert decided.guests[0].cell == meant.home
        assert {cell.source for cell in decided.cells} == {
            PoolSource.RESERVED if source is PoolSource.AUTO else source
        }


def test_free_pins_nothing_where_nova_hands_out_pcpus_and_says_so() -> None:
    one = one_guest(ISOLATE, cputune("6", "4", "5"))
    decided = World(HOST, (one,), pool_settings(source=PoolSource.FREE)).plan()
    assert [warning.field for warning in decided.warnings] == [
        "pool source of cell 0",
        "pool source of cell 1",
    ]
    assert pools(decided) == {0: "", 1: ""}


def test_the_misspelt_key_is_warned_about() -> None:
    decided = World(HOST, (one_guest(MISSPELT, ""),)).plan()
    assert [(warning.guest, warning.field) for warning in decided.warnings] == [
        ("guest-1", "hw:emulator_thread_policy")
    ]


def test_the_iothread_of_2026_1_follows_its_emulator_threads() -> None:
    one = one_guest(ISOLATE, cputune("6", "4", "5", iothread="6"))
    steps = World(HOST, (one,), pool_settings(source=PoolSource.SET, cpus=SET)).steps()
    assert [(step.kind, str(step.to)) for step in steps] == [("emulator", "7"), ("iothread", "7")]


def nova_guests(*tunes: str, stopped: int = 0) -> tuple[Guest, ...]:
    """Return isolate guests, the one of number `stopped` not running."""
    return resolved(
        parse(domain_xml(tune, number=n, metadata=ISOLATE, running_as=None if n == stopped else n))
        for n, tune in enumerate(tunes, 1)
    )


TUNES: Final = (cputune("3", "1"), cputune("6", "4"), cputune("7", "5"))


def test_a_guest_that_nova_stopped_keeps_its_pcpus_claimed() -> None:
    stopped = World(HOST, nova_guests(*TUNES, stopped=1)).plan()
    assert str(stopped.claimed) == "1,4-5"
    assert str(stopped.cells[0].candidates) == "6-7", "but sets nothing aside"


def test_the_pcpu_of_an_owner_that_stopped_leaves_the_pool_after_the_grace() -> None:
    world = World(HOST, nova_guests(*TUNES)).settle()
    assert pools(world.plan())[0] == "3"
    off = nova_guests(*TUNES, stopped=1)[0]
    world = world.having(off, *world.guests[1:]).settle()
    assert pools(world.later(29.9).plan())[0] == "3"
    left = world.later(30).settle()
    assert pools(left.plan())[0] == "6"
    assert {str(one.domain.emulator) for one in left.guests[1:]} == {"6"}


def test_a_newcomer_pinned_onto_the_pool_evicts_it_in_the_same_cycle() -> None:
    world = World(HOST, nova_guests(*TUNES)).settle()
    newcomer = nova_guests(*TUNES, cputune("0", "3", "2"))[3]
    world = world.having(*world.guests, newcomer)
    decided = world.plan()
    assert pools(decided)[0] == "0"
    assert brief(world.steps(decided)) == [(n, "evacuate", "0") for n in (1, 2, 3)]


def test_a_hard_reboot_resets_the_pin_and_costs_one_repin() -> None:
    world = World(HOST, nova_guests(*TUNES)).settle()
    old = world.find(2)
    fresh = replace(repinned(old, old.original.emulator), start="again", age=9)  # type: ignore[arg-type]
    world = world.changed(fresh)
    assert brief(world.steps()) == [(2, "arrive", "3")]
    assert world.settle().steps() == ()
