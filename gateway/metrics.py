"""Prometheus metrics of the gateway, with bounded labels: route, deployment, role, reason."""

from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from capture.confidence import Signal
from gateway.collectors import CaptureCounts, PoolCounts, Pools
from gateway.errors import GatewayError
from gateway.exchange import Exchange
from gateway.hold import Outcome
from gateway.pair_metrics import PairMetrics
from gateway.supervisor import Health

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SHORT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
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
    inter_token: Histogram
    overhead: Histogram
    tokens: Counter
    shadow: PairMetrics
    late: Counter
    cascade: Counter
    holding: Gauge
    held: Counter
    engine_crashes: Counter
    _ends: dict[tuple[str, ...], "_Ends"] = field(default_factory=dict)

    @classmethod
    def create(cls, spool: Path | None, pools: Pools = dict) -> "Metrics":
        """Make a registry of our own.

        Args:
            spool: Whose files are looked into; None if another process does that.
            pools: Gives each deployment's pool.
        """
        registry = CollectorRegistry()
        if spool is not None:
            registry.register(CaptureCounts(spool))
        registry.register(PoolCounts(pools))
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
            inter_token=_seconds(
                "retort_inter_token_seconds",
                "Mean time between the pieces of a stream.",
                registry,
                SHORT_SECONDS,
            ),
            overhead=_seconds(
                "retort_overhead_seconds",
                "What the gateway adds: before an engine is asked, without the wait for one, and "
                "after the last byte of its answer.",
                registry,
                SHORT_SECONDS,
            ),
            tokens=Counter(
                "retort_tokens", "Tokens, as engines counted.", (*WHERE, "kind"), registry=registry
            ),
            shadow=PairMetrics.create(registry),
            cascade=Counter(
                "retort_cascade",
                "Answers of a student, by whose its client got: the student's, the teacher's, or "
                "the student's because the teacher was unavailable.",
                ("route", "signal", "outcome"),
                registry=registry,
            ),
            holding=Gauge(
                "retort_held_requests",
                "Requests that wait while their route's engine is replaced.",
                ("route",),
                registry=registry,
            ),
            held=Counter(
                "retort_held",
                "Requests that have waited so: let_in, refused, or left by their clients.",
                ("route", "outcome"),
                registry=registry,
            ),
            late=Counter(
                "retort_capture_late",
                "Answers that went out before their row was safe: the disk did not answer in time.",
                ("route",),
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

    def count_cascade(self, exchange: Exchange, signal: Signal, outcome: str) -> None:
        """Count an answer of a student whose teacher might have answered instead."""
        self.cascade.labels(exchange.request.route, signal, outcome).inc()

    def count_held(self, route: str, outcome: Outcome | None) -> None:
        """Count a request that begins to wait for a held route, or has waited."""
        if outcome is None:
            self.holding.labels(route).inc()
            return
        self.holding.labels(route).dec()
        self.held.labels(route, outcome).inc()

    def engine_health(self, deployment: str, health: Health) -> None:
        """Take note of an engine that has ended by itself, or serves again."""
        self.engine_crashes.labels(deployment).inc(health == "down")

    def observe(self, exchange: Exchange) -> None:
        """Count one ended exchange."""
        where = (exchange.request.route, exchange.deployment.name, exchange.role)
        labels = (*where, exchange.status)
        ends = self._ends.get(labels)
        if ends is None:
            ends = self._ends[labels] = self._of(where, exchange.status)
        ends.requests.inc()
        ends.duration.observe(exchange.duration_seconds)
        if exchange.ttft_seconds is not None:
            ends.ttft.observe(exchange.ttft_seconds)
        if exchange.inter_token_seconds is not None:
            ends.inter_token.observe(exchange.inter_token_seconds)
        if exchange.role != "shadow" and exchange.overhead_seconds is not None:
            ends.overhead.observe(exchange.overhead_seconds)
        ends.prompt_tokens.inc(exchange.answer.prompt_tokens or 0)
        ends.completion_tokens.inc(exchange.answer.completion_tokens or 0)

    def _of(self, where: tuple[str, str, str], status: str) -> "_Ends":
        return _Ends(
            requests=self.requests.labels(*where, status),
            duration=self.duration.labels(*where),
            ttft=self.ttft.labels(*where),
            inter_token=self.inter_token.labels(*where),
            overhead=self.overhead.labels(*where),
            prompt_tokens=self.tokens.labels(*where, "prompt"),
            completion_tokens=self.tokens.labels(*where, "completion"),
        )


@dataclass(frozen=True, slots=True)
class _Ends:
    """What is counted of an end, its labels looked up once."""

    requests: Counter
    duration: Histogram
    ttft: Histogram
    inter_token: Histogram
    overhead: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter


def _seconds(
    name: str, text: str, registry: CollectorRegistry, buckets: tuple[float, ...] = SECONDS
) -> Histogram:
    return Histogram(name, text, WHERE, buckets=buckets, registry=registry)
