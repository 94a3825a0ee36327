"""Plans as JSON: names and forms that others rely on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from agent import accounting, report
from agent.accounting import BillingSettings
from agent.cpuset import CpuSet
from agent.domainxml import Flaw
from tests.anyworld import worlds
from tests.builders import EIGHT, flawed, guest, pool_settings
from tests.schemas import validated
from tests.worlds import World


def document(world: World) -> report.Json:
    decided = world.plan()
    made: report.Json = validated("plan", report.plan(decided, world.steps(decided)))
    return made


def test_a_plan() -> None:
    crowd = (
        flawed(guest(1, emulator="6", iothreads=["6"], weight=2), Flaw("weight", "too heavy")),
        guest(2, running=False, pins=("3",)),
    )
    told = json.loads(json.dumps(document(World(EIGHT, crowd, pool_settings(ratio="2.5")))))
    assert told == {
        "schema": 1,
        "cells": [
            {
                "id": 0,
                "guests": 1,
                "weight": "2",
                "ratio": "5/2",
                "need": 1,
                "pool": "0",
                "pool_now": "",
                "candidates": "0-2,4-7",
                "claimed": "3",
                "realtime": "",
                "reserved": "",
                "shortage": 0,
            }
        ],
        "guests": [
            {
                "uuid": "00000000-0000-4000-8000-000000000001",
                "name": "guest-1",
                "policy": "isolate",
                "source": "rule",
                "managed": True,
                "weight": "2",
                "cell": 0,
                "original": "6",
                "emulator_pcpus": "0",
                "placement": "shared",
                "state": "placed",
                "reason": "1 guest of weight 2 on 0 at ratio 5/2 in cell 0",
            },
            {
                "uuid": "00000000-0000-4000-8000-000000000002",
                "name": "guest-2",
                "policy": "isolate",
                "source": "rule",
                "managed": False,
                "weight": "1",
                "cell": None,
                "original": None,
                "emulator_pcpus": None,
                "placement": None,
                "state": None,
                "reason": "left alone: it does not run",
            },
        ],
        "steps": [
            {
                "uuid": "00000000-0000-4000-8000-000000000001",
                "kind": "emulator",
                "iothread": None,
                "from": "6",
                "to": "0",
                "reason": "arrive",
            },
            {
                "uuid": "00000000-0000-4000-8000-000000000001",
                "kind": "iothread",
                "iothread": 1,
                "from": "6",
                "to": "0",
                "reason": "arrive",
            },
        ],
        "warnings": [{"guest": "guest-1", "field": "weight", "text": "too heavy"}],
    }


@pytest.mark.parametrize(
    ("cpus", "text"),
    [
        pytest.param(None, None, id="no pin is null"),
        pytest.param(CpuSet(), "", id="nobody is an empty text"),
        pytest.param(CpuSet.of(0, 1, 5), "0-1,5", id="the kernel's notation"),
    ],
)
def test_cpus(cpus: CpuSet | None, text: str | None) -> None:
    assert report.cpus(cpus) == text


@given(worlds())
def test_whatever_is_planned_can_be_told(world: World) -> None:
    told = document(world)
    assert json.loads(json.dumps(told)) == told
    assert len(told["guests"]) == len(world.guests)
    assert len(told["cells"]) == len(world.host.cells)
    decided = world.plan()
    bills = accounting.account(world.host, BillingSettings(), decided, world.guests)
    validated("account", report.account(bills, decided))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        pytest.param("web", "web", id="a name"),
        pytest.param("", "00000000-0000-4000-8000-000000000001", id="none: the UUID"),
        pytest.param("a\nb\x85\u202e", "a\\nb\\x85\\u202e", id="what would break a line is shown"),
        pytest.param("Büro", "Büro", id="letters of any script"),
        pytest.param("x" * 999, "x" * 255, id="without end"),
    ],
)
def test_a_warning_names_the_guest_in_one_line(name: str, label: str) -> None:
    one = flawed(guest(1, name=name), Flaw("weight", "too heavy"))
    assert document(World(EIGHT, (one,)))["warnings"][0]["guest"] == label
