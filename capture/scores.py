"""What a model says at every token of a given text, as the log holds it; pure numpy.

Shape suffixes: N positions, K candidates, likeliest first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from capture.adaptive import Floats, Limits, kept_sizes, tail_logprobs
from capture.rows import Ints
from capture.wire import LOWEST

Position = Mapping[str, Mapping[str, Any]]  # as vLLM has it: by token id, in text


@dataclass(frozen=True, slots=True)
class Scores:
    """One answer's distributions; columns as in ``capture.schema.LOGITS``."""

    topk_size: npt.NDArray[np.int16]
    topk_ids: Ints
    topk_logprobs: Floats
    tail_logprob: Floats

    @property
    def likeliest(self) -> Ints:
        """The first entry of each position."""
        ends = np.cumsum(self.topk_size, dtype=np.int64)
        found: Ints = self.topk_ids[ends - self.topk_size]
        return found


def kept(ids_NK: Ints, logprobs_NK: Floats, limits: Limits) -> Scores:
    """Keep of each position what capture would keep.

    Args:
        ids_NK: Candidates, likeliest first.
        logprobs_NK: Their natural logprobs at temperature 1; ``-inf`` fills short rows.
        limits: Of the entries.
    """
    length_N = np.isfinite(logprobs_NK).sum(axis=1)
    size_N = np.minimum(kept_sizes(logprobs_NK, k_min=limits.k_min, mass=limits.mass), length_N)
    size_N = size_N.astype(np.int16)
    is_kept_NK = np.arange(ids_NK.shape[1]) < size_N[:, None]
    tail_N = tail_logprobs(logprobs_NK, size_N)
    return Scores(size_N, ids_NK[is_kept_NK], logprobs_NK[is_kept_NK], tail_N)


def prompt_scores(positions: Sequence[Position], limits: Limits) -> Scores:
    """Read vLLM's ``prompt_logprobs`` of an answer's tokens.

    Beside its likeliest tokens a position has the one that is there, whatever its rank; it is an
    entry like the others, so ``k_max`` decides whether one that is unlikely is left out.
    """
    tops = [
        sorted((-entry["logprob"], int(token)) for token, entry in position.items())[: limits.k_max]
        for position in positions
    ]
    logprobs_NK = np.full((len(tops), limits.k_max), -np.inf, np.float32)
    ids_NK = np.zeros((len(tops), limits.k_max), np.int32)
    for line, top in enumerate(tops):
        real = [(-surprise, token) for surprise, token in top if -surprise > LOWEST]
        logprobs_NK[line, : len(real)] = [logprob for logprob, _ in real]
        ids_NK[line, : len(real)] = [token for _, token in real]
    return kept(ids_NK, logprobs_NK, limits)
