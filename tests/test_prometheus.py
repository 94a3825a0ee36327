"""A real Prometheus watches real daemons: what it stores, which alerts fire, what is drawn of it.

It scrapes two daemons beside one libvirtd: one that pins, and one over TLS that runs dry.
"""

from __future__ import annotations

import math
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests import dashboard
from tests.certificates import CLIENT, SERVER
from tests.guests import wait_until
from tests.prometheus import Prometheus, reserved
from tests.service import SOON, Service, wait, wait_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.dashboard import Query
    from tests.guests import Guest
    from tests.libvirtd import Libvirtd

pytestmark = pytest.mark.real

ZERO, BOTH = frozenset({0}), frozenset({0, 1})
FIRST_SCRAPE: Final = SOON + 10.0
"""Seconds: Prometheus takes five to ten before it looks at its targets."""

RARELY: Final = {"interval": 600}
"""Else a reconcile may pin a guest before its start is announced, which is no reaction."""
OFTEN: Final = {"interval": 0.5}


class Scene(NamedTuple):
    """Two daemons that are watched, and the three guests that are always there."""

    prometheus: Prometheus
    libvirtd: Libvirtd
    service: Service
    node: str
    dry: str
    guests: list[Guest]

    def shows(self, value: float, metric: str, **labels: str) -> None:
        """Wait until Prometheus has `value` for the one such series of the daemon that pins."""
        pairs = [f'{name}="{text}"' for name, text in {"instance": self.node, **labels}.items()]
        query = f"{metric}{{{', '.join(pairs)}}}"
        wait(lambda: self.prometheus.value(query) == value, f"{query} to be {value}")


@pytest.fixture(scope="module")
def scene(_session_libvirtd: Libvirtd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    libvirtd, made = _session_libvirtd, tmp_path_factory.mktemp
    libvirtd.recover()
    guests = [libvirtd.guest(name, metadata_policy="isolate") for name in ("a", "b", "c")]
    with ExitStack() as stack:
        node, dry = (stack.enter_context(reserved()) for _ in range(2))
        prometheus = Prometheus(made("prometheus"), plain=[node], secure=[dry])
        stack.enter_context(prometheus)
        stack.callback(libvirtd.remove_all, guests)
        stack.callback(libvirtd.recover)
        for guest in guests[:2]:
            guest.define().start()
        http, cpus = _secure(made("tls"), dry), {"cpus": "0-1"}
        other = Service(libvirtd.uri, made("dry"), http=http, pool=cpus)
        other.spawn("--dry-run")
        stack.callback(other.kill)
        node_http = {"listen": node}
        service = Service(libvirtd.uri, made("node"), http=node_http, pool=cpus, reconcile=RARELY)
        stack.enter_context(service)
        wait_until(lambda: prometheus.value("sum(up)") == 2, FIRST_SCRAPE, "both to be scraped")
        guests[2].define().start()
        reaction = "event_to_pinned_seconds_count"
        wait(lambda: service.metric(reaction) == 1, "an arrival that a rate can see")
        service.configure(reconcile=OFTEN)
        service.hup()
        yield Scene(prometheus, libvirtd, service, node, dry, guests)


def _secure(folder: Path, listen: str) -> dict[str, str]:
    """Return settings of a server that asks for a certificate."""
    (folder / "server.pem").write_text(SERVER)
    (folder / "client.pem").write_text(CLIENT)
    server = f"{folder}/server.pem"
    return {
        "listen": listen,
        "tls_cert": server,
        "tls_key": server,
        "client_ca": f"{folder}/client.pem",
    }


def test_what_prometheus_stores_follows_guests_that_come_and_go(
    scene: Scene, start: Callable[..., Guest]
) -> None:
    scene.shows(3, "emupool_pool_guests", cell="0")
    scene.shows(2, "emupool_pool_cpus", cell="0")
    scene.shows(2, "emupool_cell_cpus", cell="0", state="pool")
    scene.shows(3, "emupool_cpu_guests", cell="0", cpu="1")
    scene.shows(1, "instance_cell:emupool_saved_cpus:current", cell="0")
    fourth = start("fourth")
    scene.shows(4, "emupool_pool_guests", cell="0")
    scene.shows(2, "instance_cell:emupool_saved_cpus:current", cell="0")
    wait_on(BOTH, fourth)
    scene.service.settle()
    arrivals = scene.service.metric("repins_total", reason="arrive")
    scene.shows(arrivals, "emupool_repins_total", reason="arrive")
    fourth.destroy()
    scene.guests[0].destroy()
    scene.shows(1, "emupool_pool_cpus", cell="0")
    scene.shows(1, "instance_cell:emupool_saved_cpus:current", cell="0")
    gone = f'emupool_cpu_guests{{instance="{scene.node}", cpu="1"}}'
    wait(lambda: scene.prometheus.value(gone) is None, "a pCPU that left to leave no series")
    scene.guests[0].start()
    scene.shows(3, "emupool_pool_guests", cell="0")


def test_a_fleet_saves_what_its_nodes_do_that_do_not_run_dry(scene: Scene) -> None:
    saved = "instance_cell:emupool_saved_cpus:current"
    scene.shows(1, saved, cell="0")
    dry = f'emupool_pool_guests{{instance="{scene.dry}"}}'
    wait(lambda: scene.prometheus.value(dry) == 3, "the dry run to be scraped with all three")
    wait(lambda: scene.prometheus.value(f'{saved}{{instance="{scene.dry}"}}') == 0, "the dry run")
    wait(lambda: scene.prometheus.value("job:emupool_saved_cpus:sum") == 1, "the sum of both")


def test_prometheus_can_evaluate_each_rule(scene: Scene) -> None:
    wait(
        lambda: all(rule["health"] != "unknown" for rule in scene.prometheus.rules()),
        "all rules to be evaluated",
    )
    assert [rule for rule in scene.prometheus.rules() if rule["health"] != "ok"] == []


@contextmanager
def _reloaded(scene: Scene, ratio: int) -> Iterator[None]:
    scene.service.configure(pool={"emulator_overcommit_ratio": ratio})
    scene.service.hup()
    try:
        yield
    finally:
        scene.service.configure(pool={"emulator_overcommit_ratio": 2})
        scene.service.hup()


def a_ratio_that_its_pcpus_cannot_keep(scene: Scene) -> AbstractContextManager[None]:
    return _reloaded(scene, 1)


def a_file_that_is_refused(scene: Scene) -> AbstractContextManager[None]:
    return _reloaded(scene, 0)


@contextmanager
def a_libvirtd_that_was_killed(scene: Scene) -> Iterator[None]:
    scene.libvirtd.kill()
    try:
        yield
    finally:
        scene.libvirtd.start()


@contextmanager
def a_daemon_that_was_killed(scene: Scene) -> Iterator[None]:
    scene.service.kill()
    try:
        yield
    finally:
        scene.service.start()


@contextmanager
def a_guest_that_claims_every_pcpu(scene: Scene) -> Iterator[None]:
    cpus = os.cpu_count() or 2
    pins = {cpu: str(cpu) for cpu in range(cpus)}
    claimer = scene.libvirtd.guest("claimer", vcpus=cpus, vcpupins=pins, metadata_policy="ignore")
    claimer.create()
    try:
        yield
    finally:
        claimer.destroy()


@pytest.mark.parametrize(
    ("alert", "state"),
    [
        ("EmupoolShortage", a_ratio_that_its_pcpus_cannot_keep),
        ("EmupoolReloadFailed", a_file_that_is_refused),
        ("EmupoolCollision", a_guest_that_claims_every_pcpu),
        ("EmupoolLibvirtAway", a_libvirtd_that_was_killed),
        ("EmupoolDown", a_daemon_that_was_killed),
    ],
)
def test_an_alert_fires_while_its_state_lasts(
    scene: Scene, alert: str, state: Callable[[Scene], AbstractContextManager[None]]
) -> None:
    firing = scene.prometheus.firing
    wait(lambda: scene.node not in firing(alert), f"{alert} to be silent")
    with state(scene):
        wait(lambda: scene.node in firing(alert), f"{alert} to fire")
    wait(lambda: scene.node not in firing(alert), f"{alert} to end")


def test_a_foreign_pin_and_a_dry_run_have_their_alerts(scene: Scene) -> None:
    scene.libvirtd.virsh("emulatorpin", scene.guests[0].name, "1", "--live")
    wait(lambda: scene.prometheus.firing("EmupoolDrift") == {scene.node}, "the drift to be told")
    assert scene.prometheus.firing("EmupoolDryRun") == {scene.dry}


def _has_data(scene: Scene, query: Query, text: str) -> bool:
    """Tell whether a query finds numbers, with the labels that are shown."""
    return any(
        not math.isnan(sample.value) and query.shows <= sample.labels.keys()
        for sample in scene.prometheus.query(text)
    )


@pytest.mark.parametrize("node", ["fleet", "one node"])
@pytest.mark.parametrize(
    "query", [*dashboard.choices(), *dashboard.queries()], ids=lambda query: query.name
)
def test_a_query_of_the_dashboard_has_data(scene: Scene, query: Query, node: str) -> None:
    nodes = [scene.node] if node == "one node" else [scene.node, scene.dry]
    text = dashboard.chosen(query.text, {"job": ["emupool"], "instance": nodes, "cell": ["0"]})
    wait(lambda: _has_data(scene, query, text), f"{text} to have data")


def test_what_the_dashboard_is_chosen_by_is_there_to_choose(scene: Scene) -> None:
    everything = {"job": ["emupool"], "instance": [scene.node, scene.dry], "cell": ["0"]}
    for query in dashboard.choices():
        (label,) = query.shows
        found = scene.prometheus.query(dashboard.chosen(query.text, everything))
        assert {sample.labels[label] for sample in found} >= set(everything[label])
