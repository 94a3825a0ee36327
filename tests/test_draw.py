"""The pictures of the command line: what they say, that they fit, that no name can spoil them."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from agent import draw, picture, planner, report, topology, transition, words
from agent.candidates import Warned
from agent.cpuset import CpuSet
from agent.documents import from_documents
from agent.picture import Use
from agent.policy import GuestSettings
from agent.pool import NOTHING, PoolSettings
from tests.documents import cell, guest, pipe, plan, screen, status, step
from tests.guests import guest_xml
from tests.hosts import (
    EPYC_NPS4,
    MACHINES,
    POWER_SMT_OFF,
    TWO_CELLS_EIGHT_CPUS,
    XEON_SNC,
    Machine,
    host,
    machines,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.documents import Json, Output

LARGE: Final = Machine(packages=2, cores=32, threads=2, numbering="interleaved")
HOSTILE: Final = "\x1b[2J[bold red]x[/]\u202egnp\n\u2066\x9b1m\ud800[link=http://a]"
FRAME: Final = "╭╮╰╯├┤┬┴┼─│"


def topology_of(machine: Machine) -> Json:
    return topology.to_json(host(machine))


def spoiled() -> Json:
    """Return a status in which each text of a tenant is hostile."""
    return status(
        plan(
            guest(0, name=HOSTILE, state="collision", reason=HOSTILE),
            guest(1, name=HOSTILE * 50, managed=False, state=None, cell=None),
            cells=(cell(pool="2", pool_now="2", candidates="2-3", claimed="0"),),
            steps=[step(0, "evacuate", "0", "2"), step(1, "arrive", None, "2", iothread=3)],
            warnings=[{"guest": HOSTILE, "field": HOSTILE, "text": HOSTILE * 50}],
        )
    )


# topology


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("width", [80, 100, 160])
def test_every_pcpu_is_on_a_terminal_that_is_not_overrun(machine: Machine, width: int) -> None:
    output = screen(width)
    machine = replace(machine, memory_bytes=None)  # "64.0 GiB" has a dot, as a pCPU has
    draw.topology(output.console, topology_of(machine))
    assert max(map(cell_len, output.lines)) <= width
    assert output.text.count(".") == len(host(machine).online) + 1  # the legend


@settings(max_examples=30)
@given(machines(most=3))
def test_a_pipe_gets_plain_text_whatever_the_host(machine: Machine) -> None:
    output = pipe()
    draw.topology(output.console, topology_of(machine))
    assert not set(output.raw) & {*FRAME, "\x1b"}
    assert all(line == line.rstrip() for line in output.lines)


def test_two_sockets_of_32_cores_with_smt_fit_a_small_terminal() -> None:
    output = screen()
    draw.topology(output.console, topology_of(LARGE))
    assert len(output.lines) <= 16
    assert "  0 .. .. .. .. .. .. .. .." in output.text


def test_small_cells_spell_their_pcpus_and_cores() -> None:
    output = pipe()
    draw.topology(output.console, topology_of(TWO_CELLS_EIGHT_CPUS))
    assert "[0. 1.] [2. 3.]" in output.lines


def test_distances_are_told_from_the_nearest_on() -> None:
    output = pipe()
    draw.topology(output.console, topology_of(EPYC_NPS4))
    assert "distance 12 to 0-1,3, 32 to 4-7" in output.lines


def test_a_cell_alone_has_no_distances() -> None:
    output = pipe()
    draw.topology(output.console, topology_of(Machine()))
    assert "distance" not in output.text


def test_an_l3_that_is_wider_than_its_cell_is_told() -> None:
    output = pipe()
    draw.topology(output.console, topology_of(XEON_SNC))
    shared = [line for line in output.lines if line.startswith("L3")]
    assert shared == [f"L3       shared with cell {other}" for other in (1, 0, 3, 2)]


def test_of_long_sets_the_start_is_written_and_the_rest_drawn() -> None:
    output = pipe()
    draw.topology(output.console, topology_of(POWER_SMT_OFF))
    ids = ", ".join(str(cpu) for cpu in range(0, 137, 8))
    assert f"pCPUs    32: {ids} and more" in output.lines


def test_pcpus_whose_package_is_not_told_come_last() -> None:
    machine = Machine(cores=4, dies=2, offline=CpuSet.of(1))
    output = pipe()
    draw.topology(output.console, topology_of(machine))
    titles = [line for line in output.lines if line.startswith("package ") and "  " not in line]
    assert titles == ["package 0, die 0", "package 0, die 1", "package not told"]


def test_an_l3_to_each_core_makes_no_rows_and_what_is_offline_comes_last() -> None:
    output = pipe()
    draw.topology(output.console, topology_of(Machine(cores=4, l3_cores=1, offline=CpuSet.of(1))))
    assert output.lines[-4:-2] == ["[0.] [2.] [3.]", "[1x]"]


def test_each_l3_begins_a_row() -> None:
    output = pipe()
    draw.topology(output.console, topology_of(EPYC_NPS4))
    assert sum(line.startswith("L3 ") for line in output.lines) == 16


def test_offline_and_isolated_pcpus_are_seen_without_colour() -> None:
    offline, isolated = CpuSet.parse("3"), CpuSet.parse("6-7")
    machine = Machine(packages=2, threads=2, offline=offline, isolated=isolated)
    output = pipe()
    draw.topology(output.console, topology_of(machine))
    assert {"offline  3", "isolated 6-7", "[4. 5.] [6i 7i]"} <= set(output.lines)
    assert "3x" in output.text
    assert "x offline" in output.text


def test_a_cell_that_is_wholly_offline_is_not_forgotten() -> None:
    machine = Machine(packages=2, threads=2, offline=CpuSet.parse("4-7"))
    output = pipe()
    draw.topology(output.console, topology_of(machine))
    assert "in no cell that has pCPUs online: 4-7" in output.lines


# plans


def test_each_use_has_a_letter_of_its_own() -> None:
    row = cell(pool="1-2", pool_now="2-4", candidates="1-2,5", claimed="3,6-7", realtime="7")
    found = picture.of_plan(plan(cells=(row,)), topology_of(Machine(cores=8))).cells[0]
    uses = {cpu: use.name for cpu, use in found.uses.items()}
    assert uses == {
        0: "ONLINE",
        1: "JOINS",
        2: "POOL",
        3: "TAKEN",
        4: "LEAVES",
        5: "CANDIDATE",
        6: "CLAIMED",
        7: "REALTIME",
    }
    assert len({use.value for use in Use}) == len(Use)


def test_what_the_host_says_of_a_pcpu_shows_where_the_plan_has_no_use_for_it() -> None:
    machine = Machine(cores=4, offline=CpuSet.of(3), isolated=CpuSet.of(1, 2))
    row = cell(pool="1", pool_now="1,3", candidates="1")
    found = picture.of_plan(plan(cells=(row,)), topology_of(machine)).cells[0]
    assert "".join(use.value for use in found.uses.values()) == ".Pix"


def test_a_plan_says_per_cell_what_is_needed_what_is_there_and_what_moves() -> None:
    row = cell(
        guests=3,
        weight="7/2",
        ratio="2",
        need=2,
        pool="2-3",
        pool_now="2",
        candidates="1-3",
        claimed="0",
        shortage=1,
    )
    output = pipe()
    document = plan(guest(0), cells=(row,), steps=[step(0, "widen", "2", "2-3")])
    draw.plan(output.console, document, topology_of(Machine(threads=2)))
    assert {
        "need     2 for 3 guests of weight 7/2 at ratio 2",
        "pool     2-3, was 2",
        "short of 1 pCPU",
        "room     1 more: 1",
        "claimed  0",
        "[0C 1o] [2P 3+]",
    } <= set(output.lines)
    assert re.search(r"^widen +the pool grows +2 +2-3 +vm-0$", output.text, re.MULTILINE)


def test_guests_that_move_alike_share_a_line() -> None:
    steps = [step(number, "evacuate", "0", "2") for number in range(9)]
    document = plan(*map(guest, range(9)), steps=steps)
    output = screen(160)
    draw.plan(output.console, document)
    assert "vm-0, vm-1, vm-2, vm-3 and 5 more" in output.text


def test_guests_that_leave_pins_of_their_own_for_one_pool_share_a_line() -> None:
    steps = [
        step(0, "arrive", "4", "2"),
        step(1, "arrive", "5-6", "2"),
        step(2, "arrive", None, "2"),
    ]
    output = pipe()
    draw.plan(output.console, plan(*map(guest, range(3)), steps=steps))
    rows = [line.split(maxsplit=5) for line in output.lines if line.startswith("arrive")]
    assert [row[-1] for row in rows] == ["within 4-6  2   vm-0, vm-1", "unpinned    2   vm-2"]


def test_a_table_folds_on_a_terminal_and_is_whole_in_a_pipe() -> None:
    document = plan(*(guest(number, name=f"guest{number:03}") for number in range(100)))
    on_screen, piped = screen(), pipe()
    draw.plan(on_screen.console, document)
    draw.plan(piped.console, document)
    assert "... and 92 more; --json has all" in on_screen.text
    assert all(f"guest{number:03}" in piped.text for number in range(100))


def test_what_needs_the_operator_comes_first_and_what_is_left_alone_last() -> None:
    states = {"a": "placed", "b": "collision", "c": None, "d": "remote", "e": "left"}
    guests = (guest(n, name=k, state=v, managed=bool(v)) for n, (k, v) in enumerate(states.items()))
    output = pipe()
    draw.plan(output.console, plan(*guests))
    rows = re.findall(r"^([a-e]) .*  (\w+(?: \w+)?)$", output.text, re.MULTILINE)
    assert [row[0] for row in rows] == ["b", "e", "d", "a", "c"]


def test_a_guest_that_is_not_simply_placed_says_why() -> None:
    output = pipe()
    document = plan(guest(0, state="left", reason="left where it is: the pool is full"))
    draw.plan(output.console, document)
    assert "! vm-0: left where it is: the pool is full" in output.lines


def test_a_host_without_cells_is_no_error() -> None:
    output = screen()
    draw.plan(output.console, plan(), {"schema": 1, "cells": [], "cpus": []})
    assert "no NUMA cell of this host has pCPUs online" in output.text
    assert "Nothing to move." in output.text


def test_the_planners_own_answer_is_drawn() -> None:
    here = host(TWO_CELLS_EIGHT_CPUS)
    documents = {
        "a": guest_xml("nfv", vcpupins={0: "4"}, memnode0="1", metadata_policy="isolate"),
        "b": guest_xml("web", vcpupins={0: "0"}, memnode0="0", metadata_policy="isolate"),
    }
    running = {
        name: text.replace("<domain ", f"<domain id='{number}' ", 1)
        for number, (name, text) in enumerate(documents.items(), 1)
    }
    guests, failures = from_documents(running, GuestSettings(), NOTHING)
    question = planner.Question(
        here, PoolSettings(), GuestSettings().manage, guests, NOTHING, now=0.0
    )
    decided = planner.plan(question)
    steps = transition.diff(decided, guests, transition.Present(here.online, {}))
    output = pipe()
    draw.plan(output.console, report.plan(decided, steps), topology.to_json(here))
    assert not failures
    assert {"[0C 1o] [2+ 3o]", "[4C 5o] [6+ 7o]"} <= set(output.lines)
    assert len(re.findall(r"^arrive ", output.text, re.MULTILINE)) == 2


# status


def test_a_status_shows_what_libvirt_and_the_kernel_say() -> None:
    output = pipe()
    document = status(plan(guest(0, live="2-3", kernel=None, verified=False, stuck=4)))
    draw.status(output.console, document)
    assert output.lines[0] == "emupool 1.2, qemu:///system connected"
    assert re.match(r"last cycle: 19\S+ \S+ \S+, start, 4 ms, 2 steps, 0 errors$", output.lines[1])
    assert re.search(r"^vm-0 +0 +2 +2-3 +- +no, 4 stuck +placed$", output.text, re.MULTILINE)


def test_a_daemon_that_cannot_act_says_so_first() -> None:
    output = pipe()
    libvirt = {"uri": "qemu:///system", "connected": False}
    draw.status(output.console, status(plan(), dry_run=True, libvirt=libvirt, last_cycle=None))
    assert output.lines[:2] == [
        "emupool 1.2, qemu:///system NOT CONNECTED, dry run: nothing is pinned",
        "no cycle yet",
    ]


def test_without_a_host_the_pcpus_of_a_plan_stand_where_they_would() -> None:
    row = cell(pool="0", pool_now="0", candidates="0-1,5", claimed="16-31")
    output = pipe()
    draw.status(output.console, status(plan(cells=(row,))))
    assert {" 0 P o       o", f"16 {'C ' * 16}".rstrip()} <= set(output.lines)


def test_a_status_that_brings_its_host_shows_its_cores() -> None:
    document = status(plan(cells=(cell(pool="0", pool_now="0", candidates="0"),)))
    document["topology"] = topology_of(Machine(threads=2))
    output = pipe()
    draw.status(output.console, document)
    assert "[0P 1.] [2. 3.]" in output.lines


# names


@pytest.mark.parametrize("make", [screen, pipe])
def test_no_name_can_drive_the_terminal_or_speak_markup(make: Callable[[], Output]) -> None:
    output = make()
    draw.plan(output.console, spoiled())
    draw.status(output.console, spoiled())
    rows = [{"uuid": "u", "name": HOSTILE, "cell": 0, **dict.fromkeys(KINDS, "1")}]
    draw.account(output.console, {"guests": rows, "cells": []})
    controls = {char for char in output.text if unicodedata.category(char) in {"Cc", "Cf", "Cs"}}
    assert controls == {"\n"}
    assert "[bold red]x[/]" in output.text
    assert max(map(cell_len, output.lines)) <= (80 if make is screen else 120)


@given(st.text(max_size=80))
def test_any_name_becomes_one_harmless_line(text: str) -> None:
    made = words.plain(text)
    assert len(made) <= words.NAME
    assert all(char.isprintable() or unicodedata.category(char) == "Zs" for char in made)
    assert len(made.splitlines()) <= 1


def test_letters_that_the_output_lacks_end_nothing() -> None:
    output = pipe("ascii")
    draw.plan(output.console, plan(guest(0, name="gr\u00f6\u00dfe")))
    assert "gr??e" in output.text


def test_wide_letters_take_their_room() -> None:
    output = screen()
    draw.plan(output.console, plan(guest(0, name="\u65e5\u672c\u8a9e" * 12)))
    assert max(map(cell_len, output.lines)) <= 80


# account

KINDS: Final = ("dedicated", "shared", "emulator", "total")


def test_an_account_has_three_decimals_and_the_cells_sums() -> None:
    bill = dict(zip(KINDS, ("4", "1/16", "1/8", "67/16"), strict=True))
    document = {
        "schema": 1,
        "guests": [{"uuid": "u", "name": "vm", "cell": 0, **bill}],
        "cells": [{"id": 0, **bill}],
    }
    output = pipe()
    draw.account(output.console, document)
    assert [line.split() for line in output.lines] == [
        ["guest", "cell", *KINDS],
        ["vm", "0", "4.000", "0.063", "0.125", "4.188"],
        ["all", "0", "4.000", "0.063", "0.125", "4.188"],
    ]


def test_bills_of_no_cell_and_of_two_guests_of_one_name_are_listed() -> None:
    rows = [
        {"uuid": uuid, "name": "vm", "cell": number, **dict.fromkeys(KINDS, "1")}
        for uuid, number in (("b", None), ("a", 1), ("b", 0))
    ]
    output = pipe()
    draw.account(output.console, {"guests": rows, "cells": []})
    assert [line.split()[1] for line in output.lines] == ["cell", "1", "-", "0"]


@given(st.fractions(min_value=0, max_value=10**6))
def test_decimals_are_the_nearest(value: Fraction) -> None:
    text = words.decimal(str(value))
    assert re.fullmatch(r"[0-9]+\.[0-9]{3}", text)
    assert abs(Fraction(text) - value) <= Fraction(1, 2000)


def test_warnings_of_the_core_are_drawn() -> None:
    warned = [report.warning(Warned("vm", "metadata cell", "9 is not a NUMA cell"))]
    output = pipe()
    draw.plan(output.console, plan(warnings=warned))
    assert "! vm: metadata cell: 9 is not a NUMA cell" in output.lines
