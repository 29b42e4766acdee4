"""What a student makes of the tokens that the teacher's log names: a few numbers per position.

Every loss is a function of these, so the scores of a whole vocabulary never need to be kept.

Shape suffixes: N completion tokens of a batch, K logged entries, M draws, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

EMPTY_TAIL = -50.0  # nats; a student's log-mass outside K = V entries


@dataclass(frozen=True, slots=True)
class Seen:
    """A student's log-probabilities, in float32 or float64.

    Attributes:
        label_N: Of the generated token.
        head_NK: Of the kept entries, short rows filled with their first.
        tail_N: Of everything outside the entries together; a sum over those tokens and not
            ``1 - head``, so it is exact however small it gets.
        draws_NM: Of the ids drawn from the tail; anything finite where there is none.
    """

    label_N: Tensor
    head_NK: Tensor
    tail_N: Tensor
    draws_NM: Tensor | None = None


def look(
    logits_NV: Tensor, label_ids_N: Tensor, head_ids_NK: Tensor, draw_ids_NM: Tensor | None = None
) -> Seen:
    """Read the log-probabilities off whole rows of scores; differentiable.

    Args:
        logits_NV: Unnormalised scores; computed in float32 unless they are float64.
        label_ids_N: Generated tokens.
        head_ids_NK: Kept entries.
        draw_ids_NM: Ids drawn from the tail; -1 for none.
    """
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    total_N1 = logits_NV.logsumexp(dim=-1, keepdim=True)
    is_tail_NV = torch.ones_like(logits_NV, dtype=torch.bool).scatter(1, head_ids_NK, value=False)
    is_empty_N = ~is_tail_NV.any(dim=-1)
    tail_N = logits_NV.masked_fill(~(is_tail_NV | is_empty_N[:, None]), -torch.inf).logsumexp(-1)
    tail_N = (tail_N - total_N1[:, 0]).masked_fill(is_empty_N, EMPTY_TAIL)
    draws_NM = None
    if draw_ids_NM is not None:
        draws_NM = logits_NV.gather(1, draw_ids_NM.clamp(min=0)) - total_N1
    return Seen(
        label_N=(logits_NV.gather(1, label_ids_N[:, None]) - total_N1)[:, 0],
        head_NK=logits_NV.gather(1, head_ids_NK) - total_N1,
        tail_N=tail_N,
        draws_NM=draws_NM,
    )
