"""Distillation losses, one value in nats per completion token.

The log holds the teacher's likeliest tokens and the mass outside them. That tail is one extra
outcome on both sides, so a divergence over K + 1 classes is never negative, never exceeds the
divergence over the whole vocabulary, and equals it when K = V. What it misses of forward KL is
``tail mass x KL(teacher's tail || student's tail)``, of which ids drawn from the teacher's tail
give an unbiased estimate.

Shape suffixes: N completion tokens of a batch, K logged entries, M draws, C classes (K + 1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log

import torch
from torch import Tensor

from trainer.student_view import Seen

NEGLIGIBLE = -30.0  # nats; what a class without any mass counts as where its logarithm is needed


@dataclass(frozen=True, slots=True)
class Targets:
    """What the teacher said at N positions.

    Attributes:
        completion_ids_N: The token that was generated, int64.
        topk_ids_NK: Kept entries, likeliest first, int64; rows shorter than K repeat their first.
        topk_logprobs_NK: Natural-log probabilities at temperature 1; ``-inf`` fills short rows.
        tail_logprob_N: Natural log of the mass outside the kept entries; ``-inf`` for none.
        draws_NM: Ids drawn from outside them in proportion to their mass, int64; -1 for none.
    """

    completion_ids_N: Tensor
    topk_ids_NK: Tensor
    topk_logprobs_NK: Tensor
    tail_logprob_N: Tensor
    draws_NM: Tensor | None = None

    @property
    def is_words_only(self) -> Tensor:
        """``(N,)``: where one token is all that the teacher said; it trains by cross-entropy."""
        return (self.tail_logprob_N == -torch.inf) & (self.topk_logprobs_NK[:, 0] == 0)

    def part(self, rows: slice | Tensor) -> "Targets":
        """Some of the positions."""
        return Targets(
            self.completion_ids_N[rows],
            self.topk_ids_NK[rows],
            self.topk_logprobs_NK[rows],
            self.tail_logprob_N[rows],
            None if self.draws_NM is None else self.draws_NM[rows],
        )


Loss = Callable[[Seen, Targets], Tensor]


def classes(seen: Seen, targets: Targets) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the K entries and of the tail, on both sides.

    The teacher's are rescaled to sum to one, because logged values are rounded. What fills short
    rows has no mass on either side.
    """
    teacher_NC = torch.cat([targets.topk_logprobs_NK, targets.tail_logprob_N[:, None]], dim=-1)
    teacher_NC = (teacher_NC - teacher_NC.logsumexp(dim=-1, keepdim=True)).to(seen.head_NK.dtype)
    is_filler_NK = targets.topk_logprobs_NK == -torch.inf
    head_NK = seen.head_NK.masked_fill(is_filler_NK, -torch.inf)
    return teacher_NC, torch.cat([head_NK, seen.tail_N[:, None]], dim=-1)


def behaviour_cloning(seen: Seen, _: Targets) -> Tensor:
    """Return the cross-entropy of the generated token, which needs no logged distribution."""
    return -seen.label_N


def forward_kl(seen: Seen, targets: Targets) -> Tensor:
    """Return KL(teacher || student) over the entries and one tail.

    Source:
        Hinton et al. 2015, arXiv:1503.02531, sec. 2; the extra outcome is ours.
    """
    teacher_NC, student_NC = classes(seen, targets)
    return _kl(teacher_NC, student_NC)


def reverse_kl(seen: Seen, targets: Targets) -> Tensor:
    """Return KL(student || teacher) over the same classes: it shuns what the teacher would not say.

    Without the tail a student could lower it by putting its mass outside the entries.

    Source:
        Gu et al. 2024, arXiv:2306.08543, sec. 2.1.
    """
    teacher_NC, student_NC = classes(seen, targets)
    return _kl(student_NC, teacher_NC)


def jensen_shannon(seen: Seen, targets: Targets, beta: float = 0.5) -> Tensor:
    """Return the generalised Jensen-Shannon divergence, between forward and reverse KL.

    Args:
        seen: The student's side.
        targets: The teacher's side.
        beta: Weight of the teacher in the mixture that both are compared with.

    Source:
        Agarwal et al. 2024, arXiv:2306.13649, eq. 1.
    """
    teacher_NC, student_NC = classes(seen, targets)
    mixture_NC = torch.logaddexp(teacher_NC + log(beta), student_NC + log(1 - beta))
    return beta * _kl(teacher_NC, mixture_NC) + (1 - beta) * _kl(student_NC, mixture_NC)


def skew_kl(seen: Seen, targets: Targets, alpha: float = 0.1) -> Tensor:
    """Return KL(teacher || alpha teacher + (1 - alpha) student), whose gradients are bounded.

    Source:
        Ko et al. 2024, arXiv:2402.03898, sec. 3.1.
    """
    teacher_NC, student_NC = classes(seen, targets)
    mixture_NC = torch.logaddexp(teacher_NC + log(alpha), student_NC + log(1 - alpha))
    return _kl(teacher_NC, mixture_NC)


def mixed_kl(seen: Seen, targets: Targets) -> Tensor:
    """Return half of forward and half of reverse KL, for states that the student itself came to.

    The forward half keeps the student from giving up what the teacher would also say, the reverse
    half from saying what the teacher would not.

    Source:
        Learning from a student's own answers: Agarwal et al. 2024, arXiv:2306.13649. Halves of
        both, over the teacher's entries, are what NVIDIA's NeMo-RL takes for it; the tail class
        is ours.
    """
    teacher_NC, student_NC = classes(seen, targets)
    return 0.5 * _kl(teacher_NC, student_NC) + 0.5 * _kl(student_NC, teacher_NC)


def forward_kl_draws(seen: Seen, targets: Targets, weight: float = 1.0) -> Tensor:
    """Return forward KL over K + 1 classes and, from draws, what it misses inside the tail.

    With a weight of 1 its gradient is that of the full divergence on average over the draws; a
    smaller one trades that for less noise. The entropy of the teacher's tail is left out: it has
    no gradient.

    Source:
        Drawing ids instead of cutting: Sparse Logit Sampling, arXiv:2503.16870; here the entries
        stay exact and only the tail is drawn.
    """
    teacher_NC, student_NC = classes(seen, targets)
    kl_N = _kl(teacher_NC, student_NC)
    if targets.draws_NM is None or seen.draws_NM is None:
        return kl_N
    is_drawn_NM = targets.draws_NM >= 0
    count_N = is_drawn_NM.sum(dim=-1)
    surprise_NM = (student_NC[:, -1:] - seen.draws_NM).masked_fill(~is_drawn_NM, 0.0)
    tail_N = teacher_NC[:, -1].exp() * (count_N > 0)
    return kl_N + weight * tail_N * surprise_NM.sum(dim=-1) / count_N.clamp(min=1)


def renormalised_topk(seen: Seen, targets: Targets) -> Tensor:
    """Return KL with the entries taken for all there is; for comparison, it overstates them."""
    head_NK = targets.topk_logprobs_NK.to(seen.head_NK.dtype)
    return _kl(head_NK - head_NK.logsumexp(dim=-1, keepdim=True), seen.head_NK)


def zero_tail(seen: Seen, targets: Targets) -> Tensor:
    """Return only the entries' terms of KL; for comparison, it can fall below 0."""
    return _kl(targets.topk_logprobs_NK.to(seen.head_NK.dtype), seen.head_NK)


def or_words(loss: Loss, seen: Seen, targets: Targets) -> Tensor:
    """A loss that is cross-entropy only where the generated token is all there is."""
    words_N = behaviour_cloning(seen, targets)
    return torch.where(targets.is_words_only, words_N, loss(seen, targets))


LOSSES: dict[str, Loss] = {
    "behaviour_cloning": behaviour_cloning,
    "forward_kl": forward_kl,
    "forward_kl_draws": forward_kl_draws,
    "reverse_kl": partial(or_words, reverse_kl),
    "jensen_shannon": partial(or_words, jensen_shannon),
    "skew_kl": partial(or_words, skew_kl),
    "mixed_kl": partial(or_words, mixed_kl),
    "renormalised_topk": renormalised_topk,
    "zero_tail": zero_tail,
    "shared_vocabulary_kl": forward_kl,  # over what is left of the entries in the student's tokens
}


def mixed(loss: Loss, share: float) -> Loss:
    """A share of a loss and, for the rest, the cross-entropy of the generated token."""
    return loss if share == 1 else partial(_mixture, loss, share)


def _mixture(loss: Loss, share: float, seen: Seen, targets: Targets) -> Tensor:
    return share * loss(seen, targets) + (1 - share) * behaviour_cloning(seen, targets)


def _kl(of_NC: Tensor, over_NC: Tensor) -> Tensor:
    """KL per row between log-probabilities; a class without mass on the first side counts nothing.

    One without mass on the second side counts as ``exp(NEGLIGIBLE)``, so that the result is finite.
    """
    return (of_NC.exp() * (_finite(of_NC) - _finite(over_NC))).sum(dim=-1)


def _finite(logprobs_NC: Tensor) -> Tensor:
    return logprobs_NC.masked_fill(logprobs_NC == -torch.inf, NEGLIGIBLE)
