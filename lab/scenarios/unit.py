"""The daemon as a systemd unit: it starts, is confined, reloads, restarts, and is watched."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from lab.inside import guests, host, systemd
from lab.inside.agent import uptime
from lab.inside.waiting import check, wait_for

if TYPE_CHECKING:
    from lab.inside.agent import Metrics
    from lab.inside.lab import Figures, Lab

_SYS_NICE = 1 << 23
_TROUBLE = ("cycle.failed", "error.uncaught", "answer.failed", "cpus.unwatched", "starts.unwatched")


def _in_order_at_once(lab: Lab, when: str) -> None:
    """Fail if any pin is wrong now: nothing is waited for."""
    wrong = lab.complaints()
    check(not wrong, "\n  ".join((f"{when}:", *wrong)))


def starts(lab: Lab) -> Figures:
    """READY comes after a full cycle that saw every guest; the status has all cells."""
    lab.clear()
    lab.use("4")
    lab.agent.stop()
    lab.populate(2 * len(lab.cells))
    cursor = lab.agent.now()
    began = uptime()
    systemd.ctl("start", systemd.UNIT)
    took = uptime() - began
    in_time = lab.agent.ready()
    if in_time:  # else the first cycle took longer than the ten seconds that READY waits for it
        check(lab.agent.metric("cycles_total", event="start") == 1, "READY came before a cycle")
        seen = {row["name"] for row in lab.agent.status()["guests"]}
        check(seen == set(lab.guests), f"the first cycle saw {seen}")
    wait_for(lab.agent.ready, "the first cycle")
    late = lab.settle()  # in here a pin may take longer than the 40 ms that a cycle waits for it
    check(not lab.agent.events("error.uncaught", cursor), "it threw an error")
    check("guests" in systemd.show("StatusText")["StatusText"], "systemctl shows no status line")
    document = json.loads(lab.agent.run("status", "--json"))
    cells = {row["id"]: row for row in document["cells"]}
    check(set(cells) == set(lab.cells), f"the status has the cells {sorted(cells)}")
    for cell, row in cells.items():
        check(
            host.parse(row["pool_now"]) == lab.pool(cell),
            f"cell {cell}: the status says {row['pool_now']}, the kernel {sorted(lab.pool(cell))}",
        )
    picture = lab.agent.run("status")
    check(all(f"{guest.name}" in picture for guest in lab.present), f"a guest lacks:\n{picture}")
    return {
        "start": f"{took:.0f}s",
        "in_time": in_time,
        "pinned_after": f"{late:.1f}s",
        "guests": len(lab.present),
        "threads": lab.pins(),
    }


def confined(lab: Lab) -> Figures:
    """The unit's hardening holds, and breaks no function: masks, files, metrics, CPU events."""
    lab.use("4")
    lab.populate(2 * len(lab.cells))
    lab.settle()
    main = lab.agent.pid()
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{main}/status").read_text().splitlines()
    )
    check(int(status["CapEff"], 16) == _SYS_NICE, f"its capabilities are {status['CapEff']}")
    check(int(status["CapBnd"], 16) == _SYS_NICE, f"they are bound by {status['CapBnd']}")
    check((status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), "it may gain privileges")
    check(not status["Uid"].startswith("0"), "it runs as root")
    cursor = lab.agent.now()
    before = lab.agent.metrics()
    # Widened pools: on kernels since 6.2 threads only follow if the daemon may loosen them.
    lab.use("0.5" if len(lab.cells) == 4 else "1")
    lab.settle("the wider pools to be followed by each thread")
    cpu = max(lab.pool(max(lab.cells)))
    host.set_online(cpu, on=False)
    wait_for(
        lambda: lab.agent.metric("cycles_total", event="cpu") > _of(before, "cpu"), "a CPU event"
    )
    lab.settle("the pools to do without a pCPU")
    host.set_online(cpu, on=True)
    lab.settle("the pCPU to be back")
    check(lab.agent.state.stat().st_size > 0, "no state file")
    for event in _TROUBLE:
        found = lab.agent.events(event, cursor)
        check(not found, f"{event}: {found}")
    exposed = host.run("systemd-analyze", "--no-pager", "security", systemd.UNIT)
    told = systemd.show("MemoryCurrent", "CPUUsageNSec")
    return {
        "exposure": exposed.strip().splitlines()[-1].rpartition(": ")[2].split()[0],
        "memory_MiB": round(int(told["MemoryCurrent"]) / 2**20),
        "cpu_s": round(int(told["CPUUsageNSec"]) / 1e9, 1),
    }


def _of(metrics: Metrics, event: str) -> float:
    return metrics.get("cycles_total", {}).get(frozenset({("event", event)}), 0.0)


def reloads(lab: Lab) -> Figures:
    """A reload puts a new ratio in force, and a broken file changes nothing."""
    lab.use("4")
    lab.populate(2 * len(lab.cells))
    lab.settle()
    main = lab.agent.pid()
    lab.use("1")
    took = lab.settle("a new ratio to be in force")
    before = {cell: lab.pool(cell) for cell in lab.cells}
    cursor = lab.agent.now()
    lab.agent.config.write_text('[pool]\nemulator_overcommit_ratio = 0\nsauce = "free"\n')
    lab.agent.hup()
    wait_for(
        lambda: lab.agent.metric("config_last_reload_successful") == 0, "the file to be refused"
    )
    said = lab.agent.events("config.refused", cursor)
    check("emulator_overcommit_ratio" in json.dumps(said), f"what is wrong is not said: {said}")
    check("sauce" in json.dumps(said), f"not everything that is wrong is said: {said}")
    check(lab.agent.pid() == main, "a broken file ended it")
    lab.settle("all to stay as it was")
    check(before == {cell: lab.pool(cell) for cell in lab.cells}, "a broken file moved guests")
    lab.use("4")
    check(lab.agent.metric("config_last_reload_successful") == 1, "a good file is not taken again")
    lab.settle()
    check(lab.agent.pid() == main, "it was started anew")
    return {"reload": f"{took:.1f}s"}


def keeps_pins(lab: Lab) -> Figures:
    """A restart and a stop leave every pin as it is."""
    lab.use("2")
    lab.populate(2 * len(lab.cells))
    lab.settle()
    pins = {guest: lab.node.recorded(guest) for guest in lab.present}
    cursor = lab.agent.now()
    lab.agent.restart()
    _in_order_at_once(lab, "after a restart")
    check(lab.agent.total("repins_total") == 0, "a restart moved guests")
    check(lab.agent.events("daemon.stopped", cursor), "the end was not clean")
    lab.agent.stop()
    for guest, pin in pins.items():
        now = guests.masks(lab.node.threads(guest), "emulator")
        check(now == {pin}, f"{guest.name}: {now} after the stop, {pin} before")
    lab.agent.start()
    _in_order_at_once(lab, "after a stop and a start")
    return {"guests": len(pins)}


def hangs(lab: Lab) -> Figures:
    """A daemon that hangs is ended by systemd's watchdog, started again, and does its work."""
    lab.use("2")
    lab.populate(len(lab.cells))
    lab.settle()
    main = lab.agent.pid()
    drop_in = Path("/run/systemd/system/emupool.service.d/watchdog.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text("[Service]\nWatchdogSec=30\n")  # as the unit's, but sooner
    systemd.ctl("daemon-reload")
    lab.agent.restart()
    main, restarts = lab.agent.pid(), int(systemd.show("NRestarts")["NRestarts"])
    cursor = lab.agent.now()
    os.kill(main, signal.SIGSTOP)
    guest = lab.start(lab.newcomer())
    took = wait_for(
        lambda: lab.agent.pid() not in {0, main} and lab.agent.ready(),
        "systemd to start it again",
        300,
    )
    check("Watchdog timeout" in lab.agent.journal(cursor), "it was not the watchdog")
    check(int(systemd.show("NRestarts")["NRestarts"]) == restarts + 1, "it was restarted twice")
    lab.settle(f"{guest.name}, which came meanwhile, to be pinned")
    drop_in.unlink()
    drop_in.parent.rmdir()
    systemd.ctl("daemon-reload")
    lab.agent.restart()
    return {"back": f"{took:.0f}s"}
