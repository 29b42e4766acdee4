"""Distillation losses, one value in nats per completion token.

Shape suffixes: N completion tokens of a batch, K logged entries, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Targets:
    """What the teacher said at N positions.

    Attributes:
        completion_ids_N: The token that was generated, int64.
        topk_ids_NK: Kept entries, likeliest first, int64; rows shorter than K repeat their first.
        topk_logprobs_NK: Natural-log probabilities at temperature 1; ``-inf`` fills short rows.
        tail_logprob_N: Natural log of the mass outside the kept entries; ``-inf`` for none.
    """

    completion_ids_N: Tensor
    topk_ids_NK: Tensor
    topk_logprobs_NK: Tensor
    tail_logprob_N: Tensor


Loss = Callable[[Tensor, Targets], Tensor]


def forward_kl(student_logits_NV: Tensor, targets: Targets) -> Tensor:
    """Return KL(teacher || student) per token over K + 1 classes: the entries and one tail.

    The log holds only the teacher's likeliest tokens. The mass outside them is one extra
    outcome on both sides, so the result is never negative, never exceeds the full KL and equals
    it when K = V. The student's tail mass is a sum over the tokens outside the entries and not
    ``1 - head``, so it is exact however small it gets. The teacher's classes are rescaled to sum
    to one, because logged values are rounded.

    Args:
        student_logits_NV: Unnormalised scores; computed in float32 unless they are float64.
        targets: The teacher's side.

    Source:
        Hinton et al. 2015, arXiv:1503.02531, sec. 2; the extra outcome is ours.
    """
    teacher_NC = _classes(targets.topk_logprobs_NK, targets.tail_logprob_N)
    teacher_NC = teacher_NC - teacher_NC.logsumexp(dim=-1, keepdim=True)
    student_NC = _student_classes(_at_least_float32(student_logits_NV), targets)
    probs_NC = teacher_NC.to(student_NC.dtype).exp()
    cross_entropy_N = -(probs_NC * student_NC).sum(dim=-1)
    entropy_N: Tensor = torch.special.entr(probs_NC).sum(dim=-1)
    return cross_entropy_N - entropy_N


def behaviour_cloning(student_logits_NV: Tensor, targets: Targets) -> Tensor:
    """Return the cross-entropy of the generated token, which needs no logged distribution."""
    logits_NV = _at_least_float32(student_logits_NV)
    return torch.nn.functional.cross_entropy(logits_NV, targets.completion_ids_N, reduction="none")


LOSSES: dict[str, Loss] = {"forward_kl": forward_kl, "behaviour_cloning": behaviour_cloning}


def _student_classes(logits_NV: Tensor, targets: Targets) -> Tensor:
    """Log-probabilities of the K entries and of the tail; always finite."""
    ids_NK = targets.topk_ids_NK
    is_tail_NV = torch.ones_like(logits_NV, dtype=torch.bool).scatter(1, ids_NK, value=False)
    # With K = V no token is left: any finite value does, for the teacher's tail is empty too.
    is_tail_NV |= ~is_tail_NV.any(dim=-1, keepdim=True)
    tail_N = logits_NV.masked_fill(~is_tail_NV, -torch.inf).logsumexp(dim=-1)
    scores_NC = _classes(logits_NV.gather(1, ids_NK), tail_N)
    return scores_NC - logits_NV.logsumexp(dim=-1, keepdim=True)


def _classes(head_NK: Tensor, tail_N: Tensor) -> Tensor:
    return torch.cat([head_NK, tail_N[:, None]], dim=-1)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
