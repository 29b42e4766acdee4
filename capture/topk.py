"""The candidates of a distribution, selected where the logits are: on a GPU, nothing waits.

Shape suffixes: R rows, V vocabulary, K candidates, C chunks, D draws.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from capture.adaptive import Limits

CHUNK = 64
CHUNKS_PER_CANDIDATE = 8  # from so many chunks on two stages are faster than one
GPU_ROWS = 128  # and on a GPU, whose many small steps have a price of their own, so many rows


class Candidates(NamedTuple):
    """The likeliest tokens of R rows.

    Attributes:
        ids_RK: Token ids, most likely first, int32.
        logprobs_RK: Natural-log probabilities at temperature 1, float32.
        draws_RD: Token ids drawn from the mass outside the entries that are kept, int32.
    """

    ids_RK: Tensor
    logprobs_RK: Tensor
    draws_RD: Tensor


def candidates(logits_RV: Tensor, limits: Limits, draws: int = 0) -> Candidates:
    """Select the ``k_max`` likeliest tokens, and draw from what lies outside those to be kept."""
    logprobs_RV = logits_RV.float().log_softmax(dim=-1)
    logprobs_RK, ids_RK = _largest(logprobs_RV, limits.k_max)
    draws_RD = torch.empty(len(ids_RK), 0, dtype=torch.int32, device=ids_RK.device)
    if draws:
        probs_RK = logprobs_RK.exp()
        is_kept_RK = probs_RK.cumsum(dim=1) - probs_RK < limits.mass
        is_kept_RK[:, : limits.k_min] = True
        left_RK = probs_RK.masked_fill(is_kept_RK, 0.0)
        draws_RD = _drawn(logprobs_RV.exp().scatter(1, ids_RK, left_RK), draws)
    return Candidates(ids_RK.int(), logprobs_RK, draws_RD)


def _drawn(weights_RV: Tensor, draws: int) -> Tensor:
    """Draw with replacement in proportion to weights; -1 where they are all zero.

    The first of independent exponential clocks to ring, each as fast as its weight: unlike
    ``multinomial`` it needs no look at the sums first.
    """
    clocks = (weights_RV / torch.empty_like(weights_RV).exponential_() for _ in range(draws))
    draws_RD = torch.stack([clock_RV.argmax(dim=1) for clock_RV in clocks], dim=1)
    return draws_RD.masked_fill(weights_RV.amax(dim=1, keepdim=True) <= 0, -1).int()


def _largest(scores_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Exact top k, or everything if there is less; in two stages where the vocabulary is large.

    The k largest entries lie in the k chunks with the largest maxima, so only those are sorted.
    """
    num_rows, vocabulary = scores_RV.shape
    k = min(k, vocabulary)
    num_chunks, rest = divmod(vocabulary, CHUNK)
    is_small = scores_RV.is_cuda and num_rows < GPU_ROWS
    if is_small or num_chunks < CHUNKS_PER_CANDIDATE * k:
        return scores_RV.topk(k, dim=-1)
    body_RCc = scores_RV[:, : vocabulary - rest].view(num_rows, num_chunks, CHUNK)
    chunk_RK = body_RCc.amax(dim=-1).topk(k, dim=-1, sorted=False).indices
    values_RP = body_RCc.gather(1, chunk_RK[:, :, None].expand(-1, -1, CHUNK)).flatten(1)
    pool_RP = torch.cat([values_RP, scores_RV[:, vocabulary - rest :]], dim=1)
    values_RK, index_RK = pool_RP.topk(k, dim=-1)
    in_chunk_RK = chunk_RK.gather(1, (index_RK // CHUNK).clamp_max(k - 1)) * CHUNK
    ids_RK = torch.where(
        index_RK < k * CHUNK,
        in_chunk_RK + index_RK % CHUNK,
        index_RK - k * CHUNK + vocabulary - rest,
    )
    return values_RK, ids_RK
