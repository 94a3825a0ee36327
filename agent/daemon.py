"""The daemon: wires the parts, and turns wakes into cycles.

One thread decides: it waits for the inbox, and for nothing else but answers of libvirt. Order at
start: configuration and lock (the caller's), state file, HTTP, connect, one full cycle, drain the
inbox, ready. Without libvirt it is ready after `GRACE` all the same, so that a late libvirt kills
nobody; `/readyz` tells the two apart.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agent import config as configuration
from agent import footprint, logs, releasing, sdnotify
from agent.checkpoint import Checkpoint
from agent.connector import Connector, daemon_runs
from agent.cycle import PARTIAL, Cause
from agent.errors import EmupoolError, Held, HypervisorAway
from agent.events import CpusUnwatched, Inbox, Named, PinReturned, Reload, Stop, Timer, watch_cpus
from agent.following import settings
from agent.lookout import Doubt, Lookout
from agent.metrics import Metrics
from agent.observer import Observer
from agent.opinion import Opinion
from agent.pinner import Pinner
from agent.pool import OnStop
from agent.port import Topic
from agent.rebalancer import PATIENCE_AT_END, Rebalancer
from agent.status import Standing, status
from agent.telling import Teller, status_line
from agent.usage import EmulatorTime, PoolUsage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.config import Config
    from agent.cycle import CycleResult
    from agent.events import HostTold, Wake
    from agent.parts import Parts
    from agent.port import GuestEvent, Link

GRACE: Final = 10.0
"""Seconds for which readiness waits for libvirt."""
_AGAIN: Final = 1.0
"""Seconds until everything is looked at again, after libvirt could not tell all."""


class Daemon:
    """One per host; `run` returns when it was asked to stop."""

    def __init__(
        self,
        config: Config,
        parts: Parts,
        *,
        path: Path | None = None,
        override: Callable[[Config], Config] = lambda config: config,
    ) -> None:
        """Follow `config`, read again from `path` on SIGHUP and passed through `override`."""
        self._config = config
        self._path = path
        self._override = override
        self._log = logs.get("emupool")
        self._inbox = Inbox(parts.loop)
        self.metrics = Metrics()
        self.metrics.inbox_depth(self._inbox.depth)
        self._hypervisor = parts.hypervisor
        self._threads = parts.threads
        self._pinner = Pinner(
            parts.hypervisor.hand,
            parts.threads,
            lambda: self._inbox.put(PinReturned()),
            config.libvirt.pin_workers,
            stalled=lambda: self._lookout.waits(),  # noqa: PLW0108 - it is made below
        )
        self._observer = Observer(parts.sysfs, parts.threads)
        self._checkpoint = Checkpoint(config.state.path)
        memory = self._checkpoint.recall(lambda text: self._log.warning("state.unfit", error=text))
        self._recorder = parts.recorder(self._checkpoint)
        usage, spent = PoolUsage(), EmulatorTime()
        self._teller = Teller(self.metrics, usage, spent, parts.threads.times, self._recorder)
        self._rebalancer = Rebalancer(
            settings(config),
            self._observer,
            self._pinner,
            self._checkpoint,
            memory,
            mender=parts.mender,
        )
        self._connector = Connector(parts.hypervisor, self._inbox.put, self._may_connect)
        self._nursery = parts.nursery
        self._door = parts.door
        self._lookout = Lookout(parts.hypervisor.roster, self._inbox.put, parts.nursery)
        self._doubt = Doubt()
        self._opinion = Opinion(parts.hypervisor.cells, self._inbox.put)
        self._told: HostTold | None = None  # and not compared yet
        self._notify = sdnotify.connect(os.environ)
        self._timer = Timer(config.reconcile.interval)
        self._link: Link | None = None
        self._away = False  # as far as the log has told
        self._new = False  # the connection has not answered yet
        self._cycled = False
        self._looked = False  # at everything, over this connection
        self._postponed = False  # a look at everything, since libvirt did not tell all
        self._started = time.monotonic()
        self._told_ready = False
        told, dry = configuration.to_json(config), config.reconcile.dry_run
        self._standing = Standing(config.libvirt.uri, dry_run=dry, config=told)

    # what other threads may ask

    def ready(self) -> tuple[bool, str]:
        """Tell whether a full cycle was made and libvirt is there, and what is missing."""
        if not self._standing.connected:
            return False, "libvirt is away"
        return (True, "ready") if self._cycled else (False, "no full cycle yet")

    def status(self) -> bytes:
        """Return the `status` document."""
        counters = self.metrics.counters() | self._checkpoint.counters() | self._door.counters()
        return json.dumps(status(self._standing, counters, self._recorder.history)).encode()

    def page(self, still: bool) -> str:  # noqa: FBT001 - as the server asks
        """Return the status page; what draws it is loaded for the first who looks."""
        from agent.page import page  # noqa: PLC0415

        return page(status(self._standing, {}), still=still)

    # life

    def run(self) -> None:
        """Run until asked to stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._inbox.put(Stop()))
        signal.signal(signal.SIGHUP, lambda *_: self._inbox.put(Reload()))
        unwatched = watch_cpus(self._inbox.put)
        if unwatched is not None:
            self._inbox.put(CpusUnwatched(unwatched))
        if self._nursery is None:
            self._log.warning("starts.unwatched")
        self._connector.start()
        self._lookout.start()
        self._log.info("daemon.started", uri=self._config.libvirt.uri)
        try:
            while not self._turn(self._inbox.wait(self._patience())):
                pass
        finally:
            self._end()

    def _patience(self) -> float:
        """Return the seconds until time alone calls for something."""
        waits = [self._timer.remaining(), self._notify.until_due()]
        if self._link is not None and self._rebalancer.deadline is not None:
            waits.append(self._rebalancer.deadline - time.monotonic())
        if self._link is not None and self._doubt.due is not None:
            waits.append(self._doubt.due - time.monotonic())
        if not self._told_ready:
            waits.append(self._started + GRACE - time.monotonic())
        return max(0.0, min(waits))

    def _turn(self, wake: Wake) -> bool:
        """Deal with one wake; True when it is time to stop."""
        for topic, times in wake.counts.items():
            self.metrics.event_seen(topic, times)
        if wake.stop:
            return True
        for link in wake.outdated:
            link.close()
        if wake.unwatched is not None:
            self._log.warning("cpus.unwatched", why=wake.unwatched.why)
        if wake.failed is not None and self._link is None:
            self._gone(wake.failed.why)
        if wake.lost is not None and self._link is not None:
            self._lost(wake.lost.why)
        if wake.link is not None:
            self._connected(wake.link.link)
        wake.reload = wake.reload and self._reload()
        self._cycles(wake)
        self._count(wake)
        self._compare(wake)
        self._tell_ready()
        self._notify.watchdog()
        return False

    def _cycles(self, wake: Wake) -> None:
        cause = self._cause(wake)
        if cause is None:
            return
        if self._link is None:
            if self._timer.remaining() <= 0:
                self._timer.done()
            return
        if cause in PARTIAL and not self._looked:
            return  # the look at everything that is to come will see it
        named = Named.of(wake, self._is_echo)
        for uuid in named.fresh:
            heard = (one.at for one in wake.guests[uuid] if one.started or one.resumed)
            self._teller.arrived(uuid, min(heard))
        if cause is not Cause.EVENT:
            named.fresh.clear()  # with a full look a guest may be new to us that is not new
        if cause is Cause.EVENT and not named.guests and not wake.returned:
            return
        self._cycle(self._link, cause, named)
        if wake.reload and cause is not Cause.RELOAD and self._link is not None:
            self._cycle(self._link, Cause.RELOAD, Named())

    def _cause(self, wake: Wake) -> Cause | None:
        """Return what calls for a cycle, the most thorough first."""
        deadline = self._rebalancer.deadline
        due = self._timer.remaining() <= 0 or (self._postponed and wake.answered)
        first = wake.link is not None or (due and not self._looked)
        causes = (
            (Cause.RECONNECT if self._cycled else Cause.START, first),
            (Cause.RELOAD, wake.reload),
            (Cause.CPU, wake.cpus),
            (Cause.RECONCILE, due),
            (Cause.EVENT, bool(wake.guests or wake.starting) or wake.returned),
            (Cause.DEADLINE, deadline is not None and deadline <= time.monotonic()),
        )
        return next((cause for cause, holds in causes if holds), None)

    def _count(self, wake: Wake) -> None:
        """Compare a list of the running guests with what is known, or ask for one."""
        if self._link is None or not self._looked:
            return
        now = time.monotonic()
        if self._doubt.wants_list(now):
            self._lookout.ask()
        counted = wake.counted.ids if wake.counted is not None else None
        if counted is not None and self._doubt.weigh(self._observer.running(), counted, now):
            self._cycle(self._link, Cause.EVENT, Named(counted=counted))

    def _compare(self, wake: Wake) -> None:
        """Hold libvirt's view of the host against ours, once we have one; ask after the cycle."""
        if wake.link is not None:
            self._opinion.seek()
        self._told = wake.told or self._told
        if self._told is not None and self._standing.result is not None:
            self._teller.opinion(self._standing.result.host, self._told.cells)
            self._told = None

    def _is_echo(self, event: GuestEvent) -> bool:
        """Tell whether an event reports what we know already: our own pins, above all."""
        return event.topic is Topic.TUNABLE and self._rebalancer.expected(event.uuid, event.tuned)

    def _cycle(self, link: Link, cause: Cause, named: Named) -> None:
        again = False
        try:
            result = self._rebalancer.cycle(link, cause, named)
        except HypervisorAway as error:
            self._lost(str(error))
        except Held as error:
            again = True
            self._log.debug("cycle.postponed", cause=str(cause), why=str(error))
        except Exception as error:  # noqa: BLE001 - one cycle's surprise must not end the daemon
            self._teller.failed(cause, error)
        else:
            self._looked = self._looked or cause not in PARTIAL
            self._tell(result)
        self._answers()
        self._lookout.known = self._observer.running()
        self._lookout.watch(self._threads.partitions())  # they come and go with the guests
        self._postponed = again or (self._postponed and cause in PARTIAL)
        if again:
            self._timer.expire(_AGAIN)
        elif cause in {Cause.EVENT, Cause.DEADLINE}:
            self._doubt.happened(time.monotonic())
        elif cause is Cause.RELOAD:
            self._timer.expire()  # it acted at once on what is known; now look at everything
        else:
            self._timer.done()
            self._doubt.settle()

    def _tell(self, result: CycleResult) -> None:
        self._standing = replace(self._standing, result=result, at=time.time())
        self._cycled = True
        self._door.saw(result)
        self._teller.cycle(result, self._config.pool, self._config.billing)
        if result.cause not in PARTIAL:
            self._teller.used(result, iothreads=self._config.pool.iothreads)
        self._notify.status(status_line(result))

    def _tell_ready(self) -> None:
        """Tell systemd, after the first cycle and once the inbox is empty, or after the grace."""
        late = time.monotonic() - self._started >= GRACE
        if not self._told_ready and ((self._cycled and not self._inbox.depth()) or late):
            self._told_ready = True
            self._notify.ready()
            footprint.settle()
            self._log.info("daemon.ready", connected=self._link is not None)

    def _end(self) -> None:
        self._notify.stopping()
        self._connector.stop()
        self._lookout.stop()
        self._recorder.close()
        if self._link is not None and self._config.pool.on_stop is OnStop.RELEASE:
            releasing.at_stop(self._rebalancer, self._link)
        else:
            self._pinner.drain(PATIENCE_AT_END)
        self._rebalancer.close()
        if self._link is not None:
            self._link.close()
        self._pinner.stop()
        self._log.info("daemon.stopped")

    # libvirt comes and goes

    def _may_connect(self) -> bool:
        always = self._config.libvirt.reconnect is configuration.Reconnect.ALWAYS
        return always or daemon_runs()

    def _connected(self, link: Link) -> None:
        if self._link is not None:
            self._link.close()
        self._link = link
        self._looked = False
        self._rebalancer.reconnected()
        self._pinner.renew()
        self._lookout.renew()
        if self._cycled:
            self.metrics.libvirt_reconnected()
        self._stand(connected=True)
        self._new = True

    def _lost(self, why: str) -> None:
        """Let the connection go and ask for another; guests keep their pins."""
        if self._link is not None:
            self._link.close()
            self._link = None
        self._gone(why)
        self._connector.again()

    def _gone(self, why: str) -> None:
        if not self._away:
            self._log.warning("libvirt.away", uri=self._config.libvirt.uri, why=why)
        self._away = True
        self._stand(connected=False)

    def _answers(self) -> None:
        """Tell of a new connection: not before it answered, since it may be lost at once."""
        if self._new and self._link is not None:
            self._log.info("libvirt.connected", uri=self._config.libvirt.uri)
            self._new = self._away = False

    def _stand(self, *, connected: bool) -> None:
        self.metrics.libvirt_up(connected)
        self._standing = replace(self._standing, connected=connected)
        self._door.stand(connected=connected)

    # configuration

    def _reload(self) -> bool:
        """Take the file whole, or keep what there is and say why; True if it was taken."""
        self._notify.reloading()
        taken = True
        try:
            if self._path is not None:
                self._take(self._override(configuration.load(self._path)))
        except EmupoolError as error:
            taken = False
            self._teller.refused(error)
        self.metrics.reload_done(ok=taken, timestamp=time.time())
        self._notify.ready()
        return taken

    def _take(self, new: Config) -> None:
        self._teller.changed(configuration.changes(self._config, new))
        old, config = self._config.libvirt, configuration.effective(self._config, new)
        self._config = config
        logs.configure(config.log.level, config.log.format, sys.stderr)
        self._timer.interval = config.reconcile.interval
        self._pinner.resize(config.libvirt.pin_workers)
        if self._link is not None:
            self._pinner.warm_up()
        interval, count = config.libvirt.keepalive_interval, config.libvirt.keepalive_count
        if (interval, count) != (old.keepalive_interval, old.keepalive_count):
            self._hypervisor.keepalive(interval, count)
            self._connector.again()  # whatever is open keeps what it was opened with
        self._rebalancer.reconfigure(settings(config))
        told = configuration.to_json(config)
        self._standing = replace(self._standing, dry_run=config.reconcile.dry_run, config=told)
        self._door.reconfigure(config)
