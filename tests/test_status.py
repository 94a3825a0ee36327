"""The status is made from one frozen result, so whoever asks holds up nobody."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent.config import Config, to_json
from agent.metrics import Metrics
from agent.page import page
from agent.status import Standing, status
from tests.node import DELAY, Node, cpus
from tests.schemas import validated
from tests.web import ANSWERS, HEALTH, connect, get, read, rest, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.cycle import CycleResult


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "state.json")
    yield made
    made.stop()


def standing(result: CycleResult) -> Standing:
    return Standing("qemu:///system", result=result, at=1.7e9, config=to_json(Config()))


def test_what_was_told_of_a_cycle_stays_true_whatever_the_next_ones_do(node: Node) -> None:
    gone, moved = node.start("gone"), node.start("moved", iothreads=1, iothreadpins={1: "7"})
    then = standing(node.cycle())
    told = json.dumps(status(then, {}))
    shown = page(status(then, {}))
    validated("status", json.loads(told))
    node.fake.destroy(gone)
    node.fake.undefine(gone)
    node.fake.label(moved, "ignore")
    for number in range(9):
        node.start(f"new-{number}", claim=number if number < 3 else None)
    node.fake.unplug(cpus("3"))
    node.cycle()
    node.wait(DELAY)
    now = standing(node.cycle())
    assert json.dumps(status(now, {})) != told
    assert json.dumps(status(then, {})) == told
    assert page(status(then, {})) == shown


def test_a_cycle_waits_for_no_answer_and_an_answer_is_of_one_cycle(node: Node) -> None:
    metrics = Metrics()
    last = [standing(node.cycle())]
    asked, go_on = threading.Event(), threading.Event()

    def answer() -> bytes:
        of = last[0]
        asked.set()
        assert go_on.wait(60)
        return json.dumps(status(of, metrics.counters())).encode()

    with (
        running(answers=replace(ANSWERS, status=answer)) as server,
        closing(connect(server)) as sock,
    ):
        sock.sendall(HEALTH.replace(b"healthz", b"api/v1/status"))
        try:
            assert asked.wait(10)
            uuid = node.start("guest")
            last[0] = standing(node.cycle())  # while the answer is made
            assert [call.uuid for call in node.fake.pins] == [uuid]
        finally:
            go_on.set()
        assert json.loads(read(rest(sock)).body)["guests"] == []
        (row,) = json.loads(get(server, "/api/v1/status").body)["guests"]
        assert (row["uuid"], row["state"]) == (uuid, "placed")
