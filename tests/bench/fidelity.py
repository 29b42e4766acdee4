"""How far the log's numbers are from the teacher's own.

Shape suffixes: N positions, M kept entries of all positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capture.rows import Floats
from tests.bench.teacher import VOCABULARY, Answered, Doubles
from trainer.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Errors of what is stored, in nats unless said otherwise.

    Attributes:
        kl_stored_nats: Mean KL from the exact distribution to the stored one over the kept
            entries and the tail as one outcome: what rounding costs.
        kl_full_nats: The same over the whole vocabulary, the tail's mass spread evenly over it:
            what rounding and truncation cost a reader who knows nothing of the tail but its mass.
        tail_error: Mean absolute error of the tail's mass (a probability).
        max_tail_error: Its largest.
        mean_logprob_error_nats: Mean absolute error of a stored logprob.
        max_logprob_error_nats: Its largest.
        p999_logprob_error_nats: Exceeded by one stored logprob in a thousand.
    """

    kl_stored_nats: float
    kl_full_nats: float
    tail_error: float
    max_tail_error: float
    mean_logprob_error_nats: float
    max_logprob_error_nats: float
    p999_logprob_error_nats: float


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """What a reader finds, all completions behind each other."""

    size_N: npt.NDArray[np.int16]
    logprobs_M: Floats
    tail_logprob_N: Floats

    @classmethod
    def read(cls, dataset: Dataset) -> "Stored":
        """Take the trainer's arrays."""
        return cls(
            dataset.topk_size.values.astype(np.int16),
            dataset.topk_logprobs.values.astype(np.float32),
            dataset.tail_logprob.values.astype(np.float32),
        )


def fidelity(answered: Sequence[Answered], stored: Stored) -> Fidelity:
    """Compare what was stored with what the teacher thought, completions in the same order."""
    size_N = stored.size_N.astype(np.int64)
    logprobs_M = stored.logprobs_M.astype(np.float64)
    tail_N = np.exp(stored.tail_logprob_N.astype(np.float64))
    exact_M, exact_tail_N, tail_entropy_N = (
        np.concatenate([getattr(one, name) for one in answered])
        for name in ("exact_logprobs", "exact_tail", "tail_entropy")
    )
    first_N = np.append(0, np.cumsum(size_N)[:-1])
    total_N = np.add.reduceat(np.exp(logprobs_M), first_N) + tail_N
    head_N = np.add.reduceat(np.exp(exact_M) * (exact_M - logprobs_M), first_N)
    kl_N = head_N + exact_tail_N * np.log(exact_tail_N / tail_N) + np.log(total_N)
    spread_N: Doubles = exact_tail_N * (np.log(VOCABULARY - size_N) - tail_entropy_N)
    error_M, tail_error_N = np.abs(logprobs_M - exact_M), np.abs(tail_N - exact_tail_N)
    return Fidelity(
        kl_stored_nats=float(kl_N.mean()),
        kl_full_nats=float((kl_N + spread_N).mean()),
        tail_error=float(tail_error_N.mean()),
        max_tail_error=float(tail_error_N.max()),
        mean_logprob_error_nats=float(error_M.mean()),
        max_logprob_error_nats=float(error_M.max()),
        p999_logprob_error_nats=float(np.quantile(error_M, 0.999)),
    )
