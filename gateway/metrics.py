"""Prometheus metrics of the gateway, with bounded labels: route, deployment, role, reason."""

from collections import Counter as Totals
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from capture.account import read_counts
from gateway.errors import GatewayError
from gateway.exchange import Exchange
from gateway.supervisor import Health

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
WHERE = ("route", "deployment", "role")


@dataclass(frozen=True, slots=True)
class Metrics:
    """What the gateway counts."""

    registry: CollectorRegistry
    requests: Counter
    refused: Counter
    in_flight: Gauge
    ttft: Histogram
    duration: Histogram
    mirrored: Counter
    late: Counter
    engine_up: Gauge
    engine_crashes: Counter
    _ends: dict[tuple[str, ...], "_Ends"] = field(default_factory=dict)

    @classmethod
    def create(cls, spool: Path) -> "Metrics":
        """Make a registry of our own; the spool's counts are read from its account files."""
        registry = CollectorRegistry()
        registry.register(CaptureCounts(spool))
        counted = (*WHERE, "status")
        return cls(
            registry=registry,
            requests=Counter("retort_requests", "Requests ended.", counted, registry=registry),
            refused=Counter(
                "retort_refused_requests",
                "Requests refused before any engine was asked.",
                ("reason",),
                registry=registry,
            ),
            in_flight=Gauge("retort_in_flight_requests", "Now.", ("route",), registry=registry),
            ttft=_seconds("retort_ttft_seconds", "Time to first byte.", registry),
            duration=_seconds("retort_request_seconds", "Time to last byte.", registry),
            mirrored=Counter(
                "retort_mirrored", "Shadow requests.", ("route", "reason"), registry=registry
            ),
            late=Counter(
                "retort_capture_late",
                "Answers that went out before their row was safe: the disk did not answer in time.",
                ("route",),
                registry=registry,
            ),
            engine_up=Gauge(
                "retort_engine_up",
                "Whether an engine of ours serves.",
                ("deployment",),
                registry=registry,
            ),
            engine_crashes=Counter(
                "retort_engine_crashes",
                "Engines that ended while they served; each is started again.",
                ("deployment",),
                registry=registry,
            ),
        )

    def begin(self, exchange: Exchange) -> None:
        """Count one exchange as under way."""
        self.in_flight.labels(exchange.request.route).inc()

    def end(self, exchange: Exchange) -> None:
        """Count a client's exchange as ended."""
        self.in_flight.labels(exchange.request.route).dec()
        self.observe(exchange)

    def refuse(self, error: GatewayError) -> None:
        """Count a request that did not become an exchange."""
        self.refused.labels(error.code or error.type).inc()

    def count_late(self, exchange: Exchange) -> None:
        """Count an answer that went out before its row was as safe as promised."""
        self.late.labels(exchange.request.route).inc()

    def engine_health(self, deployment: str, health: Health) -> None:
        """Take note of an engine that serves, has ended by itself, or was stopped by us."""
        if health == "gone":
            self.engine_up.remove(deployment)
            return
        self.engine_up.labels(deployment).set(health == "up")
        self.engine_crashes.labels(deployment).inc(health == "down")

    def observe(self, exchange: Exchange) -> None:
        """Count one ended exchange."""
        where = (exchange.request.route, exchange.deployment.name, exchange.role)
        labels = (*where, exchange.status)
        ends = self._ends.get(labels)
        if ends is None:
            counted = self.requests.labels(*labels)
            ends = _Ends(counted, self.duration.labels(*where), self.ttft.labels(*where))
            self._ends[labels] = ends
        ends.requests.inc()
        ends.duration.observe(exchange.duration_seconds)
        if exchange.ttft_seconds is not None:
            ends.ttft.observe(exchange.ttft_seconds)


@dataclass(frozen=True, slots=True)
class _Ends:
    """What is counted of an end, its labels looked up once."""

    requests: Counter
    duration: Histogram
    ttft: Histogram


def _seconds(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(name, text, WHERE, buckets=SECONDS, registry=registry)


class CaptureCounts(Collector):
    """``started = committed + dropped + in flight``, summed over the writers of a spool folder."""

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
        yield from (started, written, dropped)
