"""Metrics that are read at the moment they are asked for: from the spool's files, from pools."""

import contextlib
import time
from collections import Counter as Totals
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from capture.account import read_counts
from capture.spool import closed_segments
from gateway.pool import Pool

Pools = Callable[[], Mapping[str, Pool]]
DEPLOYMENT = ("deployment",)
ENGINE_UP = "retort_engine_up"  # every process sees the same engines


class PoolCounts(Collector):
    """What the engines of each deployment do."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        """Look at every pool."""
        up = GaugeMetricFamily(ENGINE_UP, "Engines that serve.", labels=DEPLOYMENT)
        outstanding = GaugeMetricFamily(
            "retort_outstanding_requests", "Requests in engines.", labels=DEPLOYMENT
        )
        waiting = GaugeMetricFamily(
            "retort_queued_requests", "Requests that wait for an engine.", labels=DEPLOYMENT
        )
        ejections = CounterMetricFamily(
            "retort_ejections", "Engines taken out of service for failures.", labels=DEPLOYMENT
        )
        retries = CounterMetricFamily(
            "retort_retries", "Requests tried again before their first byte.", labels=DEPLOYMENT
        )
        for name, pool in self._pools().items():
            labels = (name,)
            up.add_metric(labels, sum(member.state == "serving" for member in pool.members))
            outstanding.add_metric(labels, sum(member.outstanding for member in pool.members))
            waiting.add_metric(labels, pool.num_waiting)
            ejections.add_metric(labels, pool.counts.ejections)
            retries.add_metric(labels, pool.counts.retries)
        yield from (up, outstanding, waiting, ejections, retries)


class CaptureCounts(Collector):
    """``started = committed + dropped + in flight``, summed over the writers of a spool."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool

    def collect(self) -> Iterator[Metric]:
        """Read the account files as they are now."""
        started = CounterMetricFamily("retort_capture_started", "Rows begun.", labels=("table",))
        written = CounterMetricFamily(
            "retort_capture_written", "Rows written to the spool.", labels=("table",)
        )
        dropped = CounterMetricFamily(
            "retort_capture_dropped", "Rows lost.", labels=("table", "reason")
        )
        begun, kept, lost = (Totals[tuple[str, ...]]() for _ in range(3))
        for counts in read_counts(self._spool).values():
            begun[counts.table,] += counts.started
            kept[counts.table,] += counts.written
            for reason, number in counts.dropped.items():
                lost[counts.table, reason] += number
        for family, totals in ((started, begun), (written, kept), (dropped, lost)):
            for labels, total in totals.items():
                family.add_metric(labels, total)
        lag = GaugeMetricFamily(
            "retort_capture_lag_seconds",
            "Age of the oldest finished segment that is not committed yet.",
            lag_seconds(self._spool),
        )
        yield from (started, written, dropped, lag)


def lag_seconds(spool: Path) -> float:
    """Age of the oldest segment that waits to be committed; 0 without any."""
    ages = [0.0]
    for path in closed_segments(spool):
        with contextlib.suppress(FileNotFoundError):  # it has just been committed
            ages.append(time.time() - path.stat().st_mtime)
    return max(ages)


class _Families(Collector):
    """Metrics that have been collected already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Give them."""
        yield from self._families


def worker_families(registry: CollectorRegistry) -> list[Metric]:
    """What one of several processes adds to the metrics of the first."""
    return [family for family in registry.collect() if family.name != ENGINE_UP]


def exposition(registry: CollectorRegistry, theirs: Iterable[Metric]) -> bytes:
    """Metrics in Prometheus's text format, those of other processes added up with ours."""
    summed = CollectorRegistry()
    summed.register(_Families(add_up([*registry.collect(), *theirs])))
    return generate_latest(summed)


def add_up(families: Iterable[Metric]) -> list[Metric]:
    """Add samples of the same name and labels (pure); times at which counting began: the first."""
    sums: dict[str, Metric] = {}
    samples: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], Sample]] = {}
    for family in families:
        if family.name not in sums:
            sums[family.name] = Metric(family.name, family.documentation, family.type, family.unit)
        known = samples.setdefault(family.name, {})
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            before = known.get(key)
            known[key] = sample if before is None else _combined(before, sample)
    for name, family in sums.items():
        family.samples = list(samples[name].values())
    return list(sums.values())


def _combined(one: Sample, other: Sample) -> Sample:
    is_time = one.name.endswith("_created")
    value = min(one.value, other.value) if is_time else one.value + other.value
    return Sample(one.name, one.labels, value)
