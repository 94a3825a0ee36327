"""The hook where it belongs: called by a real libvirtd, answered by a daemon beside it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import libvirt
import pytest

from agent import admit
from tests.guests import Guest, wait_until
from tests.libvirtd import Libvirtd
from tests.service import Service, wait, wait_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.real

ZERO: Final = frozenset({0})
HOOK: Final = Path(admit.__file__).read_text()
FULL: Final = (
    "emupool: NUMA cell 0 is full at emulator_overcommit_ratio 1: with this guest its pool, 0,"
    " would have to carry weight 2"
)


@pytest.fixture(scope="module")
def hooked() -> Iterator[Libvirtd]:
    """A libvirtd with a hook, which each test has to make its own."""
    with Libvirtd() as started:
        started.hook("#!/bin/sh\n")
        yield started


class Site:
    """A compute node whose pool takes one guest, with the hook installed as it is shipped."""

    def __init__(self, libvirtd: Libvirtd, folder: Path) -> None:
        self.libvirtd = libvirtd
        self.folder = folder
        self.guests: list[Guest] = []
        self.service = Service(
            libvirtd.uri,
            folder,
            pool={"emulator_overcommit_ratio": 1, "max_cpus": 1, "cpus": "0-1"},
            admission={"enabled": True, "socket": str(folder / "door")},
        )

    def install(self, patience: float = 30.0) -> None:
        """Install the hook, with other places and, on a machine this busy, more patience."""
        text = HOOK.replace(f'"{admit.SOCKET}"', f'"{self.folder}/door"')
        text = text.replace(f'"{admit.CONFIG}"', f'"{self.service.config}"')
        text = text.replace(f"PATIENCE: Final = {admit.PATIENCE}", f"PATIENCE: Final = {patience}")
        assert str(patience) in text
        self.libvirtd.hook(text)

    def define(self, name: str, **properties: Any) -> Guest:  # noqa: ANN401 - of `guest_xml`
        guest = self.libvirtd.guest(
            name, **{"metadata_policy": "isolate", "emulatorpin": "1", **properties}
        )
        self.guests.append(guest.define())
        return guest

    def refusal(self, guest: Guest) -> str:
        """Return what an operator sees of a start that fails."""
        with pytest.raises(subprocess.CalledProcessError) as failed:
            self.libvirtd.virsh("start", guest.name)
        assert not guest.is_active()
        return " ".join(failed.value.stderr.split())

    def wait_for(self, guests: int) -> None:
        """Wait until the daemon knows that so many run."""
        wait(lambda: self.service.status()["cells"][0]["guests"] == guests, f"{guests} to be known")

    def fail(self, rule: str) -> None:
        self.service.configure(admission={"fail": rule})

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Freeze the daemon as long as the block runs."""
        pid = self.service.process.pid
        os.kill(pid, signal.SIGSTOP)
        status = Path(f"/proc/{pid}/status")
        wait_until(lambda: "State:\tT" in status.read_text(), what="the daemon stops")
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def site(hooked: Libvirtd, tmp_path: Path) -> Iterator[Site]:
    made = Site(hooked, tmp_path)
    made.install()
    with made.service:
        yield made
    hooked.recover()
    hooked.remove_all(made.guests)


def test_a_start_beyond_the_ratio_is_refused_and_tells_why(site: Site) -> None:
    first, second = site.define("first"), site.define("second")
    first.start()
    wait_on(ZERO, first)
    told = site.refusal(second)
    assert "Hook script execution failed" in told
    assert FULL in told
    assert "raise pool.emulator_overcommit_ratio" in told
    first.destroy()
    site.wait_for(0)
    second.start()
    wait_on(ZERO, second)
    site.wait_for(1)
    first.start()  # it is known, so it starts whatever the ratio says
    wait_on(ZERO, first, second)
    counters = site.service.status()["counters"]
    assert counters['emupool_admissions_total{state="admitted"}'] == 3
    assert counters['emupool_admissions_total{state="refused"}'] == 1
    assert counters['emupool_admissions_total{state="unknown"}'] == 0
    events = [e["event"] for e in site.service.events() if e["event"].startswith("guest.")]
    assert events == ["guest.admitted", "guest.refused", "guest.admitted", "guest.admitted"]


def test_of_ten_starts_at_once_one_gets_the_last_place(site: Site) -> None:
    guests = [site.define(str(number)) for number in range(10)]

    def start(guest: Guest) -> tuple[int, str]:
        conn = libvirt.open(site.libvirtd.uri)
        try:
            conn.lookupByUUIDString(guest.uuid).create()
        except libvirt.libvirtError as error:
            return int(error.get_error_code()), str(error)
        else:
            return 0, ""
        finally:
            conn.close()

    with ThreadPoolExecutor(len(guests)) as crowd:
        told = sorted(crowd.map(start, guests))
    assert [code for code, _ in told] == [0] + [libvirt.VIR_ERR_HOOK_SCRIPT_FAILED] * 9
    assert all(FULL in error for _, error in told[1:])
    (winner,) = [guest for guest in guests if guest.is_active()]
    wait_on(ZERO, winner)


def test_without_a_daemon_the_rule_decides(site: Site) -> None:
    guests = [site.define(name) for name in ("first", "second")]
    site.service.stop()
    site.fail("closed")
    assert re.search(
        r"door: No such file or directory, and admission.fail is closed: start the daemon, or set"
        r' admission.fail = "open" in \S+/config.toml',
        site.refusal(guests[0]),
    )
    site.fail("open")
    for guest in guests:
        guest.start()
    site.service.start()
    wait_on(ZERO, *guests)  # beyond the ratio, and reported as a shortage
    for guest in guests:
        wait(
            lambda guest=guest: site.service.guest(guest.uuid)["state"] == "overcommitted",  # type: ignore[misc]
            "the shortage to be told",
        )


def test_a_daemon_that_hangs_is_not_waited_for(site: Site) -> None:
    site.install(patience=admit.PATIENCE)
    guests = [site.define(name) for name in ("first", "second")]
    with site.hung():
        guests[0].start()
        site.fail("closed")
        assert "door: no answer within 0.1 s, and admission.fail is closed" in site.refusal(
            guests[1]
        )
    wait_on(ZERO, guests[0])


def test_no_guest_dies_when_libvirtd_starts_again_though_nobody_may_start(site: Site) -> None:
    guest = site.define("guest").start()
    wait_on(ZERO, guest)
    site.service.stop()
    site.fail("closed")
    pid = guest.pid
    site.libvirtd.restart()
    wait_until(guest.is_active, what="libvirtd to find the guest")
    assert guest.pid == pid


def test_an_image_with_a_pin_from_elsewhere_starts_and_lands_in_the_pool(site: Site) -> None:
    elsewhere: dict[str, Any] = {"iothreads": 1, "iothreadpins": {1: "1"}, "vcpu_cpuset": "0-1"}
    guest = site.define("guest", **elsewhere)
    image = str(site.folder / "image")
    guest.start()
    wait_on(ZERO, guest)
    guest.domain.save(image)
    conn = site.libvirtd.conn
    text = conn.saveImageGetXMLDesc(image)
    foreign = re.sub(r"(pin [^>]*cpuset=')[^']*", r"\g<1>77", text)
    assert foreign.count("'77'") == 2
    conn.saveImageDefineXML(image, foreign)
    site.libvirtd.hook("#!/bin/sh\n")
    with pytest.raises(libvirt.libvirtError, match="cpuset"):
        conn.restore(image)
    site.install()
    conn.restore(image)
    wait_on(ZERO, guest)
    assert guest.masks("iothread1") == {ZERO}
    told = [e for e in site.service.events() if e["event"] == "guest.repinned"]
    assert [event["pins"] for event in told] == [{"emulator": "0", "iothread 1": "0"}]


def test_a_guest_that_migrates_here_with_a_pin_of_there_lands_in_the_pool(
    site: Site, make_guest: Callable[..., Guest]
) -> None:
    site.service.configure(pool={"cpus": "0"})
    site.service.hup()
    wait(lambda: site.service.saw("config.changed"), "the reload")
    there = make_guest("guest", metadata_policy="isolate", emulatorpin="1").define().start()
    dummy = site.define("dummy", metadata_policy="float").start()
    if dummy.domain.ID() + 1 == there.domain.ID():  # their cgroups would have the same name
        there.destroy()
        there.start()
    assert there.masks() == {frozenset({1})}
    here = Guest(site.libvirtd, there.xml)
    site.guests.append(here)
    where = {libvirt.VIR_MIGRATE_PARAM_URI: f"unix:{site.folder}/migration"}
    there.domain.migrate3(site.libvirtd.conn, where, libvirt.VIR_MIGRATE_LIVE)
    wait_on(ZERO, here)
    told = [e for e in site.service.events() if e["event"].startswith("guest.")]
    assert [event["event"] for event in told[-2:]] == ["guest.repinned", "guest.admitted"]
    assert told[-2]["pins"] == {"emulator": "0"}
