"""Slow float64 versions of the numerics, written from their definitions."""

import math
from collections.abc import Sequence


def log_softmax(logits: Sequence[float]) -> list[float]:
    """Natural-log probabilities of one row of scores."""
    peak = max(logits)
    total = math.fsum(math.exp(score - peak) for score in logits)
    return [score - peak - math.log(total) for score in logits]


def kl_divergence(teacher: Sequence[float], student: Sequence[float]) -> float:
    """KL(teacher || student) in nats of two rows of log-probabilities."""
    pairs = zip(teacher, student, strict=True)
    return math.fsum(math.exp(p) * (p - q) for p, q in pairs if p > -math.inf)


def bucketed(logprobs: Sequence[float], head: Sequence[int]) -> list[float]:
    """Log-probabilities of the head's entries, then of everything else as one class."""
    tail = math.fsum(math.exp(p) for i, p in enumerate(logprobs) if i not in set(head))
    return [*(logprobs[i] for i in head), math.log(tail) if tail > 0 else -math.inf]
