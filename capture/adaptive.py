"""How many candidates of a distribution are kept, and the mass outside them; pure numpy.

Shape suffixes: R rows, K candidates, most likely first.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Sizes = npt.NDArray[np.int16]
TAIL_FLOOR = 1e-9  # smallest tail mass that is told apart from none in float32


class Limits(NamedTuple):
    """How many entries of a distribution are kept: the fewest that reach a mass.

    Attributes:
        k_min: Fewest, whatever their mass.
        k_max: Most, whatever is left.
        mass: Probability to be reached.
    """

    k_min: int
    k_max: int
    mass: float


def kept_sizes(logprobs_RK: Floats, *, k_min: int, mass: float) -> Sizes:
    """Return the fewest entries per row whose mass reaches ``mass``, in ``k_min..K``."""
    cumulative_RK = np.exp(logprobs_RK).cumsum(axis=1, dtype=np.float64)
    reached_R = (cumulative_RK < mass).sum(axis=1) + 1
    num_candidates = logprobs_RK.shape[1]
    size_R: Sizes = reached_R.clip(min(k_min, num_candidates), num_candidates).astype(np.int16)
    return size_R


def tail_logprobs(logprobs_RK: Floats, size_R: Sizes) -> Floats:
    """Return the natural log of the mass outside the first ``size_R`` entries, float32.

    The candidates that are not kept are summed by themselves, so a small tail keeps its digits;
    what lies outside all candidates is known to about 1e-6.
    """
    probs_RK = np.exp(logprobs_RK, dtype=np.float64)
    rank_K = np.arange(logprobs_RK.shape[1])
    unkept_R = np.where(rank_K < size_R[:, None], 0.0, probs_RK).sum(axis=1)
    outside_R = np.maximum(1.0 - probs_RK.sum(axis=1), 0.0)
    tail_R: Floats = np.log(np.maximum(unkept_R + outside_R, TAIL_FLOOR)).astype(np.float32)
    return tail_R
