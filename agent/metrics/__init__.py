"""The numbers that operators watch, as Prometheus scrapes them.

What is now (pools, guests, bills) comes from one frozen `Shown`, made anew from each plan by the
pure `shown` and swapped whole: a cell or pCPU that left leaves no series behind, and no scrape
sees half of one cycle and half of the next. What happened (counters, histograms) is counted where
it happens. A label whose values are an enum has all of them from the start, at 0: `rate()` does
not see the first step of a series that begins at 1.

Labels are bounded: cells and pCPUs of the host, enums, and fixed event names, of which an unknown
one counts as `other`. A guest's name or a CPU set is never a label.

`_created` series are cut where the registry collects: the switch that the library has for them is
global to the process.

The library brings servers and a client of its own, for pushing. Nobody here uses them, and with
what they import they are 2.6 MiB, a twentieth of this daemon: it is given hollow ones.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from agent import __version__
from agent.lean import without
from agent.metrics.gauges import GAUGES, Shown, shown, standing
from agent.transition import Drift, Kind, Reason

with without(hollow=("http.server", "urllib.error", "urllib.request", "wsgiref.simple_server")):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
    from prometheus_client import exposition as text_format
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.openmetrics import exposition as openmetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric

    from agent.cpuset import CellId
    from agent.metrics.gauges import Series

__all__ = ["CYCLES", "EVENTS", "OPENMETRICS", "OTHER", "TEXT", "Metrics", "Shown", "shown"]

OTHER: Final = "other"
CYCLES: Final = ("start", "event", "reconcile", "reload", "reconnect", "deadline", "cpu", OTHER)
"""What a cycle ran for."""
EVENTS: Final = (
    *("lifecycle", "tunable", "metadata", "job", "cpu"),
    *("timer", "signal", "connection", "step", OTHER),
)
"""What comes through the inbox."""

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_PREFIX: Final = "emupool_"

_PIN_SECONDS: Final = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Buckets. A healthy pin takes a millisecond, one that meets a job lock exactly 30 s."""
_WAKE_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class _Now:
    """Collects the gauges of the last `Shown`; a scrape reads that reference once."""

    def __init__(self) -> None:
        self.shown = Shown({"guests": standing(())})
        self.busy: dict[str, float] = {}

    def collect(self) -> Iterator[Metric]:
        series = dict(self.shown.series)
        series["pool_busy_ratio"] = self._busy(series.get("cpu_guests", ()))
        series["build_info"] = (((__version__,), 1.0),)
        for name, (text, labels) in GAUGES.items():
            family = GaugeMetricFamily(_PREFIX + name, text, labels=labels)
            for values, value in series.get(name, ()):
                family.add_metric(values, value)
            yield family

    def _busy(self, pooled: Iterable[Series]) -> tuple[Series, ...]:
        """Return what was measured for the cells that still have a pool."""
        cells = {labels[0] for labels, _ in pooled}
        return tuple(((cell,), ratio) for cell, ratio in self.busy.items() if cell in cells)


class _Counted:
    """Collects what was counted, less the `_created` series."""

    def __init__(self) -> None:
        self.metrics: list[Counter | Gauge | Histogram] = []

    def collect(self) -> Iterator[Metric]:
        for metric in self.metrics:
            for family in metric.collect():
                family.samples = [s for s in family.samples if not s.name.endswith("_created")]
                yield family


class Metrics:
    """All metrics of one daemon. Methods may be called while a scrape runs, from any thread."""

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Register everything with `registry`, a new one by default; `clock` is Unix time."""
        self.registry = registry or CollectorRegistry()
        self._now = _Now()
        self._counted = _Counted()
        self._count_steps()
        self._count_cycles()
        self._count_usage()
        self._watch()
        self.reload_done(ok=True, timestamp=clock())
        self.registry.register(self._now)
        self.registry.register(self._counted)
        ProcessCollector(registry=self.registry)

    def _count_steps(self) -> None:
        self._repins = self._counter("repins", "Pins that were set.", reason=Reason)
        self._failures = self._counter("repin_errors", "Pins that failed.", reason=Reason)
        self._drift = self._counter("drift", "What someone else changed.", kind=Drift)
        self._pinning = self._histogram("repin_seconds", "Duration of one pin.", _PIN_SECONDS)
        self._reaction = self._histogram(
            "event_to_pinned_seconds", "From a guest's event to its pin.", _WAKE_SECONDS
        )

    def _count_cycles(self) -> None:
        self._cycles = self._counter("cycles", "Cycles by what they ran for.", event=CYCLES)
        self._cycle = self._histogram("cycle_seconds", "Duration of one cycle.", _WAKE_SECONDS)
        self._success = self._gauge(
            "last_cycle_success_timestamp_seconds", "End of the last cycle without error; 0: none."
        )
        self._events = self._counter("events", "Events taken from the inbox.", event=EVENTS)
        self._depth = self._gauge("inbox_depth", "Events waiting in the inbox.")

    def _count_usage(self) -> None:
        self._ran = self._counter(
            "emulator_cpu_seconds", "Time that threads ran.", cell=(), kind=Kind
        )
        self._waited = self._counter(
            "emulator_wait_seconds", "Time that threads were ready but waited.", cell=(), kind=Kind
        )

    def _watch(self) -> None:
        self._up = self._gauge("libvirt_up", "1 while connected to libvirt.")
        self._reconnects = self._counter("libvirt_reconnects", "Connections made again.")
        self._dry = self._gauge("dry_run", "1 if nothing is pinned.")
        self._loaded = self._gauge(
            "config_last_reload_successful", "0 if the file was refused and the old one stays."
        )
        self._loaded_at = self._gauge(
            "config_last_reload_success_timestamp_seconds", "When the configuration was taken."
        )

    def _counter(self, name: str, text: str, **labels: Iterable[str]) -> Counter:
        """Make a counter; one that has a single label starts with all values of that."""
        counter = Counter(_PREFIX + name, text, tuple(labels), registry=None)
        if len(labels) == 1:
            for value in next(iter(labels.values())):
                counter.labels(value)
        self._counted.metrics.append(counter)
        return counter

    def _gauge(self, name: str, text: str) -> Gauge:
        gauge = Gauge(_PREFIX + name, text, registry=None)
        self._counted.metrics.append(gauge)
        return gauge

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(_PREFIX + name, text, buckets=buckets, registry=None)
        self._counted.metrics.append(histogram)
        return histogram

    # what is now

    def show(self, now: Shown) -> None:
        """Replace all gauges of cells and guests."""
        for (cell,), _ in now.series.get("pool_cpus", ()):
            for kind in Kind:
                self._ran.labels(cell, kind)
                self._waited.labels(cell, kind)
        self._now.shown = now

    def pool_busy(self, cell: CellId, ratio: float) -> None:
        """Set the share of time that a pool was not idle; shown while the cell has a pool."""
        self._now.busy = self._now.busy | {str(cell): ratio}

    def inbox_depth(self, depth: Callable[[], int]) -> None:
        """Have each scrape ask `depth`, which must not block."""
        self._depth.set_function(depth)

    def libvirt_up(self, up: bool) -> None:  # noqa: FBT001 - the value of a gauge
        """Set whether the connection stands."""
        self._up.set(up)

    def dry_run(self, dry: bool) -> None:  # noqa: FBT001 - the value of a gauge
        """Set whether nothing is pinned."""
        self._dry.set(dry)

    # what happened

    def repinned(self, reason: Reason, seconds: float) -> None:
        """Count one pin that was set, and how long that took."""
        self._repins.labels(reason).inc()
        self._pinning.observe(seconds)

    def repin_failed(self, reason: Reason) -> None:
        """Count one pin that was not set."""
        self._failures.labels(reason).inc()

    def drifted(self, kind: Drift) -> None:
        """Count one thing that someone else changed."""
        self._drift.labels(kind).inc()

    def cycle_done(self, event: str, seconds: float, now: float | None) -> None:
        """Count one cycle; `now` is the Unix time of its end if it had no error."""
        self._cycles.labels(event if event in CYCLES else OTHER).inc()
        self._cycle.observe(seconds)
        if now is not None:
            self._success.set(now)

    def event_seen(self, event: str, times: int = 1) -> None:
        """Count events taken from the inbox."""
        self._events.labels(event if event in EVENTS else OTHER).inc(times)

    def event_to_pinned(self, seconds: float) -> None:
        """Observe the time from a guest's event to its pin."""
        self._reaction.observe(seconds)

    def libvirt_reconnected(self) -> None:
        """Count one connection that was made again."""
        self._reconnects.inc()

    def reload_done(self, ok: bool, timestamp: float) -> None:  # noqa: FBT001 - the value of a gauge
        """Tell whether the configuration was taken, at the Unix time `timestamp`."""
        self._loaded.set(ok)
        if ok:
            self._loaded_at.set(timestamp)

    def usage(self, cell: CellId, kind: Kind, run_s: float, wait_s: float) -> None:
        """Add what threads of `kind` used since the last time, in seconds, never below 0."""
        self._ran.labels(cell, kind).inc(run_s)
        self._waited.labels(cell, kind).inc(wait_s)

    # telling

    def counters(self) -> dict[str, float]:
        """Return all counters as `emupool_NAME_total{label="value"}`: value, sorted."""
        found = {}
        for family in self._counted.collect():
            for sample in family.samples if family.type == "counter" else ():
                labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return dict(sorted(found.items()))

    def expose(self, accept: str) -> tuple[str, bytes]:
        """Return content type and body of a scrape whose `Accept` header is `accept`."""
        if _prefers_openmetrics(accept):
            body: bytes = openmetrics.generate_latest(self.registry)  # type: ignore[no-untyped-call]
            return OPENMETRICS, body
        return TEXT, text_format.generate_latest(self.registry)


def _prefers_openmetrics(accept: str) -> bool:
    """Tell whether OpenMetrics is asked for, at least as much as the older text.

    Negotiated here: the library echoes the client's version into the content type.
    """
    quality: dict[str, float] = {}
    for item in accept[:2000].split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        weights = [_weight(p.removeprefix("q=")) for p in parameters if p.startswith("q=")]
        quality[kind] = max(quality.get(kind, 0.0), *weights or [1.0])
    wanted = quality.get("application/openmetrics-text", 0.0)
    return wanted > 0 and wanted >= quality.get("text/plain", 0.0)


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
