"""Rounding a weight matrix to 8 bits so that a layer's outputs change least (pure).

Shape suffixes: O output channels, I input channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT = 127  # of 8 bits; symmetric, so that a weight and its negative round alike
DAMPING = 0.01  # of the mean diagonal, added to it
BLOCK = 128  # columns whose errors are spread at once


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A matrix as ``values * scale``.

    Attributes:
        values_OI: int8, at most ``LIMIT`` either way.
        scale_O1: Positive, in the dtype the weight was stored in.
    """

    values_OI: Tensor
    scale_O1: Tensor


def round_to_nearest(weight_OI: Tensor, limit: int = LIMIT) -> Int8Weight:
    """Round every weight alone; the largest of each output channel becomes ``limit``."""
    scale_O1 = channel_scale(weight_OI, limit)
    values_OI = (weight_OI.float() / scale_O1.float()).round().clamp(-limit, limit)
    return Int8Weight(values_OI.to(torch.int8), scale_O1)


def round_with_compensation(
    weight_OI: Tensor, hessian_II: Tensor, limit: int = LIMIT
) -> Int8Weight:
    """Round column by column, letting the columns to come make up for each error.

    Output channels for which plain rounding does no worse keep it, so the output error on the
    calibration rows never exceeds that of ``round_to_nearest``.

    Args:
        weight_OI: Any float dtype.
        hessian_II: Sum of ``x x^T`` over the layer's inputs; float32 or float64.
        limit: Largest value either way, ``LIMIT`` at most.

    Source:
        Frantar et al. 2023, GPTQ, arXiv:2210.17323; columns in order of falling diagonal. The
        choice per output channel is ours.
    """
    nearest = round_to_nearest(weight_OI, limit)
    scale_O1 = nearest.scale_O1.float()
    compensated_OI = _compensate(weight_OI.float(), hessian_II, scale_O1, limit)
    errors = [
        _output_error(weight_OI.float() - values_OI * scale_O1, hessian_II)
        for values_OI in (nearest.values_OI.float(), compensated_OI)
    ]
    is_better_O1 = (errors[1] < errors[0])[:, None]
    values_OI = torch.where(is_better_O1, compensated_OI.to(torch.int8), nearest.values_OI)
    return Int8Weight(values_OI, nearest.scale_O1)


def channel_scale(weight_OI: Tensor, limit: int = LIMIT) -> Tensor:
    """Return the step of each output channel, ``(O, 1)`` in the weight's dtype, never zero."""
    scale_O1 = (weight_OI.float().abs().amax(dim=1, keepdim=True) / limit).to(weight_OI.dtype)
    return scale_O1.clamp(min=torch.finfo(weight_OI.dtype).tiny)


def _compensate(weight_OI: Tensor, hessian_II: Tensor, scale_O1: Tensor, limit: int) -> Tensor:
    """Integers as float32."""
    order_I = hessian_II.diagonal().argsort(descending=True)
    left_OI = weight_OI[:, order_I]
    spread_II = _spread(hessian_II[order_I][:, order_I]).float()
    values_OI = torch.empty_like(left_OI)
    for start in range(0, left_OI.shape[1], BLOCK):
        end = min(start + BLOCK, left_OI.shape[1])
        errors_OB = torch.empty_like(left_OI[:, start:end])
        for column in range(start, end):
            now_O = left_OI[:, column]
            values_OI[:, column] = (now_O / scale_O1[:, 0]).round().clamp(-limit, limit)
            error_O = now_O - values_OI[:, column] * scale_O1[:, 0]
            error_O = error_O / spread_II[column, column]
            left_OI[:, column:end] -= error_O[:, None] * spread_II[column, column:end]
            errors_OB[:, column - start] = error_O
        left_OI[:, end:] -= errors_OB @ spread_II[start:end, end:]
    return values_OI[:, order_I.argsort()]


def _spread(hessian_II: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse: row ``i`` says how an error at ``i`` spreads."""
    hessian_II = hessian_II.double()
    diagonal_I = hessian_II.diagonal().clone()
    silent_I = (diagonal_I == 0).double()  # inputs never seen: rounded alone
    damping = DAMPING * diagonal_I.mean().clamp(min=1e-12)
    lower_II = torch.linalg.cholesky(hessian_II + torch.diag(silent_I + damping))
    upper_II: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower_II), upper=True)
    return upper_II


def _output_error(difference_OI: Tensor, hessian_II: Tensor) -> Tensor:
    """Squared change of each output, summed over the inputs seen: ``(O,)``."""
    return ((difference_OI @ hessian_II.float()) * difference_OI).sum(dim=1)
