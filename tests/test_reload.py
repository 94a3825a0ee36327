"""SIGHUP: what each key changes in a daemon that runs, and that a bad file changes nothing.

The daemon is the real one over tests/fake.py, on a host of two cells (pCPUs 0-3 and 4-7, two to a
core). It is turned by hand: a turn is what `Daemon.run` does with one wake.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass, field, fields
from io import StringIO
from itertools import count
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import logs
from agent.admit import ADMIT, NoAnswer, ask
from agent.config import RESTART, Config, load
from agent.connector import daemon_runs
from agent.cycle import Cause
from agent.daemon import Daemon
from agent.doorkeeper import Doorkeeper
from agent.events import LinkUp, Reload
from agent.guestbook import Guestbook
from agent.parts import Parts
from agent.pool import CellSettings
from agent.reception import Reception
from tests.badconfig import ONE_KEY
from tests.desk import listens
from tests.fake import Fake
from tests.node import cpus, isolated
from tests.service import Service, wait
from tests.test_admit import call
from tests.test_config_tree import AFTER, BEFORE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from agent.cpuset import CpuSet
    from agent.cycle import CycleResult
    from agent.events import Wake
    from agent.pool import NUMACell
    from agent.sysfs import Sysfs
    from agent.threads import Threads
    from tests.libvirtd import Libvirtd

TURNS: Final = 500
"""After so many something does not come."""
ROUNDS: Final = 100


class Agent:
    """A daemon over a fake; `given` are keys of its file beside those that keep it quiet."""

    def __init__(self, folder: Path, log: StringIO, given: Mapping[str, str]) -> None:
        self.log = log
        self.fake = Fake()
        self.file = folder / "config.toml"
        self.given = {
            "reconcile.interval": "3600",
            "state.path": f'"{folder}/state.json"',
            "log.format": '"json"',
            "pool.source": '"free"',
            "pool.emulator_overcommit_ratio": "2",
            "pool.shrink_delay": "0",
            "admission.socket": f'"{folder}/door"',
            **given,
        }
        self.write(self.given)
        config = load(self.file)
        logs.configure(config.log.level, config.log.format, log)
        host, kernel = cast("Sysfs", self.fake), cast("Threads", self.fake)
        reception = Reception(config, Guestbook(folder / "seen", "boot"))
        self.door = Doorkeeper(config, reception, os.getuid())
        self.door.start()
        self.daemon = Daemon(config, Parts(self.fake, host, kernel, door=self.door), path=self.file)
        self.last: Wake | None = None
        self.names = (f"later-{number}" for number in count())
        self.daemon._connector.start()
        self.daemon._lookout.start()
        door = config.admission.socket
        self.until(lambda: self.daemon._cycled and listens(door) is config.admission.enabled)

    def write(self, told: Mapping[str, str]) -> None:
        self.file.write_text("\n".join(f"{key} = {value}" for key, value in told.items()))

    def reload(self, changed: Mapping[str, str]) -> None:
        """Change keys of the file, send SIGHUP, and wait until all was looked at."""
        self.write({**self.given, **changed})
        self.hup()
        self.settle()

    def hup(self) -> None:
        self.daemon._inbox.put(Reload())
        self.until(lambda: self.last is not None and "signal" in self.last.counts)

    def turn(self, seconds: float = 0.0) -> None:
        self.last = self.daemon._inbox.wait(seconds)
        with redirect_stderr(self.log):
            self.daemon._turn(self.last)

    def until(self, met: Callable[[], bool]) -> None:
        """Turn until something holds, after one turn at least."""
        for _ in range(TURNS):
            self.turn(0.02)
            if met():
                return
        raise AssertionError("it does not come")

    def settle(self) -> None:
        """Look at everything until there is nothing to do."""
        for _ in range(TURNS):
            self.daemon._timer.expire()
            self.turn(0.02 if self.daemon._pinner.under_way() else 0.0)
            done = not self.result.steps or self.result.dry_run
            full = self.result.cause is Cause.RECONCILE
            if done and full and not self.daemon._pinner.under_way():
                return
        raise AssertionError("it never settles")

    @property
    def result(self) -> CycleResult:
        assert self.daemon._standing.result is not None
        return self.daemon._standing.result

    def cell(self, number: int = 0) -> NUMACell:
        return self.result.plan.cells[number]

    def start(self, properties: Mapping[str, object], name: str | None = None) -> str:
        """Start a guest with these arguments of `guest_xml`, and let the daemon deal with it."""
        uuid = self.fake.start(self.fake.define(name or next(self.names), **properties))
        self.settle()
        return uuid

    def end(self) -> None:
        """Do what `Daemon.run` does at the end."""
        self.daemon._end()
        self.door.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Start an agent, once: its log is what goes to standard error."""
    made: list[Agent] = []
    log = StringIO()

    def begin(given: Mapping[str, str] | None = None) -> Agent:
        made.append(Agent(tmp_path, log, given or {}))
        return made[-1]

    yield begin
    for agent in made:
        agent.end()
    logs.configure("warning", "auto", sys.stderr)


# Guests, those of weight 1 at home in cell 0; what is to be seen of a key before and after.

OURS: Final = isolated(None, {})
GUESTS: Final = {
    name: isolated(None, {"iothreads": 1, "iothreadpins": {1: "7"}}) for name in ("a", "b", "c")
}
PLAIN: Final[dict[str, dict[str, object]]] = {"plain": {"vcpupins": {0: "2"}, "emulatorpin": "3"}}
NOBODYS: Final[dict[str, dict[str, object]]] = {"nobody": {}}
SHARED: Final[dict[str, dict[str, object]]] = {"shared": {"metadata_policy": "share"}}


@dataclass(frozen=True)
class Row:
    """One key: what it becomes, and what `shows` tells before and after."""

    new: str
    shows: Callable[[Agent], object]
    before: object
    after: object
    given: Mapping[str, str] = field(default_factory=dict)
    guests: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: GUESTS)


def pool(agent: Agent) -> str:
    return str(agent.cell().emulator_cpus)


def pool_and_source(agent: Agent) -> tuple[str, str]:
    return pool(agent), agent.cell().source


def pool_size(agent: Agent) -> int:
    return len(agent.cell().emulator_cpus)


def pins(agent: Agent) -> list[str]:
    """Return where the kernel has the emulator threads of each guest."""
    masks = (agent.fake.masks(uuid) for uuid, one in agent.fake.guests.items() if one.process)
    return sorted(",".join(map(str, sorted(own, key=str))) for own in masks)


def states(agent: Agent) -> list[str]:
    return sorted(str(guest.state) for guest in agent.result.plan.guests)


def verdicts(agent: Agent) -> list[tuple[str, str, bool]]:
    return [(guest.policy, guest.source, guest.managed) for guest in agent.result.plan.guests]


def size_after_a_departure(agent: Agent) -> int:
    """Return the size of a pool that carries one guest less; then it is back."""
    leaver = next(iter(agent.fake.guests))
    agent.fake.destroy(leaver)
    agent.settle()
    size = pool_size(agent)
    agent.fake.start(leaver)
    agent.settle()
    return size


def candidates(agent: Agent) -> str:
    """Return the candidates while a guest that is stopped has pCPU 0."""
    agent.fake.define("stopped", vcpupins={0: "0"})
    agent.settle()
    return str(agent.cell().candidates)


def iothreads(agent: Agent) -> set[CpuSet]:
    return set().union(*(agent.fake.masks(uuid, 1) for uuid in agent.fake.guests))


def pins_of_a_start(agent: Agent) -> int:
    before = len(agent.fake.pins)
    agent.start(OURS)
    return len(agent.fake.pins) - before


def billed(agent: Agent) -> float | None:
    return agent.daemon.metrics.registry.get_sample_value(
        "emupool_billed_cpus", {"cell": "0", "kind": "shared"}
    )


def long_until_the_next_look(agent: Agent) -> bool:
    return agent.daemon._patience() > 60


def reported(agent: Agent) -> tuple[bool, object]:
    """Return what status and gauge say of a dry run."""
    status = json.loads(agent.daemon.status())
    gauge = agent.daemon.metrics.registry.get_sample_value("emupool_dry_run")
    return status["dry_run"], gauge


def dry(agent: Agent) -> tuple[int, tuple[bool, object]]:
    return pins_of_a_start(agent), reported(agent)


def workers(agent: Agent) -> int:
    """Return the connections for pins that stay open."""
    return len(agent.daemon._pinner._workers)


def counted(agent: Agent) -> bool:
    """Tell whether a list came, and ask for one: a new connection makes what is under way void."""
    agent.daemon._lookout.ask()
    return agent.last is not None and agent.last.counted is not None


def probes(agent: Agent) -> set[tuple[int, int]]:
    """Return the keepalive of all connections: for events, for pins, and for lists."""
    agent.until(lambda: counted(agent))
    agent.until(lambda: len(agent.fake.connections) == 2 + workers(agent))
    return {connection.probes for connection in agent.fake.connections}


def returns(agent: Agent) -> bool:
    """Tell whether a connection that is lost is made again."""
    agent.fake.lose()
    agent.until(lambda: agent.last is not None and bool(agent.last.link or agent.last.failed))
    return agent.daemon._link is not None


def is_debugging(agent: Agent) -> bool:
    mark = agent.log.tell()
    logs.get("test").debug("probe.made")
    return agent.log.tell() > mark


def is_json(agent: Agent) -> bool:
    mark = agent.log.tell()
    logs.get("test").error("probe.made")
    return agent.log.getvalue()[mark:].startswith("{")


def asked(agent: Agent, uuid: str, place: str = "door") -> str | None:
    """Return what the hook is told of a guest that is about to start; None: nobody is there."""
    text = agent.fake.guests[uuid].xml()
    try:
        return ask(str(agent.file.with_name(place)), "prepare", text.encode(), 30.0)[0]
    except NoAnswer:
        return None


def is_answered(agent: Agent) -> bool:
    return asked(agent, agent.fake.define(next(agent.names), **OURS)) is not None


def admitted_of_three(agent: Agent) -> int:
    """Return how many of the same three are let in, none of which ever appears."""
    three = list(agent.fake.guests) or [agent.fake.define(name, **OURS) for name in "abc"]
    return [asked(agent, uuid) for uuid in three].count(ADMIT)


def hook_without_an_answer(agent: Agent) -> int:
    options = ("--config", str(agent.file), "--socket", "/nowhere", "--patience", "0")
    return call("guest", "prepare", "begin", "-", *options).status


OF_CELLS: Final = {
    "emulator_overcommit_ratio": Row("1", pool_size, 2, 3),
    "source": Row('"reserved"', pool_and_source, ("0-1", "free"), ("", "reserved")),
    "cpus": Row('"2-3"', pool, "0-1", "2-3"),
    "reserved_cpus": Row('"0-1"', pool, "0-1", "2-3"),
    "placement": Row(
        '"single"', pins, ["0-1"] * 3, ["0", "0", "1"], {"pool.placement": '"shared"'}
    ),
    "smt": Row(
        '"strict"',
        pool,
        "0",
        "2",
        {"pool.smt": '"any"', "pool.emulator_overcommit_ratio": "8"},
        {**GUESTS, "claimer": {"vcpupins": {0: "1"}}},
    ),
    "on_shortage": Row(
        '"leave"',
        states,
        ["overcommitted"] * 3,
        ["left", "placed", "placed"],
        {"pool.max_cpus": "1"},
    ),
    "min_cpus": Row("3", pool_size, 2, 3),
    "max_cpus": Row("1", pool_size, 2, 1),
    "shrink_delay": Row("3600", size_after_a_departure, 1, 2),
}
OTHERS: Final = {
    "libvirt.keepalive_interval": Row("60", probes, {(5, 3)}, {(60, 3)}),
    "libvirt.keepalive_count": Row("9", probes, {(5, 3)}, {(5, 9)}),
    "libvirt.reconnect": Row('"wait-for-socket"', returns, before=True, after=False),
    "libvirt.pin_workers": Row("5", workers, 3, 5),
    "pool.count_inactive": Row("false", candidates, "1-3", "0-3", guests={}),
    "pool.iothreads": Row(
        "true", iothreads, {cpus("7")}, {cpus("0-1")}, {"pool.iothreads": "false"}
    ),
    "guests.manage": Row(
        '["share"]',
        verdicts,
        [("share", "metadata", False)],
        [("share", "metadata", True)],
        guests=SHARED,
    ),
    "guests.infer": Row(
        "false",
        verdicts,
        [("isolate", "shape", True)],
        [("ignore", "default", False)],
        guests=PLAIN,
    ),
    "guests.default_policy": Row(
        '"isolate"',
        verdicts,
        [("ignore", "default", False)],
        [("isolate", "default", True)],
        guests=NOBODYS,
    ),
    "guests.rule": Row(
        '[{name = "nob*", policy = "isolate"}]',
        verdicts,
        [("ignore", "default", False)],
        [("isolate", "rule", True)],
        guests=NOBODYS,
    ),
    "billing.cpu_overcommit_ratio": Row("4", billed, 3 / 16, 3 / 4),
    "reconcile.interval": Row("5", long_until_the_next_look, before=True, after=False),
    "reconcile.dry_run": Row("true", dry, (1, (False, 0.0)), (0, (True, 1.0)), guests={}),
    "admission.enabled": Row("true", is_answered, before=False, after=True, guests={}),
    "admission.fail": Row(
        '"closed"', hook_without_an_answer, 0, 1, {"admission.enabled": "true"}, guests={}
    ),
    "admission.reservation": Row(
        "3600",
        admitted_of_three,
        3,
        2,
        {"admission.enabled": "true", "admission.reservation": "0", "pool.max_cpus": "1"},
        guests={},
    ),
    "log.level": Row('"debug"', is_debugging, before=False, after=True),
    "log.format": Row('"console"', is_json, before=True, after=False),
}
ROWS: Final = {
    **OTHERS,
    **{f"pool.{key}": row for key, row in OF_CELLS.items()},
    **{f"pool.cell.0.{key}": row for key, row in OF_CELLS.items()},
}
ELSEWHERE: Final = {"pool.on_stop", "admission.socket"}
"""Keys with a test of their own."""


def every_key() -> set[str]:
    """Return the keys that the settings have, by their own fields."""
    tree = Config()
    tables = {table.name: fields(getattr(tree, table.name)) for table in fields(tree)}
    found = {f"{table}.{key.name}" for table, known in tables.items() for key in known}
    cell = {key.name for key in fields(CellSettings)}
    nested = {"pool.default", "pool.cells", "guests.rules"}
    assert nested <= found
    return (
        found - nested
        | {"guests.rule"}
        | {f"pool.{key}" for key in cell}
        | {f"pool.cell.0.{key}" for key in cell}
    )


def test_every_key_is_here_and_in_one_way_only() -> None:
    told = [*ROWS, *ELSEWHERE, *RESTART]
    assert sorted(told) == sorted(every_key())


@pytest.mark.parametrize("key", ROWS)
def test_a_key_takes_effect(key: str, start: Callable[..., Agent]) -> None:
    row = ROWS[key]
    if key == "libvirt.reconnect" and daemon_runs():
        pytest.skip("host: has a libvirt daemon of its own")
    agent = start(row.given)
    for name, properties in row.guests.items():
        agent.start(properties, name)
    assert row.shows(agent) == row.before
    agent.reload({key: row.new})
    for _ in range(ROUNDS):  # a connection is made by another thread
        if row.shows(agent) == row.after:
            break
        agent.turn(0.02)
    assert row.shows(agent) == row.after
    for told in changed(agent):
        assert told["key"].startswith(key)
        assert told["needs_restart"] is False
    assert changed(agent)


def changed(agent: Agent) -> list[dict[str, Any]]:
    """Return what the log tells of keys that changed."""
    lines = [line for line in agent.log.getvalue().splitlines() if line.startswith("{")]
    return [event for event in map(json.loads, lines) if event["event"] == "config.changed"]


@pytest.mark.parametrize("key", sorted(RESTART))
def test_a_key_that_takes_no_effect_says_so_and_the_others_of_the_file_do(
    key: str, start: Callable[..., Agent]
) -> None:
    agent = start({k: value for k, value in BEFORE.items() if k.startswith("http.")})
    before = agent.result.plan, json.loads(agent.daemon.status())["config"]
    agent.reload({key: AFTER[key][0], "pool.min_cpus": "2"})
    told = {e["key"]: (e["new"], e["needs_restart"]) for e in changed(agent)}
    assert told == {key: (AFTER[key][1], True), "pool.min_cpus": (2, False)}
    after = json.loads(agent.daemon.status())["config"]
    before[1]["pool"]["min_cpus"] = 2
    assert after == before[1]
    uuid = agent.start(OURS)
    assert (pool_size(agent), pins(agent)) == (2, ["0-1"])
    assert agent.fake.record(uuid) == cpus("0-1")


def test_a_reload_moves_the_door(start: Callable[..., Agent]) -> None:
    agent = start({"admission.enabled": "true"})
    uuid = agent.fake.define("a", **OURS)
    assert asked(agent, uuid) == ADMIT
    agent.reload({"admission.socket": f'"{agent.file.with_name("other")}"'})
    agent.until(lambda: asked(agent, uuid, "other") == ADMIT)
    assert asked(agent, uuid) is None
    (told,) = changed(agent)
    assert (told["key"], told["needs_restart"]) == ("admission.socket", False)


def test_while_libvirt_is_away_the_hook_has_no_answer(start: Callable[..., Agent]) -> None:
    agent = start({"admission.enabled": "true"})
    uuid = agent.fake.define("a", **OURS)
    assert asked(agent, uuid) == ADMIT
    agent.fake.reachable = False
    agent.fake.lose()
    agent.until(lambda: agent.daemon._link is None)
    assert asked(agent, uuid) is None
    agent.fake.reachable = True
    agent.until(lambda: agent.daemon._link is not None and asked(agent, uuid) == ADMIT)


@pytest.mark.parametrize(("old", "new"), [("leave", "release"), ("release", "leave")])
def test_what_a_stop_does_is_what_the_last_reload_said(
    old: str, new: str, start: Callable[..., Agent]
) -> None:
    agent = start({"pool.on_stop": f'"{old}"'})
    agent.start(OURS)
    agent.reload({"pool.on_stop": f'"{new}"'})
    assert pins(agent) == ["0"]
    agent.end()
    assert pins(agent) == (["7"] if new == "release" else ["0"])


def test_fewer_pin_workers_keep_fewer_connections(start: Callable[..., Agent]) -> None:
    agent = start({"libvirt.pin_workers": "8"})
    agent.until(lambda: len(agent.fake.connections) == 1 + 8)
    agent.reload({"libvirt.pin_workers": "2"})
    agent.until(lambda: len(agent.fake.connections) == 1 + 2)
    agent.start(OURS)
    assert pins(agent) == ["0"]
    assert len(agent.fake.connections) == 1 + 2


def test_workers_that_a_reload_adds_are_not_made_while_libvirt_is_away(
    start: Callable[..., Agent],
) -> None:
    agent = start()
    agent.until(lambda: agent.fake.count("hand") == 3)
    agent.fake.reachable = False
    agent.fake.lose()
    agent.until(lambda: agent.daemon._link is None)
    agent.fake.log.clear()
    agent.write({**agent.given, "libvirt.pin_workers": "8", "libvirt.keepalive_count": "9"})
    agent.hup()
    agent.until(lambda: agent.last is not None and agent.last.failed is not None)
    assert agent.fake.count("hand") == 0  # it would wake a libvirtd that somebody stopped
    agent.fake.reachable = True
    agent.until(lambda: agent.daemon._link is not None)
    agent.until(lambda: probes(agent) == {(5, 9)})
    assert workers(agent) == 8


def test_a_new_keepalive_costs_no_connection_that_is_there(start: Callable[..., Agent]) -> None:
    agent = start()
    agent.fake.reachable = False  # libvirtd has no room for one more
    agent.write({**agent.given, "libvirt.keepalive_count": "9"})
    agent.hup()
    agent.until(lambda: agent.last is not None and agent.last.failed is not None)
    assert agent.daemon.ready() == (True, "ready")
    agent.start(OURS)
    assert pins(agent) == ["0"]
    agent.fake.reachable = True
    agent.until(lambda: probes(agent) == {(5, 9)})
    assert agent.daemon.ready() == (True, "ready")


def test_of_two_connections_at_once_one_is_closed(start: Callable[..., Agent]) -> None:
    agent = start()
    first, second = (agent.fake.link(agent.daemon._inbox.put) for _ in range(2))
    agent.daemon._inbox.put(LinkUp(first))
    agent.daemon._inbox.put(LinkUp(second))
    agent.turn()
    heard = {one for one in agent.fake.connections if one.hear is not None}
    assert heard == {second} == {agent.daemon._link}


# A bad file: keys that are good alone, and one or more that are not.

GOOD: Final = st.dictionaries(
    st.sampled_from(sorted(AFTER.keys() - {"pool.placement", "pool.max_cpus"})), st.none()
)
ALONE: Final = {name for name, (_, _, remedy) in ONE_KEY.items() if "need" in remedy} | {
    "clients' CA without TLS"
}
"""What another key can make good."""
BAD: Final = st.lists(st.sampled_from(sorted(ONE_KEY.keys() - ALONE)), min_size=1, max_size=2)


def image(agent: Agent) -> object:
    """Return all by which a daemon's future differs from another's, but for the time."""
    daemon = agent.daemon
    return (
        daemon._config,
        daemon._rebalancer.settings,
        daemon._rebalancer.deadline,
        daemon._rebalancer._memory,
        daemon._timer.interval,
        daemon._timer._next,
        daemon._pinner.workers,
        tuple(daemon._pinner._workers),
        agent.fake.probes,
        frozenset(agent.fake.connections),
        daemon._standing,
        agent.fake.count("link", "hand", "pin_emulator", "xml", "uuids", "discover"),
    )


def test_a_reload_that_is_refused_changes_nothing_at_all(start: Callable[..., Agent]) -> None:
    agent = start({"pool.shrink_delay": "3600", "log.level": '"error"'})
    uuids = [agent.start(properties, name) for name, properties in GUESTS.items()]
    agent.fake.destroy(uuids[0])
    agent.settle()  # and from now on a pool that is too large waits for its time
    assert (pool_size(agent), agent.cell().need) == (2, 1)
    agent.until(lambda: len(agent.fake.connections) == 1 + 3)

    @given(GOOD, BAD)
    @settings(max_examples=60)
    def refused(good: Mapping[str, None], bad: list[str]) -> None:
        before, plan, told = image(agent), agent.result.plan, agent.log.tell()
        lines = {key: AFTER[key][0] for key in good} | {ONE_KEY[b][0]: ONE_KEY[b][1] for b in bad}
        agent.write(lines)
        agent.hup()
        assert image(agent) == before
        events = [json.loads(line) for line in agent.log.getvalue()[told:].splitlines()]
        assert events
        assert {event["event"] for event in events} == {"config.refused"}
        agent.settle()
        assert agent.result.plan == plan
        assert not agent.result.steps

    refused()
    gauge = agent.daemon.metrics.registry.get_sample_value("emupool_config_last_reload_successful")
    assert gauge == 0
    agent.reload({"pool.min_cpus": "3"})
    assert pool_size(agent) == 3


def test_a_libvirtd_that_hangs_is_noticed_by_a_keepalive_that_came_with_a_reload(
    libvirtd: Libvirtd, tmp_path: Path
) -> None:
    patient = {"keepalive_interval": 3600, "keepalive_count": 3}
    with Service(libvirtd.uri, tmp_path, libvirt=patient) as service:
        service.configure(libvirt={"keepalive_interval": 1, "keepalive_count": 1})
        service.hup()
        wait(lambda: service.metric("libvirt_reconnects_total") >= 1, "a new connection")
        libvirtd.pause()
        try:
            wait(lambda: service.metric("libvirt_up") == 0, "the loss to be noticed")
        finally:
            libvirtd.resume()
        wait(service.ready, "the daemon to be ready again")
