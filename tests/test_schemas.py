"""What the JSON Schemas of docs/schema take and what they refuse, and that they are as promised.

Other tests hold each document that the program makes against them: tests/schemas.py.
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from jsonschema import Draft202012Validator

from agent import accounting, report, topology
from agent.accounting import BillingSettings
from agent.advice import Because, Verdict
from agent.config import Config, to_json
from agent.config.settings import Fail, LogFormat, LogLevel, Reconnect
from agent.cycle import Cause
from agent.metrics import Metrics
from agent.planner import State
from agent.policy import Policy, Source
from agent.pool import OnShortage, OnStop, Placement, PoolSource, Smt
from agent.status import Standing, status
from agent.transition import Kind, Reason
from tests import documents
from tests.node import Node, cpus
from tests.schemas import ANSWERS, FOLDER, WHAT_IF, fault, schemas, validated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from enum import StrEnum

    from agent.cycle import CycleResult

Json = dict[str, Any]

DESIGN: Final = FOLDER.parents[2] / "shared/DESIGN.md"
README: Final = FOLDER.parents[1] / "README.md"


def answers(result: CycleResult) -> dict[str, Json]:
    """Return what each command would say after a cycle."""
    standing = Standing("qemu:///system", True, result, 1.7e9, config=to_json(Config()))  # noqa: FBT003 - connected
    bills = accounting.account(result.host, BillingSettings(), result.plan, result.guests)
    made = {
        "topology": topology.to_json(result.host),
        "plan": report.plan(result.plan, result.steps),
        "status": status(standing, Metrics().counters()),
        "account": report.account(bills, result.plan),
    }
    sent: dict[str, Json] = json.loads(json.dumps(made))
    return sent


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Json]]:
    """Answers about guests of each kind, on a host with a pCPU off line."""
    node = Node(tmp_path_factory.mktemp("node") / "state.json")
    node.fake.unplug(cpus("5"))
    node.start("first", claim=1, iothreads=1, iothreadpins={1: "7"})
    node.start("light", metadata_attributes={"cell": "0", "weight": "0.5"})
    node.start("unpinned", emulatorpin=None)
    node.start("flawed", metadata_attributes={"cell": "0", "weight": "heavy"})
    node.fake.start(node.fake.define("other", emulatorpin="0-7"))
    node.define("stopped")
    waiting = node.start("waiting")
    node.hold(waiting)
    try:
        plan = answers(node.cycle())["plan"]  # while there are steps to take
        yield answers(node.cycle(Cause.CPU)) | {"plan": plan}
    finally:
        node.stop()


def changed(document: Json, path: str, value: object) -> Json:
    """Return the document with another value at a path; `DELETED` for none."""
    made = deepcopy(document)
    at: Any = made
    *way, last = path.split(".")
    for word in way:
        at = at[int(word) if isinstance(at, list) else word]
    if value is DELETED:
        del at[last]
    else:
        at[last] = value
    return made


DELETED: Final = object()


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_is_as_its_schema_says(told: dict[str, Json], name: str) -> None:
    validated(name, told[name])


def test_the_answers_show_each_kind_of_guest(told: dict[str, Json]) -> None:
    """Or what is refused below would prove little."""
    guests = {guest["name"]: guest for guest in told["status"]["guests"]}
    assert {name: guest["state"] for name, guest in guests.items()} == {
        "first": "placed",
        "light": "placed",
        "unpinned": "placed",
        "flawed": "placed",
        "other": None,
        "stopped": None,
        "waiting": "busy",
    }
    assert guests["light"]["weight"] == "1/2"
    assert guests["first"]["original"] == "7"
    assert guests["unpinned"]["original"] is None
    assert guests["first"]["iothreads"][0]["live"] == guests["first"]["live"] == "0,2-3"
    assert guests["first"]["verified"] is True
    assert guests["stopped"]["live"] is guests["stopped"]["kernel"] is None
    assert [pcpu["online"] for pcpu in told["topology"]["cpus"]] == [n != 5 for n in range(8)]
    assert told["topology"]["cpus"][5]["siblings"] is None
    assert {step["from"] for step in told["plan"]["steps"]} == {None, "7"}
    assert {step["kind"] for step in told["plan"]["steps"]} == {"emulator", "iothread"}
    assert [warning["guest"] for warning in told["plan"]["warnings"]] == ["flawed"]
    assert told["status"]["topology"] == told["topology"]
    assert told["status"]["last_cycle"]["event"] == "cpu"
    assert {row["cell"] for row in told["account"]["guests"]} == {0}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", DELETED),
        ("schema", 2),
        ("schema", "1"),
        ("more", 1),
        ("cells", DELETED),
        ("cells", {}),
        ("cells.0.more", 1),
        ("cells.0.id", -1),
        ("cells.0.id", "0"),
        ("cells.0.id", None),
        ("cells.0.guests", 1.5),
        ("cells.0.weight", 1),
        ("cells.0.weight", "2.5"),
        ("cells.0.weight", "4/2"),
        ("cells.0.weight", "2/1"),
        ("cells.0.weight", "0/2"),
        ("cells.0.weight", "01"),
        ("cells.0.weight", "-1"),
        ("cells.0.ratio", "8/"),
        ("cells.0.ratio", None),
        ("cells.0.pool", [0, 1]),
        ("cells.0.pool", None),
        ("cells.0.pool", "0,1"),
        ("cells.0.pool", "1,0"),
        ("cells.0.pool", "3-1"),
        ("cells.0.pool", "0-0"),
        ("cells.0.pool", "0-"),
        ("cells.0.pool", "00"),
        ("cells.0.pool", "0 "),
        ("cells.0.pool", "0-7,^5"),
        ("cells.0.pool", "0\n"),
        ("cells.0.shortage", -1),
        ("guests.0.more", 1),
        ("guests.0.reason", DELETED),
        ("guests.0.uuid", "first"),
        ("guests.0.policy", "pin"),
        ("guests.0.source", "file"),
        ("guests.0.managed", "yes"),
        ("guests.0.placement", "auto"),
        ("guests.0.emulator_pcpus", ""),
        ("guests.0.original", ""),
        ("steps.0.more", 1),
        ("steps.0.kind", "vcpu"),
        ("steps.0.to", ""),
        ("steps.0.to", None),
        ("steps.0.from", DELETED),
        ("steps.0.reason", "because"),
        ("warnings.0.more", 1),
        ("warnings.0.field", None),
    ],
    ids=str,
)
def test_a_plan_that_is_none_is_refused(told: dict[str, Json], path: str, value: object) -> None:
    for name in ("plan", "status"):
        document = told[name] | {"steps": told["plan"]["steps"]}
        assert fault(name, document) is None
        assert fault(name, changed(document, path, value)) is not None


def test_what_contradicts_itself_is_refused(told: dict[str, Json]) -> None:
    plan = told["plan"]
    ours, theirs = (
        next(n for n, guest in enumerate(plan["guests"]) if guest["managed"] is managed)
        for managed in (True, False)
    )
    emulator, iothread = (
        next(n for n, step in enumerate(plan["steps"]) if step["kind"] == kind)
        for kind in ("emulator", "iothread")
    )
    for path, value in (
        (f"guests.{ours}.state", None),
        (f"guests.{ours}.cell", None),
        (f"guests.{ours}.managed", False),
        (f"guests.{theirs}.state", "placed"),
        (f"guests.{theirs}.cell", 0),
        (f"guests.{theirs}.emulator_pcpus", "0"),
        (f"guests.{theirs}.placement", "shared"),
        (f"steps.{emulator}.iothread", 1),
        (f"steps.{iothread}.iothread", None),
    ):
        assert fault("plan", changed(plan, path, value)) is not None, path


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("topology", "schema", DELETED),
        ("topology", "more", 1),
        ("topology", "cells.0.cpus", ""),
        ("topology", "cells.0.memory_bytes", "64 GiB"),
        ("topology", "cells.0.distances", [10, 20]),
        ("topology", "cells.0.distances.00", 10),
        ("topology", "cells.0.distances.0", "10"),
        ("topology", "cpus.0.online", 1),
        ("topology", "cpus.0.online", None),
        ("topology", "cpus.0.cell", -1),
        ("topology", "cpus.0.package", "0"),
        ("topology", "cpus.0.l3", ""),
        ("topology", "cpus.0.l3", DELETED),
        ("topology", "cpus.0.more", 1),
        ("topology", "cpus.5.siblings", "4-5"),  # it is off line
        ("status", "more", 1),
        ("status", "version", DELETED),
        ("status", "topology", {}),
        ("status", "topology.cpus.0.more", 1),
        ("status", "libvirt.connected", "yes"),
        ("status", "libvirt.more", 1),
        ("status", "last_cycle.event", "lunch"),
        ("status", "last_cycle.more", 1),
        ("status", "guests.0.live", DELETED),
        ("status", "guests.0.kernel", ""),
        ("status", "guests.0.verified", None),
        ("status", "guests.0.stuck", [1]),
        ("status", "guests.0.iothreads", [{"id": 0, "live": None, "kernel": None}]),
        ("status", "guests.0.iothreads", [{"id": 1, "live": None}]),
        ("status", "config", {}),
        ("status", "config.more", {}),
        ("status", "config.pool.emulator_overcommit_ratio", 8),
        ("status", "config.pool.cpus", "0-7,^5"),
        ("status", "config.pool.cell", {"x": {}}),
        ("status", "config.guests.manage", ["ignore"]),
        ("status", "config.guests.rule", [{"more": 1}]),
        ("status", 'counters.emupool_repins_total{guest="web-1"}', 1),
        ("status", "counters.emupool_pool_cpus", 1),
        ("account", "more", 1),
        ("account", "guests.0.more", 1),
        ("account", "guests.0.name", None),
        ("account", "guests.0.total", 1.125),
        ("account", "guests.0.total", "1.125"),
        ("account", "cells.0.more", 1),
        ("account", "cells.0.emulator", DELETED),
    ],
    ids=str,
)
def test_an_answer_that_is_none_is_refused(
    told: dict[str, Json], name: str, path: str, value: object
) -> None:
    assert fault(name, changed(told[name], path, value)) is not None


def test_a_daemon_without_a_cycle_has_an_answer() -> None:
    validated("status", status(Standing("qemu:///system", config=to_json(Config())), {}))


def test_documents_that_tests_make_up_are_like_those_of_the_program() -> None:
    plan = documents.plan(
        documents.guest(),
        cells=(documents.cell(),),
        steps=[documents.step(0, "arrive", None, "2"), documents.step(0, "move", "2", "3", 1)],
    )
    validated("status", documents.status(plan, config=to_json(Config()), topology=None))


# the schemas themselves


def subschemas(schema: object) -> Iterator[Json]:
    """Yield each object in a schema that may be a schema."""
    if isinstance(schema, dict):
        yield schema
        for inner in schema.values():
            yield from subschemas(inner)
    if isinstance(schema, list):
        for inner in schema:
            yield from subschemas(inner)


@pytest.mark.parametrize("file", [f"{name}.json" for name in (*ANSWERS, *WHAT_IF, "common")])
def test_a_schema_is_one_of_the_draft_that_it_names(file: str) -> None:
    schema = schemas()[file]
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(schema)


def test_every_object_is_closed_and_names_what_must_be_there() -> None:
    """Two are open, since more is added to them where they are used: guests, and sums of bills."""
    opened = {"plan.json": {"policy"}, "account.json": {"dedicated"}}
    for file, schema in schemas().items():
        for one in subschemas(schema):
            if one.get("type") != "object":
                continue
            properties = set(one.get("properties", ()))
            if not properties & opened.get(file, set()):
                assert one["additionalProperties"] is False, (file, one)
            if "patternProperties" not in one and not {"flavor"} <= properties:  # a rule
                assert set(one["required"]) == properties, (file, one)


def properties(schema: object) -> set[str]:
    return {name for one in subschemas(schema) for name in _named(one)}


def _named(one: Json) -> Iterator[str]:
    found = one.get("properties")
    if isinstance(found, dict) and "type" not in found.get("properties", {}):
        yield from found


def design(heading: str) -> str:
    text = DESIGN.read_text()
    start = text.index(f"\n## {heading}")
    return text[start : text.index("\n## ", start + 1)]


needs_design = pytest.mark.skipif(not DESIGN.exists(), reason="there is no DESIGN.md beside this")


@needs_design
@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("topology", "    topology:", "    plan:"),
        ("plan", "    plan:", "    status:"),
        ("status", "    status:", "\n## "),
    ],
)
def test_a_schema_has_the_properties_that_were_promised(name: str, start: str, end: str) -> None:
    text = design("6. Command line") + "\n## "
    listed = text[text.index(start) : text.index(end, text.index(start))]
    promised = set(re.findall(r'"([a-z][a-z_0-9]*)"', listed)) | {"schema"}
    schema = deepcopy(schemas()[f"{name}.json"])
    schema["$defs"].pop("config", None)
    if name == "plan":  # what a picture tells apart besides
        promised |= {"realtime", "reserved"}
    if name == "status":  # drawn by `emupool status`; plan's lists are named there as "plan"
        promised |= {"topology", "cells", "guests", "steps", "warnings", "id", "advice"}
    values = {value for one in subschemas(schema) for value in one.get("enum", ())}
    assert properties(schema) - promised == set()
    assert promised - properties(schema) - values == set()


def enums(schema: Json) -> dict[str, list[Any]]:
    """Return the words that a schema allows, by the name of the property."""
    return {
        name: inner["enum"]
        for one in subschemas(schema)
        for name, inner in (one.get("properties") or {}).items()
        if "enum" in inner
    }


def test_a_schema_has_the_words_of_the_program() -> None:
    plan = schemas()["plan.json"]["$defs"]
    assert enums(plan["guest"]) == {
        "policy": list(Policy),
        "source": list(Source),
        "placement": [Placement.SHARED, Placement.SINGLE, None],
        "state": [*State, None],
    }
    assert enums(plan["steps"]) == {"kind": list(Kind), "reason": list(Reason)}
    advised = schemas()["advice.json"]["$defs"]["cells"]["items"]["properties"]
    assert advised["verdict"]["enum"] == [*Verdict, None]
    assert advised["because"]["enum"] == list(Because)
    told = deepcopy(schemas()["status.json"])
    config = enums(told["$defs"].pop("config"))
    assert enums(told) == {"event": list(Cause)}
    assert config == {
        "reconnect": list(Reconnect),
        "source": list(PoolSource),
        "placement": list(Placement),
        "smt": list(Smt),
        "on_shortage": list(OnShortage),
        "on_stop": list(OnStop),
        "default_policy": list(Policy),
        "policy": list(Policy),
        "fail": list(Fail),
        "level": list(LogLevel),
        "format": list(LogFormat),
    }


@needs_design
@pytest.mark.parametrize(
    ("words", "before"),
    [
        (Source, '"source" is one of '),
        (State, '"state" the first that holds of '),
        (Reason, "steps are taken: "),
    ],
)
def test_the_words_are_those_that_were_promised(words: type[StrEnum], before: str) -> None:
    text = " ".join(design("6. Command line").split())
    listed = re.split(r"; | \(", text.split(before)[1])[0]
    assert listed.split(", ") == list(words)


@needs_design
def test_the_schema_has_the_keys_of_the_configuration() -> None:
    text = design("5. Configuration")
    rows = dict(re.findall(r"^\| `\[+([a-z.N]+)\]+` \| (.*) \|$", text, re.MULTILINE))
    config = schemas()["status.json"]["$defs"]["config"]["properties"]
    assert config.keys() == rows.keys() - {"pool.cell.N"}
    for table, row in rows.items():
        if table not in {"pool.cell.N", "guests"}:
            keys = set(re.findall(r"`?([a-z_]+) = ", row)) | set(
                re.findall(r"`(tls_[a-z]+|client_ca)`", row)
            )
            assert set(config[table]["properties"]) - {"cell"} == keys, table


def test_the_readme_tells_of_each_schema() -> None:
    text = README.read_text()
    for name in (*ANSWERS, *WHAT_IF):
        assert f"docs/schema/{name}.json" in text
        assert Path(FOLDER / f"{name}.json").is_file()
