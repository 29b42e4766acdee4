"""Which entries of a distribution are kept: the adaptive top k and the mass outside it.

Shape suffixes: R rows, V vocabulary, K = ``k_max`` candidates, C chunks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNKED_FROM = 16_384  # vocabulary size above which the two-stage selection is the faster one
CHUNK = 64
TAIL_FLOOR = 1e-9  # smallest tail mass that is told apart from none in float32


class TopK(NamedTuple):
    """Kept entries of R rows; only the first ``size_R[r]`` of row r are meant to be stored.

    Attributes:
        ids_RK: Token ids, most likely first, int32.
        logprobs_RK: Natural-log probabilities at temperature 1, float32.
        size_R: Entries to keep, in ``[k_min, k_max]``, int16.
        tail_logprob_R: Natural log of the mass outside the kept entries, float32.
    """

    ids_RK: Tensor
    logprobs_RK: Tensor
    size_R: Tensor
    tail_logprob_R: Tensor


def select(logits_RV: Tensor, *, k_min: int, k_max: int, mass: float) -> TopK:
    """Keep, per row, the fewest entries whose mass reaches ``mass``, within ``k_min..k_max``.

    The tail is a sum of positive terms, so it stays accurate for small masses: the candidates
    that were not kept, plus what lies outside all K candidates (known to about 1e-6).
    """
    k_max = min(k_max, logits_RV.shape[-1])
    logits_RV = logits_RV.float()
    values_RK, ids_RK = _largest(logits_RV, k_max)
    logprobs_RK = values_RK - logits_RV.logsumexp(dim=-1, keepdim=True)
    probs_RK = logprobs_RK.exp()
    cumulative_RK = probs_RK.cumsum(dim=-1)
    reached_R = (cumulative_RK < mass).sum(dim=-1) + 1
    size_R = reached_R.clamp(min(k_min, k_max), k_max)
    outside_R = (1.0 - cumulative_RK[:, -1]).clamp_min(0.0)
    rank_K = torch.arange(k_max, device=logits_RV.device)
    unkept_R = probs_RK.masked_fill(rank_K < size_R[:, None], 0.0).sum(dim=-1)
    tail_logprob_R = (unkept_R + outside_R).clamp_min(TAIL_FLOOR).log()
    return TopK(ids_RK.int(), logprobs_RK, size_R.short(), tail_logprob_R)


def _largest(logits_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Exact top k; in two stages where the vocabulary is large.

    The k largest entries lie in the k chunks with the largest maxima, so only those are sorted.
    """
    num_rows, vocabulary = logits_RV.shape
    num_chunks, rest = divmod(vocabulary, CHUNK)
    if vocabulary < CHUNKED_FROM or k > num_chunks:
        return logits_RV.topk(k, dim=-1)
    body_RCc = logits_RV[:, : vocabulary - rest].view(num_rows, num_chunks, CHUNK)
    chunk_RK = body_RCc.amax(dim=-1).topk(k, dim=-1, sorted=False).indices
    values_RKc = body_RCc.gather(1, chunk_RK[:, :, None].expand(-1, -1, CHUNK))
    offsets_c = torch.arange(CHUNK, device=logits_RV.device)
    ids_RKc = chunk_RK[:, :, None] * CHUNK + offsets_c
    tail_ids_Rr = torch.arange(vocabulary - rest, vocabulary, device=logits_RV.device)
    pool_RP = torch.cat([values_RKc.flatten(1), logits_RV[:, vocabulary - rest :]], dim=1)
    pool_ids_RP = torch.cat([ids_RKc.flatten(1), tail_ids_Rr.expand(num_rows, -1)], dim=1)
    values_RK, index_RK = pool_RP.topk(k, dim=-1)
    return values_RK, pool_ids_RP.gather(1, index_RK)
