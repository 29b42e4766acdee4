"""The candidates of a distribution, selected where the logits are.

Shape suffixes: R rows, V vocabulary, K candidates, C chunks.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FEW = 8  # candidates that most distributions need no more than
CHUNK = 64
CHUNKS_PER_CANDIDATE = 8  # from so many chunks on two stages are faster than one
BLOCK_ENTRIES = 4 * 1024 * 1024  # larger temporaries get fresh pages from the system each time


class Candidates(NamedTuple):
    """The likeliest tokens of R rows; a row with fewer than K is filled up with probability 0.

    Attributes:
        ids_RK: Token ids, most likely first, int32.
        logprobs_RK: Natural-log probabilities at temperature 1, float32.
    """

    ids_RK: Tensor
    logprobs_RK: Tensor


def candidates(logits_RV: Tensor, *, k_min: int, k_max: int, mass: float) -> Candidates:
    """Select as many likeliest tokens per row as reach ``mass``, within ``k_min..k_max``, or more.

    On a CPU the few that mostly suffice are tried first, and only rows that need more are
    searched again; a GPU selects ``k_max`` at once, because asking it would make the host wait.
    """
    if not logits_RV.is_cpu:
        return _narrowed(*_largest(logits_RV.float().log_softmax(dim=-1), k_max))
    num_rows, vocabulary = logits_RV.shape
    few = max(k_min, min(FEW, k_max))
    parts = [
        _sufficient(block_RV.float().log_softmax(dim=-1), few, k_max, mass)
        for block_RV in torch.split(logits_RV, max(1, BLOCK_ENTRIES // vocabulary))
    ]
    if len(parts) == 1:
        return parts[0]
    width = max(part.ids_RK.shape[1] for part in parts)
    ids_RK, logprobs_RK = _filled(num_rows, width)
    first = 0
    for part in parts:
        rows = slice(first, first + len(part.ids_RK))
        ids_RK[rows, : part.ids_RK.shape[1]] = part.ids_RK
        logprobs_RK[rows, : part.ids_RK.shape[1]] = part.logprobs_RK
        first = rows.stop
    return Candidates(ids_RK, logprobs_RK)


def _sufficient(logprobs_RV: Tensor, few: int, k_max: int, mass: float) -> Candidates:
    """A few candidates per row, ``k_max`` for the rows whose few do not reach ``mass``."""
    top_few = _narrowed(*_largest(logprobs_RV, few))
    is_lacking_R = np.exp(top_few.logprobs_RK.numpy()).sum(axis=1) < mass  # faster than torch here
    if few >= k_max or not is_lacking_R.any():
        return top_few
    lacking_N = torch.from_numpy(is_lacking_R.nonzero()[0])
    if len(lacking_N) == len(logprobs_RV):
        return _narrowed(*_largest(logprobs_RV, k_max))
    top = _narrowed(*_largest(logprobs_RV[lacking_N], k_max))
    ids_RK, logprobs_RK = _filled(len(logprobs_RV), top.ids_RK.shape[1])
    ids_RK[:, :few], logprobs_RK[:, :few] = top_few
    ids_RK[lacking_N], logprobs_RK[lacking_N] = top
    return Candidates(ids_RK, logprobs_RK)


def _filled(num_rows: int, width: int) -> Candidates:
    return Candidates(
        torch.zeros(num_rows, width, dtype=torch.int32), torch.full((num_rows, width), -math.inf)
    )


def _narrowed(logprobs_RK: Tensor, ids_RK: Tensor) -> Candidates:
    return Candidates(ids_RK.int(), logprobs_RK)


def _largest(scores_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Exact top k, or everything if there is less; in two stages where the vocabulary is large.

    The k largest entries lie in the k chunks with the largest maxima, so only those are sorted.
    """
    num_rows, vocabulary = scores_RV.shape
    k = min(k, vocabulary)
    num_chunks, rest = divmod(vocabulary, CHUNK)
    if num_chunks < CHUNKS_PER_CANDIDATE * k:
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
