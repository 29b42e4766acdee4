"""Prometheus metrics of shadow traffic and of what it shows."""

from dataclasses import dataclass
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Histogram

WHERE = ("route", "deployment")
NATS = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)


@dataclass(frozen=True, slots=True)
class PairMetrics:
    """What is counted of mirrored requests; the deployment is the candidate."""

    mirrored: Counter
    pairs: Counter
    scores: Counter
    kl: Histogram

    @classmethod
    def create(cls, registry: CollectorRegistry) -> Self:
        """Add them to a registry."""
        return cls(
            mirrored=Counter(
                "retort_mirrored", "Shadow requests.", ("route", "reason"), registry=registry
            ),
            pairs=Counter(
                "retort_pairs",
                "Shadow answers beside the incumbent's: agrees, differs, sampled, failed.",
                (*WHERE, "outcome"),
                registry=registry,
            ),
            scores=Counter(
                "retort_pair_scores",
                "Answers of the incumbent that the candidate was to score token by token.",
                (*WHERE, "outcome"),
                registry=registry,
            ),
            kl=Histogram(
                "retort_pair_kl_nats",
                "KL(incumbent, candidate) per token of the incumbent's answer, mean of a pair.",
                WHERE,
                buckets=NATS,
                registry=registry,
            ),
        )
