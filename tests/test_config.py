"""The configuration file: what is refused and how that is told, and what values mean."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Final

import pytest

from agent.config import MAX_BYTES, Config, load, parse
from agent.cpuset import CellId, CpuSet
from agent.errors import ConfigError, Problem
from agent.policy import Policy, Rule
from agent.pool import Smt

UUID: Final = "6a1f3c52-0b3e-4f0e-9d5e-0c1d2e3f4a5b"
RATIO: Final = "pool.emulator_overcommit_ratio"
RULE: Final = '[[guests.rule]]\nname = "a"\n'

# Key, value in TOML, a part of the remedy: the key is blamed, with the value as Python shows it.
ONE_KEY: Final = {
    "ratio of zero": (RATIO, "0", "0.01 to 1000"),
    "ratio just too small": (RATIO, "0.0099", "0.01 to 1000"),
    "ratio too large": (RATIO, "1000.1", "0.01 to 1000"),
    "ratio below zero": (RATIO, "-2.5", "0.01 to 1000"),
    "ratio of ten digits": (RATIO, '"1.000000001"', "nine digits"),
    "ratio of ten digits as a number": (RATIO, "1.000000001", "nine digits"),
    "ratio of ten digits, most of them zeros": (RATIO, '"0000000008"', "nine digits"),
    "ratio as a fraction": (RATIO, '"5/2"', "such as 8 or 2.5"),
    "ratio with an exponent": (RATIO, '"1e2"', "such as 8 or 2.5"),
    "ratio in other digits": (RATIO, '"٨"', "such as 8 or 2.5"),
    "ratio without digits": (RATIO, '"."', "such as 8 or 2.5"),
    "ratio that is true": (RATIO, "true", "such as 8 or 2.5"),
    "ratio that is no number": (RATIO, "nan", "0.01 to 1000"),
    "ratio without end": (RATIO, "inf", "0.01 to 1000"),
    "ratio as a list": (RATIO, "[8]", "such as 8 or 2.5"),
    "billing's ratio of zero": ("billing.cpu_overcommit_ratio", "0.0", "0.01 to 1000"),
    "misspelt source": ("pool.source", '"reserve"', "did you mean reserved?"),
    "source in capitals": ("pool.source", '"FREE"', "did you mean free?"),
    "CPU list as a number": ("pool.cpus", "3", 'in quotes, such as "0-3,8"'),
    "CPU list as a list": ("pool.reserved_cpus", "[0, 1]", "in quotes"),
    "CPU list with a word": ("pool.cpus", '"0-3,all"', "'all' is neither a CPU nor a range"),
    "CPU range that runs backwards": ("pool.cpus", '"5-2"', "'5-2' runs backwards"),
    "CPU id beyond any kernel": ("pool.cpus", '"8192"', "CPU 8192 is not in 0-8191"),
    "CPU list that excludes all it names": ("pool.cpus", '"3,^3"', "names no CPU at all"),
    "placement of a wrong type": ("pool.placement", "1", "one of auto, shared, single"),
    "smt as a boolean": ("pool.smt", "false", "one of prefer, strict, any"),
    "unknown answer to shortage": ("pool.on_shortage", '"kill"', "one of overcommit, spill, leave"),
    "unknown answer to a stop": ("pool.on_stop", '"stay"', "one of leave, release"),
    "min_cpus below zero": ("pool.min_cpus", "-1", "a whole number from 0"),
    "max_cpus with a fraction": ("pool.max_cpus", "2.0", "a whole number"),
    "max_cpus that is true": ("pool.max_cpus", "true", "a whole number"),
    "max_cpus in quotes": ("pool.max_cpus", '"2"', "a whole number"),
    "shrink_delay below zero": ("pool.shrink_delay", "-0.1", "from 0"),
    "shrink_delay for ever": ("pool.shrink_delay", "inf", "from 0 to 31536000"),
    "shrink_delay that is no number": ("pool.shrink_delay", "nan", "from 0 to 31536000"),
    "boolean in quotes": ("pool.iothreads", '"yes"', "true or false, without quotes"),
    "boolean as a number": ("pool.count_inactive", "1", "true or false"),
    "key of another table": ("pool.interval", "30", "a key of [reconcile]"),
    "key of one cell that is for all": ("pool.cell.0.iothreads", "true", "a key of [pool]"),
    "misspelt key": ("pool.shrink_dellay", "30", "did you mean shrink_delay?"),
    "half a key": ("pool.ratio", "8", "did you mean emulator_overcommit_ratio?"),
    "key unlike any": ("state.x", "8", "known here: path"),
    "misspelt table": ("libvrit", '{uri = "qemu:///system"}', "did you mean libvirt?"),
    "table that is a value": ("pool", "8", "a table: write [pool]"),
    "table that is a list": ("http", "[1]", "a table: write [http]"),
    "cells without a number": ("pool.cell", "[1]", "write [pool.cell.0]"),
    "cell that is a word": ("pool.cell.first", "{min_cpus = 1}", "the number of a NUMA cell"),
    "cell with a leading zero": ("pool.cell.01", "{min_cpus = 1}", "the number of a NUMA cell"),
    "cell that is a value": ("pool.cell.1", "2", "a table: write [pool.cell.1]"),
    "wrong value of one cell": ("pool.cell.1.max_cpus", '"all"', "a whole number"),
    "manage without a list": ("guests.manage", '"isolate"', 'such as ["isolate"]'),
    "unknown default policy": ("guests.default_policy", '"none"', "one of isolate, share, float"),
    "rule that is no list": ("guests.rule", '{name = "a"}', "[[guests.rule]]"),
    "URI without a scheme": ("libvirt.uri", '"system"', "qemu:///system"),
    "URI with a line break": ("libvirt.uri", '"qemu:///system\\n"', "qemu:///system"),
    "keepalive never": ("libvirt.keepalive_interval", "0", "from 1"),
    "no keepalive": ("libvirt.keepalive_count", "0", "from 1"),
    "unknown way to reconnect": ("libvirt.reconnect", '"never"', "always, wait-for-socket"),
    "no pin workers": ("libvirt.pin_workers", "0", "from 1 to 8"),
    "too many pin workers": ("libvirt.pin_workers", "9", "from 1 to 8"),
    "interval of zero": ("reconcile.interval", "0", "above 0"),
    "interval without end": ("reconcile.interval", "1e10", "up to 31536000"),
    "address without a port": ("http.listen", '"127.0.0.1"', "HOST:PORT"),
    "address without a host": ("http.listen", '":9857"', "HOST:PORT"),
    "port too large": ("http.listen", '"[::1]:65536"', "port 0-65535"),
    "IPv6 without brackets": ("http.listen", '"::1:9857"', '"[::1]:9857"'),
    "IPv4 in brackets": ("http.listen", '"[127.0.0.1]:1"', "HOST:PORT"),
    "IPv4 out of range": ("http.listen", '"127.0.0.256:1"', "HOST:PORT"),
    "broken IPv6": ("http.listen", '"[1::2::3]:1"', "HOST:PORT"),
    "certificate without its key": ("http.tls_cert", '"/c.pem"', "needs http.tls_key"),
    "key without its certificate": ("http.tls_key", '"/k.pem"', "needs http.tls_cert"),
    "clients' CA without TLS": ("http.client_ca", '"/a.pem"', "http.tls_cert and http.tls_key"),
    "relative path": ("state.path", '"state.json"', "an absolute path"),
    "path of a directory": ("state.path", '"/run/emupool/"', "of a file"),
    "path with a NUL": ("state.path", '"/run/\\u0000"', "an absolute path"),
    "no state file": ("state.path", '""', "an absolute path"),
    "relative certificate": ("http.tls_cert", '"c.pem"', "an absolute path"),
    "socket's path too long": ("admission.socket", f'"/{"x" * 107}"', "at most 107 bytes"),
    "admission that fails half": ("admission.fail", '"half"', "one of open, closed"),
    "reservation below zero": ("admission.reservation", "-1", "from 0"),
    "level that is none": ("log.level", '"warn"', "did you mean warning?"),
    "format that is none": ("log.format", '"text"', "one of auto, json, console"),
    "set without cpus": ("pool.source", '"set"', "needs cpus"),
}  # fmt: skip

# The file; the key that is blamed, the value shown, a part of the remedy.
SEVERAL_KEYS: Final = {
    "lists that overlap": (
        '[pool]\nreserved_cpus = "0-1"\ncpus = "1-5"',
        ("pool.cpus", "'1-5'", "both have 1"),
    ),
    "one cell's list in what the pool reserves": (
        '[pool]\nreserved_cpus = "0-1"\n[pool.cell.0]\ncpus = "1"',
        ("pool.cell.0.cpus", "'1'", "both have 1"),
    ),
    "one cell's set that is empty": (
        '[pool]\nsource = "set"\ncpus = "2"\n[pool.cell.1]\ncpus = ""',
        ("pool.cell.1.cpus", "''", "needs cpus"),
    ),
    "fewest over most": (
        "[pool]\nmin_cpus = 3\nmax_cpus = 2",
        ("pool.min_cpus", "3", "min_cpus (3) is over max_cpus (2)"),
    ),
    "one cell's most under the pool's fewest": (
        "[pool]\nmin_cpus = 3\n[pool.cell.1]\nmax_cpus = 2",
        ("pool.cell.1.max_cpus", "2", "min_cpus (3) is over max_cpus (2)"),
    ),
    "single below a ratio of 1": (
        '[pool]\nemulator_overcommit_ratio = "0.5"\nplacement = "single"',
        ("pool.placement", "'single'", "a ratio below 1 (0.5)"),
    ),
    "one cell's ratio below 1 under single": (
        '[pool]\nplacement = "single"\n[pool.cell.1]\nemulator_overcommit_ratio = 0.5',
        ("pool.cell.1.emulator_overcommit_ratio", "0.5", "a ratio below 1 (0.5)"),
    ),
    "ignore in manage": (
        'guests.manage = ["share", "ignore"]',
        ("guests.manage[1]", "'ignore'", "one of isolate, share, float"),
    ),
    "number in manage": ("guests.manage = [3]", ("guests.manage[0]", "3", "one of isolate")),
    "rule for nobody": (
        '[[guests.rule]]\npolicy = "share"',
        ("guests.rule[0]", "{'policy': 'share'}", "one of name, uuid, flavor"),
    ),
    "rule that says nothing": (RULE, ("guests.rule[0]", "{'name': 'a'}", "policy, weight or both")),
    "rule that is no table": (
        "guests.rule = [7]",
        ("guests.rule[0]", "7", "write [[guests.rule]]"),
    ),
    "weight too large": (RULE + "weight = 64.5", ("guests.rule[0].weight", "64.5", "0.01 to 64")),
    "weight of zero": (RULE + 'weight = "0"', ("guests.rule[0].weight", "'0'", "0.01 to 64")),
    "weight that is true": (RULE + "weight = true", ("guests.rule[0].weight", "True", "decimal")),
    "second rule's policy": (
        f'{RULE}policy = "share"\n{RULE}policy = "isolated"',
        ("guests.rule[1].policy", "'isolated'", "did you mean isolate?"),
    ),
    "misspelt key of a rule": (
        RULE + "weight = 1\nflavour = 'x'",
        ("guests.rule[0].flavour", "'x'", "did you mean flavor?"),
    ),
    "pattern that matches nothing": (
        '[[guests.rule]]\nname = ""\nweight = 1',
        ("guests.rule[0].name", "''", "a pattern"),
    ),
    "UUID without dashes": (
        f'[[guests.rule]]\nuuid = "{UUID.replace("-", "")}"\nweight = 1',
        ("guests.rule[0].uuid", "'6a1f3c52", "virsh domuuid"),
    ),
    "CA with half of TLS": (
        "http.tls_cert = '/c'\nhttp.tls_key = 'k'\nhttp.client_ca = '/a'",
        ("http.tls_key", "'k'", "an absolute path"),
    ),
    "key with a line break": (
        '[pool]\n"a\\nb" = "c\\u001b[31m"',
        (r"pool.'a\nb'", r"'c\x1b[31m'", "unknown"),
    ),
    "value without end": (
        f'pool.smt = "{"x" * 999}"',
        ("pool.smt", "'" + "x" * 56 + "...", "one of prefer"),
    ),
    "integer that Python will not print": (
        f"{RATIO} = 0x{'f' * 9999}",
        (RATIO, "<a int too large to show>", "0.01 to 1000"),
    ),
    "tables without end": ("pool" + ".a" * 1500 + " = 1", ("pool.a", "<a dict too", "unknown")),
    "integer that Python will not read": ("a = " + "1" * 5000, ("file", "limit", "as TOML")),
    "lists without end": ("a = " + "[" * 9999, ("file", "recursion", "as TOML")),
    "no TOML": ("[pool]\na = = 2", ("line 2, column 5", "'a = = 2'", "Invalid value")),
    "no TOML at the end": ("[pool]\n[http", ("line 2, column 6", "'[http'", "Expected ']'")),
    "key given twice": ("a = 1\na = 2\n", ("line 2, column 6", "'a = 2'", "Cannot overwrite")),
}


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.toml")
    assert str(caught.value).startswith("x.toml: ")
    return caught.value.problems


@pytest.mark.parametrize(("key", "value", "remedy"), ONE_KEY.values(), ids=ONE_KEY)
def test_a_wrong_key_is_named_with_its_value_and_what_would_be_right(
    key: str, value: str, remedy: str
) -> None:
    (problem,) = problems_of(f"{key} = {value}")
    expected = repr(tomllib.loads(f"x = {value}")["x"])
    assert problem.path == key
    assert problem.value == (expected if len(expected) <= 60 else expected[:57] + "...")
    assert remedy in problem.remedy


@pytest.mark.parametrize(("text", "expected"), SEVERAL_KEYS.values(), ids=SEVERAL_KEYS)
def test_a_wrong_file_has_one_problem_that_blames_one_place(
    text: str, expected: tuple[str, str, str]
) -> None:
    (problem,) = problems_of(text)
    assert problem.path == expected[0]
    assert expected[1] in problem.value
    assert len(problem.value) <= 60
    assert expected[2] in problem.remedy


def test_all_errors_are_told_at_once_in_the_order_of_the_file() -> None:
    text = """
        [guests]
        infer = 1
        manage = ["ignore", "isolate", 2]
        [pool]
        max_cpus = 1
        speed = 1
        min_cpus = 2
        [pool.cell.0]
        smt = "off"
        [log]
        level = "loud"
        [nonsense]
    """
    assert [problem.path for problem in problems_of(text)] == [
        "guests.infer",
        "guests.manage[0]",
        "guests.manage[2]",
        "pool.speed",
        "pool.min_cpus",
        "pool.cell.0.smt",
        "log.level",
        "nonsense",
    ]


@pytest.mark.parametrize(
    "text",
    [
        '[pool]\nsource = "set"\ncpus = "2-x"',
        '[pool]\ncpus = "0-x"\nreserved_cpus = "0"',
        '[pool]\nsource = "set"\ncpus = "2-x"\n[pool.cell.0]\nsource = "set"',
        "[pool]\nmin_cpus = 2\nmax_cpus = -1\n[pool.cell.0]\nmin_cpus = 3",
    ],
)
def test_one_mistake_is_one_problem(text: str) -> None:
    assert len(problems_of(text)) == 1


def test_what_a_cell_says_is_judged_though_the_pool_says_something_wrong() -> None:
    text = '[pool]\ncpus = "0-x"\n[pool.cell.0]\ncpus = "1-2"\nreserved_cpus = "2"'
    assert [problem.path for problem in problems_of(text)] == ["pool.cpus", "pool.cell.0.cpus"]


@pytest.mark.parametrize(
    "text",
    [
        '[pool]\nplacement = "single"\nemulator_overcommit_ratio = 1',
        '[pool]\nplacement = "auto"\nemulator_overcommit_ratio = 0.5',
        "[pool]\nmin_cpus = 2\nmax_cpus = 2",
        "[pool]\nmin_cpus = 0\nmax_cpus = 0\nshrink_delay = 0",
        '[pool]\nsource = "set"\ncpus = " 2, 34 "\n[pool.cell.1]\nsource = "free"\ncpus = ""',
        "guests.manage = []",
        f'http.tls_cert = "/c"\nhttp.tls_key = "/k"\nadmission.socket = "/{"x" * 106}"',
    ],
)
def test_the_edge_of_what_is_allowed_is_allowed(text: str) -> None:
    parse(text, "x")


def test_files_that_cannot_be_read_are_refused_with_their_name(tmp_path: Path) -> None:
    large, binary, loop = tmp_path / "large", tmp_path / "binary", tmp_path / "loop"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    binary.write_bytes(b"a = 1\nb = '\xff'")
    loop.symlink_to(loop)
    for path, place, value in (
        (tmp_path / "absent", "file", "No such file"),
        (tmp_path, "file", "Is a directory"),
        (loop, "file", "symbolic links"),
        (large, "file", "over 1048576 bytes"),
        (binary, "line 2", r"b'\xff'"),
        (Path("nul\0"), "file", "null"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(path)
        (problem,) = caught.value.problems
        assert (caught.value.file, problem.path) == (str(path), place)
        assert value in problem.value
    large.write_bytes(b"#" * MAX_BYTES)
    assert load(large) == Config()


@pytest.mark.parametrize("written", ["2.5", '"2.5"', "2.50", '"2.500"', "25e-1"])
def test_a_ratio_is_exact_however_it_is_written(written: str) -> None:
    assert parse(f"{RATIO} = {written}", "x").pool.default.ratio == Fraction(5, 2)


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("[::1]:9857", ("::1", 9857)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),  # noqa: S104 - nothing is bound
        ("localhost:65535", ("localhost", 65535)),
        ("", None),
    ],
)
def test_an_address_is_split(listen: str, address: tuple[str, int] | None) -> None:
    assert parse(f'http.listen = "{listen}"', "x").http.address == address


def test_one_cell_differs_only_where_it_says_so() -> None:
    text = '[pool]\ncpus = "2-3,^3,34"\nsmt = "any"\n[pool.cell.1]\nmax_cpus = 4\nsmt = "strict"'
    pool = parse(text, "x").pool
    assert pool.of(CellId(0)) == pool.default
    assert pool.of(CellId(1)) == replace(pool.default, max_cpus=4, smt=Smt.STRICT)
    assert pool.of(CellId(1)).cpus == CpuSet.of(2, 34)


def test_a_rule_matches_a_uuid_however_it_is_spelt() -> None:
    text = f'[[guests.rule]]\nuuid = "{UUID.upper()}"\npolicy = "share"'
    assert parse(text, "x").guests.rules == (Rule(policy=Policy.SHARE, uuid=UUID),)
