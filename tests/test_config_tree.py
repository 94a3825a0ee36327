"""The tree of settings: its defaults, the example file, reloads, and the host."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from agent.config import Change, Config, changes, check_host, effective, keys, parse, to_json
from agent.cpuset import CpuSet
from agent.policy import GuestSettings, Rule
from agent.pool import CellSettings, PoolSettings
from tests.exampleconfig import EXAMPLE, NESTED, SAID
from tests.hosts import TWO_CELLS_EIGHT_CPUS, host

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULTS: Final = {
    "libvirt": {
        "uri": "qemu:///system",
        "keepalive_interval": 5,
        "keepalive_count": 3,
        "reconnect": "always",
        "pin_workers": 3,
    },
    "pool": {
        "emulator_overcommit_ratio": "8",
        "source": "auto",
        "cpus": "",
        "reserved_cpus": "",
        "placement": "auto",
        "smt": "prefer",
        "on_shortage": "overcommit",
        "min_cpus": 1,
        "max_cpus": 0,
        "shrink_delay": 30.0,
        "count_inactive": True,
        "iothreads": True,
        "on_stop": "leave",
        "cell": {},
    },
    "guests": {"manage": ["isolate"], "infer": True, "default_policy": "ignore", "rule": []},
    "billing": {"cpu_overcommit_ratio": "16"},
    "reconcile": {"interval": 30.0, "dry_run": False},
    "http": {
        "listen": "127.0.0.1:9857",
        "status_page": True,
        "tls_cert": None,
        "tls_key": None,
        "client_ca": None,
    },
    "state": {"path": "/run/emupool/state.json"},
    "admission": {
        "enabled": False,
        "socket": "/run/emupool/admission.sock",
        "fail": "open",
        "reservation": 60.0,
    },
    "log": {"level": "info", "format": "auto"},
}

# What a file says before a reload, and for each key another value: in TOML, and as JSON.
BEFORE: Final = {
    "pool.cpus": '"2-5"',
    "guests.rule": '[{name = "a", weight = 1}]',
    "http.tls_cert": '"/c"',
    "http.tls_key": '"/k"',
    "http.client_ca": '"/a"',
}
AFTER: Final[Mapping[str, tuple[str, object]]] = {
    "libvirt.uri": ('"test:///default"', "test:///default"),
    "libvirt.keepalive_interval": ("6", 6),
    "libvirt.keepalive_count": ("4", 4),
    "libvirt.reconnect": ('"wait-for-socket"', "wait-for-socket"),
    "libvirt.pin_workers": ("4", 4),
    "pool.emulator_overcommit_ratio": ("2.5", "5/2"),
    "pool.source": ('"set"', "set"),
    "pool.cpus": ('"0-7,^5"', "0-4,6-7"),
    "pool.reserved_cpus": ('"8"', "8"),
    "pool.placement": ('"single"', "single"),
    "pool.smt": ('"any"', "any"),
    "pool.on_shortage": ('"spill"', "spill"),
    "pool.min_cpus": ("2", 2),
    "pool.max_cpus": ("3", 3),
    "pool.shrink_delay": ("0", 0.0),
    "pool.count_inactive": ("false", False),
    "pool.iothreads": ("false", False),
    "pool.on_stop": ('"release"', "release"),
    "guests.manage": ('["share", "isolate", "float"]', "float,isolate,share"),
    "guests.infer": ("false", False),
    "guests.default_policy": ('"float"', "float"),
    "billing.cpu_overcommit_ratio": ("4", "4"),
    "reconcile.interval": ("5.5", 5.5),
    "reconcile.dry_run": ("true", True),
    "http.listen": ('""', ""),
    "http.status_page": ("false", False),
    "http.tls_cert": ('"/c2"', "/c2"),
    "http.tls_key": ('"/k2"', "/k2"),
    "http.client_ca": ('""', None),
    "state.path": ('"/run/s.json"', "/run/s.json"),
    "admission.enabled": ("true", True),
    "admission.socket": ('"/run/a"', "/run/a"),
    "admission.fail": ('"closed"', "closed"),
    "admission.reservation": ("5", 5.0),
    "log.level": ('"debug"', "debug"),
    "log.format": ('"json"', "json"),
}
NEED_RESTART: Final = {
    "libvirt.uri",
    "http.listen",
    "http.status_page",
    "http.tls_cert",
    "http.tls_key",
    "http.client_ca",
    "state.path",
}


def config_of(values: Mapping[str, str]) -> Config:
    return parse("\n".join(f"{key} = {value}" for key, value in values.items()), "x")


def plain_keys() -> set[str]:
    """Return the keys of the tree but those of cells and rules."""
    found = {f"{table}.{key}" for table, content in to_json(Config()).items() for key in content}
    return found - {"pool.cell", "guests.rule"}


def test_an_empty_file_gives_the_defaults_of_the_design() -> None:
    assert to_json(parse("", "x")) == DEFAULTS
    assert parse("", "x") == Config()


def test_the_readers_and_the_fields_of_the_settings_have_the_same_names() -> None:
    tables: list[tuple[Any, Iterable[str]]] = [
        *keys.FLAT.values(),
        (CellSettings, keys.CELL),
        (PoolSettings, [*keys.POOL, "default", "cells"]),
        (GuestSettings, [*keys.GUESTS, "manage", "rules"]),
        (Rule, keys.RULE),
    ]
    for made, readers in tables:
        assert {field.name for field in fields(made)} == set(readers)


def test_the_example_file_is_the_defaults_with_and_without_its_comment_signs() -> None:
    assert parse(EXAMPLE, "example") == Config()
    assert parse(SAID, "example") == Config()
    tree = tomllib.loads(SAID)
    assert {f"{table}.{key}" for table, content in tree.items() for key in content} == plain_keys()
    assert list(tree) == list(to_json(Config()))


def test_the_examples_of_a_cell_and_of_rules_are_valid_and_show_every_key() -> None:
    parse(NESTED, "example")
    tree = tomllib.loads(NESTED)
    assert set(tree["pool"]["cell"]["0"]) == set(keys.CELL)
    assert {key for rule in tree["guests"]["rule"] for key in rule} == set(keys.RULE)


def test_the_example_file_marks_what_needs_a_restart() -> None:
    marked = set()
    for body in re.split(r"^\[", EXAMPLE, flags=re.MULTILINE)[1:]:
        for block in (block for block in body.split("\n\n") if "RESTART" in block):
            named = re.findall(r"^#([a-z_]+) = ", block, flags=re.MULTILINE)
            marked |= {f"{body.split(']')[0]}.{key}" for key in named}
    assert marked == NEED_RESTART


def test_json_is_json_and_has_cells_and_rules() -> None:
    text = (
        '[pool]\ncpus = "2-3,4"\nemulator_overcommit_ratio = "2.5"\n[pool.cell.1]\nmin_cpus = 2\n'
        '[[guests.rule]]\nname = "a*"\nweight = 0.5'
    )
    tree = json.loads(json.dumps(to_json(parse(text, "x"))))
    assert tree["pool"]["cell"] == {
        "1": {key: tree["pool"][key] for key in keys.CELL} | {"min_cpus": 2}
    }
    assert (tree["pool"]["cpus"], tree["pool"]["emulator_overcommit_ratio"]) == ("2-4", "5/2")
    assert type(to_json(Config())["log"]["level"]) is str
    assert tree["guests"]["rule"] == [{"name": "a*", "weight": "1/2"}]


# Reloads.


def test_the_table_of_reloads_has_every_key() -> None:
    assert set(AFTER) == plain_keys()


@pytest.mark.parametrize("key", AFTER)
def test_a_reload_tells_the_key_that_changed_and_whether_it_can_apply_now(key: str) -> None:
    old, new = config_of(BEFORE), config_of({**BEFORE, key: AFTER[key][0]})
    table, name = key.split(".")
    before = to_json(old)[table][name]
    before = ",".join(before) if isinstance(before, list) else before
    restart = key in NEED_RESTART
    assert changes(old, new) == (
        Change(key, before, AFTER[key][1], restart),  # type: ignore[arg-type]
    )
    assert effective(old, new) == (old if restart else new)


def test_a_reload_that_changes_everything_applies_all_but_what_needs_a_restart() -> None:
    old, new = config_of(BEFORE), config_of({**BEFORE, **{k: v for k, (v, _) in AFTER.items()}})
    assert {change.key for change in changes(old, new)} == set(AFTER)
    told = changes(effective(old, new), new)
    assert {change.key for change in told} == NEED_RESTART
    assert {change.key for change in changes(old, effective(old, new))} == set(AFTER) - NEED_RESTART
    order = list(to_json(old))
    assert [order.index(change.key.split(".")[0]) for change in changes(old, new)] == sorted(
        order.index(key.split(".")[0]) for key in AFTER
    )


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({}, {"pool.cell.1.smt": '"any"'}, [("pool.cell.1.smt", "prefer", "any")]),
        ({"pool.cell.1.smt": '"any"'}, {}, [("pool.cell.1.smt", "any", "prefer")]),
        ({}, {"pool.cell.1.smt": '"prefer"'}, []),
        (
            {"pool.smt": '"strict"', "pool.cell.1.smt": '"any"'},
            {"pool.smt": '"strict"'},
            [("pool.cell.1.smt", "any", "strict")],
        ),
        (
            {"pool.cell.1.min_cpus": "2"},
            {"pool.cell.1.min_cpus": "2", "pool.smt": '"any"'},
            [("pool.smt", "prefer", "any")],
        ),
        (
            {"pool.cell.1.smt": '"any"'},
            {"pool.cell.1.smt": '"any"', "pool.smt": '"strict"'},
            [("pool.smt", "prefer", "strict")],
        ),
        (
            {"guests.rule": '[{name = "a", weight = 1}]'},
            {"guests.rule": '[{name = "b", weight = 1}, {flavor = "f", policy = "share"}]'},
            [
                ("guests.rule[0].name", "a", "b"),
                ("guests.rule[1].flavor", None, "f"),
                ("guests.rule[1].policy", None, "share"),
            ],
        ),
        (
            {"guests.rule": '[{name = "a", weight = 1}]'},
            {},
            [("guests.rule[0].name", "a", None), ("guests.rule[0].weight", "1", None)],
        ),
    ],
    ids=[
        "a cell that begins to differ",
        "a cell that stops to differ",
        "a cell that says what holds anyway",
        "a cell that comes back to the pool",
        "a cell that follows the pool",
        "a cell that does not follow the pool",
        "another rule and one more",
        "no rules any more",
    ],
)
def test_a_reload_tells_of_cells_and_rules(
    old: dict[str, str], new: dict[str, str], told: list[tuple[str, str | None, str | None]]
) -> None:
    found = changes(config_of(old), config_of(new))
    assert sorted((change.key, change.old, change.new) for change in found) == told
    assert not any(change.restart for change in found)


# The host: cell 0 has pCPUs 0-3, cell 1 has 4-7; of those off line the kernel tells no cell.


@pytest.mark.parametrize(
    ("text", "offline", "expected"),
    [
        ('pool.cpus = "0-7"', "", None),
        ('pool.cpus = "6-9"', "", ("pool.cpus", "'6-9'", "8-9 is not present: this host has 0-7")),
        ('pool.cpus = "6-7"', "6-7", None),
        ('pool.reserved_cpus = "8"', "", ("pool.reserved_cpus", "'8'", "8 is not present")),
        ("pool.cell.2.min_cpus = 1", "", ("pool.cell.2", "2", "no such NUMA cell")),
        ('pool.cell.2.cpus = "9"', "", ("pool.cell.2", "2", "with a pCPU: it has 0, 1")),
        ("pool.cell.1.min_cpus = 1", "4-7", None),
        ('pool.cell.1.cpus = "4"', "4-7", None),
        ('pool.cell.1.cpus = "3"', "4-7", ("pool.cell.1.cpus", "'3'", "3 is not in cell 1")),
        ('pool.cell.1.cpus = "4-5"', "", None),
        ('pool.cell.1.cpus = "4-5"', "5", None),
        ('pool.cell.1.cpus = "3-5"', "", ("pool.cell.1.cpus", "'3-5'", "3 is not in cell 1")),
        ('pool.cell.0.cpus = "0,7"', "", ("pool.cell.0.cpus", "'0,7'", "which has 0-3")),
        ('pool.cell.0.reserved_cpus = "7"', "", ("pool.cell.0.reserved_cpus", "'7'", "7 is not")),
        ('pool.cell.0.cpus = "8"', "", ("pool.cell.0.cpus", "'8'", "8 is not present")),
        ('pool.cpus = "1,5"\npool.cell.0.min_cpus = 2', "", None),
    ],
)  # fmt: skip
def test_a_configuration_is_held_against_its_host(
    text: str, offline: str, expected: tuple[str, str, str] | None
) -> None:
    machine = host(replace(TWO_CELLS_EIGHT_CPUS, offline=CpuSet.parse(offline)))
    told = tuple(replace(pcpu, cell=pcpu.cell if pcpu.online else None) for pcpu in machine.cpus)
    problems = check_host(parse(text, "x"), replace(machine, cpus=told), "x")
    assert [(problem.path, problem.value) for problem in problems] == (
        [expected[:2]] if expected else []
    )
    assert expected is None or expected[2] in problems[0].remedy
