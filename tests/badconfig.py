"""Bad configuration files, each with what is to be said of it.

`ONE_KEY` are files of one key, `SEVERAL_KEYS` any other text, `BYTES` what is no text at all; all
have one mistake, and so one problem. `SEVERAL_MISTAKES` have more.
"""

from __future__ import annotations

from typing import Final

from agent.config import MAX_BYTES
from agent.cpuset import LIMIT

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
    "CPU id beyond any kernel": ("pool.cpus", f'"{LIMIT}"', f"CPU {LIMIT} is not in 0-{LIMIT - 1}"),
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
    "ratio beyond any float": (RATIO, "1e400", "0.01 to 1000"),
    "ratio beyond any float as text": (RATIO, '"1e400"', "0.01 to 1000"),
    "ratio of a third": (RATIO, '"1/3"', "such as 8 or 2.5"),
    "ratio below any": (RATIO, "-inf", "0.01 to 1000"),
    "ratio of no text": (RATIO, '""', "such as 8 or 2.5"),
    "ratio with a sign": (RATIO, '"+8"', "such as 8 or 2.5"),
    "ratio with a blank": (RATIO, '" 8"', "such as 8 or 2.5"),
    "ratio as a day": (RATIO, "1979-05-27", "such as 8 or 2.5"),
    "ratio as a table": (RATIO, "{of = 8}", "such as 8 or 2.5"),
    "CPU list with an empty item": ("pool.cpus", '"0,,2"', "neither a CPU nor a range"),
    "CPU list that ends in a comma": ("pool.cpus", '"0,2,"', "neither a CPU nor a range"),
    "CPU list with a negative id": ("pool.cpus", '"-1"', "neither a CPU nor a range"),
    "CPU range without an end": ("pool.cpus", '"0-"', "neither a CPU nor a range"),
    "CPU range with a step": ("pool.cpus", '"0-8:2/4"', "neither a CPU nor a range"),
    "CPU mask": ("pool.cpus", '"0xff"', "neither a CPU nor a range"),
    "CPU range beyond any host": ("pool.cpus", '"0-999999999"', f"is not in 0-{LIMIT - 1}"),
    "CPU id of a hundred digits": ("pool.cpus", f'"{"1" * 100}"', "neither a CPU nor a range"),
    "CPU list as text in a list": ("pool.cpus", '["0-3"]', "in quotes"),
    "CPU list with a line break": ("pool.cpus", '"0\\n-3\\u001b[2J"', r"'0\n-3\x1b[2J'"),
    "min_cpus beyond any host": ("pool.min_cpus", f"{LIMIT + 1}", f"from 0 to {LIMIT}"),
    "max_cpus beyond any integer": ("pool.max_cpus", "1" * 22, f"from 0 to {LIMIT}"),
    "shrink_delay in quotes": ("pool.shrink_delay", '"30"', "seconds, a number from 0"),
    "shrink_delay that is true": ("pool.shrink_delay", "true", "seconds, a number from 0"),
    "shrink_delay beyond a year": ("pool.shrink_delay", "31536001", "from 0 to 31536000"),
    "cell below zero": ("pool.cell.-1", "{min_cpus = 1}", "the number of a NUMA cell"),
    "cell beyond any kernel": ("pool.cell.9999999999", "{min_cpus = 1}", "number of a NUMA cell"),
    "cell with a fraction": ("pool.cell.'1.5'", "{min_cpus = 1}", "the number of a NUMA cell"),
    "cell that is a list": ("pool.cell.0", "[{min_cpus = 1}]", "a table: write [pool.cell.0]"),
    "cell in a cell": ("pool.cell.0.cell", "{1 = {smt = 'any'}}", "known here: emulator_over"),
    "misspelt key of a cell": ("pool.cell.0.min_cpu", "1", "did you mean min_cpus?"),
    "misspelt table of cells": ("pool.cells", "{0 = {}}", "did you mean cell?"),
    "key below a key": ("pool.smt", "{strict = true}", "one of prefer, strict, any"),
    "pool that is a list of tables": ("pool", "[{smt = 'any'}]", "a table: write [pool]"),
    "log that is a value": ("log", '"debug"', "a table: write [log]"),
    "libvirt that is true": ("libvirt", "true", "a table: write [libvirt]"),
    "guests that are a list": ("guests", '["isolate"]', "a table: write [guests]"),
    "key without its table": ("keepalive_count", "3", "a key of [libvirt]"),
    "table in another table": ("guests.pool", "{}", "known here: infer"),
    "key with a dash": ("pool.min-cpus", "1", "did you mean min_cpus?"),
    "key in capitals": ("pool.SMT", '"any"', "did you mean smt?"),
    "manage as a table": ("guests.manage", "{isolate = true}", 'such as ["isolate"]'),
    "infer as text": ("guests.infer", '"true"', "true or false, without quotes"),
    "URI as a number": ("libvirt.uri", "16514", "qemu:///system"),
    "no URI": ("libvirt.uri", '""', "qemu:///system"),
    "keepalive that is true": ("libvirt.keepalive_interval", "true", "from 1 to 3600"),
    "keepalive with a fraction": ("libvirt.keepalive_interval", "2.5", "from 1 to 3600"),
    "keepalive in quotes": ("libvirt.keepalive_count", '"3"', "from 1 to 3600"),
    "keepalive beyond an hour": ("libvirt.keepalive_interval", "3601", "from 1 to 3600"),
    "reconnect that is true": ("libvirt.reconnect", "true", "one of always, wait-for-socket"),
    "interval below zero": ("reconcile.interval", "-30", "above 0"),
    "interval that is no number": ("reconcile.interval", "nan", "above 0"),
    "interval as a time of day": ("reconcile.interval", "00:00:30", "above 0"),
    "dry_run as a number": ("reconcile.dry_run", "0", "true or false"),
    "address as a port": ("http.listen", "9857", "HOST:PORT"),
    "address with a word as a port": ("http.listen", '"localhost:http"', "HOST:PORT"),
    "address with a port below zero": ("http.listen", '"localhost:-1"', "HOST:PORT"),
    "address with a blank": ("http.listen", '"localhost :9857"', "HOST:PORT"),
    "address that is a URL": ("http.listen", '"http://localhost:9857"', "HOST:PORT"),
    "relative key of a certificate": ("http.tls_key", '"k.pem"', "an absolute path"),
    "certificate that is false": ("http.tls_cert", "false", "an absolute path"),
    "socket of too many bytes": ("admission.socket", f'"/{"é" * 54}"', "at most 107 bytes"),
    "relative socket": ("admission.socket", '"run/a.sock"', "an absolute path of a socket"),
    "reservation that is no number": ("admission.reservation", "nan", "from 0"),
    "level as a number": ("log.level", "10", "one of debug, info, warning, error"),
    "level in capitals": ("log.level", '"INFO"', "did you mean info?"),
    "no level": ("log.level", '""', "one of debug, info, warning, error"),
    "value that drives a terminal": ("pool.smt", '"\\u001b[2Jany\\r\\n"', "one of prefer, strict"),
    "value that is many lines": ("pool.smt", '"any\\u2028\\u2029\\u0085"', "did you mean any?"),
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
    "tables in tables": (
        "pool" + (".a" * 40 + " = {a") * 24 + " = 1" + "}" * 24,
        ("pool.a", "<a dict too", "unknown"),
    ),
    "integer that Python will not read": ("a = " + "1" * 5000, ("file", "limit", "as TOML")),
    "lists without end": ("a = " + "[" * 9999, ("file", "recursion", "as TOML")),
    "weight as a fraction": (RULE + 'weight = "1/2"', ("guests.rule[0].weight", "'1/2'", "0.5")),
    "weight below zero": (RULE + "weight = -1", ("guests.rule[0].weight", "-1", "0.01 to 64")),
    "UUID of other letters": (
        f'[[guests.rule]]\nuuid = "g{UUID[1:]}"\nweight = 1',
        ("guests.rule[0].uuid", "'ga1f3c52", "virsh domuuid"),
    ),
    "rule with a cell": (
        RULE + "weight = 1\ncell = 0",
        ("guests.rule[0].cell", "0", "known here: name, uuid, flavor, policy, weight"),
    ),
    "rule with another table's key": (
        RULE + "weight = 1\nsmt = 'any'",
        ("guests.rule[0].smt", "'any'", "a key of [pool]"),
    ),
    "rules that are one table": (
        '[guests.rule]\nname = "a"\nweight = 1',
        ("guests.rule", "{'name': 'a', 'weight': 1}", "under its own [[guests.rule]]"),
    ),
    "list in manage": (
        'guests.manage = [["isolate"]]',
        ("guests.manage[0]", "['isolate']", "one of isolate, share, float"),
    ),
    "table that is a list of tables": (
        "[[http]]\nstatus_page = true",
        ("http", "[{'status_page': True}]", "a table: write [http]"),
    ),
    "table and key in one pair of quotes": (
        '"pool.smt" = "any"',
        ("'pool.smt'", "'any'", "did you mean pool?"),
    ),
    "table of no name": ('"" = 1', ("''", "1", "known here: pool")),
    "overlap that is excluded on one side only": (
        'pool.cpus = "0-7,^5"\npool.reserved_cpus = "5-6"',
        ("pool.cpus", "'0-7,^5'", "both have 6"),
    ),
    "key without end": (
        f"{'k' * 999} = 1",
        ("'" + "k" * 56 + "...", "1", "known here: pool"),
    ),
    "inline tables without end": ("a = " + "{a = " * 9999, ("file", "recursion", "as TOML")),
    "dotted key without end": ("pool" + ".a" * 100_000 + " = 1", ("line 1", "'pool.a.a", "parts")),
    "quoted dotted key without end": (
        "\n[" + '"é x" . ' * 20_000 + "'']",
        ("line 2", """'"é x" . "é x" .""", "parts"),
    ),
    "header without end": ("[a" + ".a" * 100_000 + "]", ("line 1", "'a.a.a", "parts")),
    "table given twice": ("[pool]\n[pool]", ("line 2, column 6", "'[pool]'", "twice")),
    "table given again by dots": (
        '[pool]\nsmt = "any"\n[guests]\n[pool.smt]',
        ("line 4, column 10", "'[pool.smt]'", "Cannot"),
    ),
    "list that is extended": (
        "guests.rule = []\n[[guests.rule]]",
        ("line 2, column 14", "'[[guests.rule]]'", "Cannot"),
    ),
    "text without its end": (
        'pool.smt = "any',
        ("line 1, column 16", "'pool.smt = ", "nterminated"),
    ),
    "value without quotes": ("log.level = debug", ("line 1, column 13", "debug", "Invalid value")),
    "NUL": ("[pool]\0", ("line 1, column 7", r"'[pool]\x00'", "not TOML")),
    "NUL in a comment": ("# \0", ("line 1, column 3", r"'# \x00'", r"character '\x00'")),
    "escape in a comment": ("# \x1b[2J", ("line 1, column 3", r"'# \x1b[2J'", r"'\x1b'")),
    "line breaks of an old Mac": ("[pool]\rsmt = 1\r", ("line 1, column 7", r"\r", "not TOML")),
    "lone surrogate": ('pool.smt = "\\ud800"', ("line 1, column 19", "ud800", "not TOML")),
    "INI": ("[pool]\nsmt: any", ("line 2, column 4", "'smt: any'", "Expected '='")),
    "no TOML": ("[pool]\na = = 2", ("line 2, column 5", "'a = = 2'", "Invalid value")),
    "no TOML at the end": ("[pool]\n[http", ("line 2, column 6", "'[http'", "Expected ']'")),
    "key given twice": ("a = 1\na = 2\n", ("line 2, column 6", "'a = 2'", "Cannot overwrite")),
}

# What the file holds; the place that is blamed, a part of the value shown, a part of the remedy.
BYTES: Final = {
    "Latin-1": (b"# caf\xe9\n", ("line 1", r"b'\xe9'", "save the file as UTF-8")),
    "Latin-1 further down": (
        b"a = 1\nb = '\xff'",
        ("line 2", r"b'\xff'", "save the file as UTF-8"),
    ),
    "UTF-16": ("[pool]".encode("utf-16"), ("line 1", r"b'\xff'", "save the file as UTF-8")),
    "UTF-16 without a mark": ("[pool]".encode("utf-16-le"), ("line 1, column 2", r"\x00", "TOML")),
    "UTF-8 with a mark": (
        "\ufeff[pool]\n".encode(),
        ("line 1", r"b'\xef\xbb\xbf'", "without a byte order mark"),
    ),
    "surrogates in UTF-8": (b"a = '\xed\xa0\x80'", ("line 1", r"b'\xed'", "as UTF-8")),
    "executable": (b"\x7fELF\x02\x01\x01" + bytes(9), ("line 1, column 1", r"\x7fELF", "TOML")),
    "too large": (b"#" * (MAX_BYTES + 1), ("file", f"over {MAX_BYTES} bytes", "no configuration")),
}

# The file; the keys that are blamed, in this order.
SEVERAL_MISTAKES: Final = {
    "one of each kind": (
        """
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
        """,
        (
            *("guests.infer", "guests.manage[0]", "guests.manage[2]", "pool.speed"),
            *("pool.min_cpus", "pool.cell.0.smt", "log.level", "nonsense"),
        ),
    ),
    "a rule that is empty has two": (
        """
        [[guests.rule]]
        weight = 99
        uuid = "x"
        [[guests.rule]]
        [http]
        tls_key = "k"
        """,
        (
            *("guests.rule[0].weight", "guests.rule[0].uuid", "guests.rule[1]"),
            *("guests.rule[1]", "http.tls_key"),
        ),
    ),
    "every table, from the last to the first": (
        """
        log.a = 1
        admission.a = 1
        state.a = 1
        http.a = 1
        reconcile.a = 1
        billing.a = 1
        guests.a = 1
        pool.cell.7.a = 1
        pool.a = 1
        libvirt.a = 1
        a = 1
        """,
        (
            *("log.a", "admission.a", "state.a", "http.a", "reconcile.a", "billing.a"),
            *("guests.a", "pool.cell.7.a", "pool.a", "libvirt.a", "a"),
        ),
    ),
    "cells that are none, and one that is": (
        "[pool.cell]\nx = 1\n-1 = {}\n0 = {smt = 1}\n99999999999 = {}\n[pool.cell.1]\ncpus = 1",
        (
            *("pool.cell.x", "pool.cell.-1", "pool.cell.0.smt", "pool.cell.99999999999"),
            "pool.cell.1.cpus",
        ),
    ),
}
