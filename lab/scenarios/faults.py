"""What fails: libvirtd, guests, the agent itself, at any moment."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING

from lab.inside import guests
from lab.inside.waiting import check, wait_for

if TYPE_CHECKING:
    from lab.inside.lab import Figures, Lab


def libvirtd_restarts(lab: Lab) -> Figures:
    """A libvirtd is restarted, and killed while guests end: the agent comes back."""
    lab.use("2")
    lab.populate(8)
    lab.settle()
    main, before = lab.agent.pid(), lab.agent.metric("libvirt_reconnects_total")
    lab.libvirtd.restart()
    again = wait_for(
        lambda: lab.agent.metric("libvirt_reconnects_total") > before and lab.agent.ready(),
        "a reconnect",
    )
    lab.start(lab.newcomer())
    lab.settle("all pins after a restart of libvirtd")
    cursor, before = lab.agent.now(), lab.agent.metric("libvirt_reconnects_total")
    lab.libvirtd.kill()
    victim = lab.present[0]
    os.kill(lab.node.pid(victim), signal.SIGKILL)
    del lab.guests[victim.name]
    lab.libvirtd.start()
    wait_for(
        lambda: lab.agent.metric("libvirt_reconnects_total") > before and lab.agent.ready(),
        "a reconnect after libvirtd was killed",
    )
    lab.settle("all pins after libvirtd was killed")
    check(lab.agent.events("libvirt.away", cursor), "the loss is not logged")
    check(lab.agent.pid() == main, "the agent was started anew")
    return {"reconnect": f"{again:.1f}s"}


def libvirtd_hangs(lab: Lab) -> Figures:
    """A libvirtd that hangs is noticed by keepalive, and the agent does not hang with it."""
    lab.use("2", {"libvirt": {"keepalive_interval": 3, "keepalive_count": 2}})
    lab.populate(4)
    lab.settle()
    main = lab.agent.pid()
    daemon = lab.libvirtd.pid
    os.kill(daemon, signal.SIGSTOP)
    try:
        took = wait_for(lambda: lab.agent.metric("libvirt_up") == 0, "the agent to notice")
        check(lab.agent.get("/healthz")[0] == 200, "it does not answer")
        check(lab.agent.get("/readyz")[0] == 503, "it says that it is ready")
    finally:
        os.kill(daemon, signal.SIGCONT)
    wait_for(lab.agent.ready, "the agent to be back")
    lab.settle()
    check(lab.agent.pid() == main, "the agent was started anew")
    return {"noticed": f"{took:.0f}s"}


def guests_die(lab: Lab) -> Figures:
    """Guests whose QEMU is killed free their claims and their places at once."""
    lab.use("1")
    present = lab.populate(12)
    lab.settle()
    for guest in present[::3]:
        os.kill(lab.node.pid(guest), signal.SIGKILL)
        del lab.guests[guest.name]
    lab.settle("the pools without the guests that died")
    return {"killed": len(present[::3]), "left": len(lab.present)}


class _Storm(threading.Thread):
    """Arrivals and departures without end, until it is told to stop."""

    def __init__(self, lab: Lab, dice: random.Random) -> None:
        super().__init__(daemon=True)
        self.lab, self.dice = lab, dice
        self.stopped = threading.Event()
        self.steps = 0
        self.error: Exception | None = None

    def run(self) -> None:
        """Start and end guests."""
        try:
            while not self.stopped.is_set():
                self.steps += 1
                present = self.lab.present
                if len(present) > 10 or (len(present) > 4 and self.dice.random() < 0.5):
                    self.lab.end(self.dice.choice(list(present)))
                else:
                    self.lab.start(
                        self.lab.guest(1000 + self.steps, self.dice.choice(sorted(self.lab.cells)))
                    )
        except Exception as error:  # noqa: BLE001 - told by the scenario
            self.error = error


def killed_in_a_storm(lab: Lab) -> Figures:
    """The agent is killed at random moments of a storm: at its end each pin is right.

    And so is each recorded original: the guests get them back.
    """
    lab.use("2.5")
    lab.populate(6)
    lab.settle()
    dice = random.Random(f"{lab.machine} storm")
    storm = _Storm(lab, dice)
    storm.start()
    kills = 50 if lab.full else 10
    for _ in range(kills):
        wait_for(lambda: lab.agent.pid() != 0, "the agent to be there")
        time.sleep(dice.uniform(0, 0.5 * lab.slowness))  # in its start, or in the storm
        lab.agent.kill()
    storm.stopped.set()
    storm.join(120)
    check(storm.error is None and not storm.is_alive(), f"the storm itself failed: {storm.error}")
    wait_for(lab.agent.ready, "the agent to be ready", 240)
    lab.settle("each pin to be right after the storm")
    pins = lab.pins()
    released(lab)
    return {"kills": kills, "steps": storm.steps, "guests": len(lab.present), "threads": pins}


def released(lab: Lab) -> None:
    """Stop the agent, have every guest's original pins back, judge them, and start it again."""
    lab.agent.stop()
    lab.agent.run("release")
    wrong = []
    for guest in lab.present:
        now = lab.node.threads(guest)
        if guests.masks(now, "emulator") != {guest.original}:
            wrong.append(f"{guest.name}: {now}, the original is {sorted(guest.original)}")
        if guest.iothread is not None and guests.masks(now, "iothread1") != {guest.iothread}:
            wrong.append(f"{guest.name}: {now}, the iothread's is {sorted(guest.iothread)}")
    check(not wrong, "\n  ".join(("not as they were started:", *wrong)))
    lab.agent.start()
    lab.settle("the agent to pin them again")
