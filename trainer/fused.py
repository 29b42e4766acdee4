"""Output projection and loss in one, a few positions at a time.

The scores of all positions over the whole vocabulary, their softmax and its gradient are the
largest tensors of a small model's training, and none of them is needed whole: a loss is a
function of a few log-probabilities per position (``student_view.Seen``). Here each chunk's scores
are computed, read, turned into the gradient of the hidden states and of the projection, and
forgotten. The gradient is computed on the way forward, so nothing is computed twice.

Shape suffixes: N completion tokens, C of them in a chunk, D width, V vocabulary, K entries.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trainer.losses import Loss, Targets
from trainer.student_view import EMPTY_TAIL, Seen, look

CHUNK_BYTES = 64 * 1024 * 1024  # of scores in float32
# A GPU adds to the whole projection's gradient after each chunk: many small ones take it longer.
GPU_CHUNK_ROWS = 2048


def fused_loss(
    hidden_ND: Tensor, weight_VD: Tensor, targets: Targets, loss: Loss, weights_N: Tensor
) -> Tensor:
    """Return ``sum(weights * loss)`` over all positions, differentiable in the first two.

    Args:
        hidden_ND: What the projection takes.
        weight_VD: The projection; its products are computed in the ambient autocast dtype.
        targets: The teacher's side.
        loss: Of ``LOSSES``, or made of them.
        weights_N: Of each position, without gradient.
    """
    given = (hidden_ND, weight_VD, targets, loss, weights_N)
    total: Tensor = _Fused.apply(*given)  # type: ignore[no-untyped-call]
    return total


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some positions, looked at without gradients.

    Attributes:
        seen: What the student makes of them.
        targets: The teacher's side.
        best_N: The student's likeliest tokens.
        confidence_N: Their probabilities.
    """

    seen: Seen
    targets: Targets
    best_N: Tensor
    confidence_N: Tensor


@torch.no_grad()
def each_seen(hidden_ND: Tensor, weight_VD: Tensor, targets: Targets) -> Iterator[Chunk]:
    """Look at all positions, a chunk at a time."""
    for rows in chunks(hidden_ND, len(weight_VD)):
        part = targets.part(rows)
        scores_CV = hidden_ND[rows] @ weight_VD.T
        scores_CV = scores_CV.to(torch.promote_types(scores_CV.dtype, torch.float32))
        seen = look(scores_CV, part.completion_ids_N, part.topk_ids_NK, part.draws_NM)
        best = scores_CV.max(dim=-1)
        confidence_N = (best.values - scores_CV.logsumexp(dim=-1)).exp()
        yield Chunk(seen, part, best.indices, confidence_N)


class _Context(Protocol):
    """What autograd hands to both ways."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor | None, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets: Targets,
        loss: Loss,
        weights_N: Tensor,
    ) -> Tensor:
        dtype = _product_dtype(hidden_ND)
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        hidden_ND, matrix_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_ND = torch.empty_like(hidden_ND, dtype=wide) if needs_hidden else None
        grad_VD = torch.zeros_like(weight_VD, dtype=wide) if needs_weight else None
        total = hidden_ND.new_zeros((), dtype=wide)
        for rows in chunks(hidden_ND, len(weight_VD)):
            hidden_CD, part = hidden_ND[rows], targets.part(rows)
            scores_CV = (hidden_CD @ matrix_VD.T).to(wide)
            value, grad_CV = _chunk_loss(scores_CV, part, loss, weights_N[rows].to(wide))
            total += value
            product_CV = grad_CV.to(dtype)
            if grad_ND is not None:
                grad_ND[rows] = product_CV @ matrix_VD
            if grad_VD is not None:
                grad_VD += product_CV.T @ hidden_CD
        ctx.save_for_backward(grad_ND, grad_VD)
        return total

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        grad_ND, grad_VD = ctx.saved_tensors
        of_hidden = None if grad_ND is None else grad_ND * grad
        of_weight = None if grad_VD is None else grad_VD * grad
        return of_hidden, of_weight, None, None, None


def _chunk_loss(
    scores_CV: Tensor, targets: Targets, loss: Loss, weights_C: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted loss of a chunk and its gradient in the scores, which are overwritten."""
    head_ids, label_ids = targets.topk_ids_NK, targets.completion_ids_N[:, None]
    draw_ids = None if targets.draws_NM is None else targets.draws_NM.clamp(min=0)
    total_C1 = scores_CV.logsumexp(dim=-1, keepdim=True)
    head_CK = scores_CV.gather(1, head_ids) - total_C1
    label_C1 = scores_CV.gather(1, label_ids) - total_C1
    draws_CM = None if draw_ids is None else scores_CV.gather(1, draw_ids) - total_C1
    scores_CV.scatter_(1, head_ids, -torch.inf)  # what is left is the tail
    outside_C1 = scores_CV.logsumexp(dim=-1, keepdim=True)
    is_empty_C1 = outside_C1 == -torch.inf
    outside_C1 = outside_C1.masked_fill(is_empty_C1, 0.0)
    tail_C1 = (outside_C1 - total_C1).masked_fill(is_empty_C1, EMPTY_TAIL)
    seen, leaves = _leaves(label_C1, head_CK, tail_C1, draws_CM)
    with torch.enable_grad():
        value = (loss(seen, targets) * weights_C).sum()
    label, head, tail, *drawn = torch.autograd.grad(
        value, leaves, allow_unused=True, materialize_grads=True
    )
    # d/dz of log q_i is e_i - q; of the tail's it is (softmax within the tail) - q.
    every_C1 = (label + tail)[:, None] + head.sum(-1, keepdim=True)
    if drawn:
        every_C1 = every_C1 + drawn[0].sum(-1, keepdim=True)
    within_C1 = tail[:, None].masked_fill(is_empty_C1, 0.0)
    grad_CV = scores_CV.sub_(outside_C1).exp_()
    grad_CV *= within_C1 - every_C1 * tail_C1.exp()
    grad_CV.scatter_(1, head_ids, -every_C1 * head_CK.exp())
    grad_CV.scatter_add_(1, head_ids, head)
    grad_CV.scatter_add_(1, label_ids, label[:, None])
    if drawn and draw_ids is not None:
        grad_CV.scatter_add_(1, draw_ids, drawn[0])
    return value.detach(), grad_CV


def _leaves(
    label_C1: Tensor, head_CK: Tensor, tail_C1: Tensor, draws_CM: Tensor | None
) -> tuple[Seen, list[Tensor]]:
    """The student's side as tensors that a loss can be differentiated in."""
    found = [label_C1[:, 0], head_CK, tail_C1[:, 0], *([] if draws_CM is None else [draws_CM])]
    leaves = [tensor.detach().requires_grad_() for tensor in found]
    return Seen(*leaves), leaves


def chunks(hidden_ND: Tensor, vocabulary: int) -> list[slice]:
    """Cut positions into as many at a time as may have their scores in memory."""
    least = GPU_CHUNK_ROWS if hidden_ND.is_cuda else 1
    size = max(least, CHUNK_BYTES // (4 * vocabulary))
    return [slice(start, start + size) for start in range(0, len(hidden_ND), size)]


def _product_dtype(hidden_ND: Tensor) -> torch.dtype:
    device = hidden_ND.device.type
    is_cast = torch.is_autocast_enabled(device) and hidden_ND.dtype != torch.float64
    return torch.get_autocast_dtype(device) if is_cast else hidden_ND.dtype
