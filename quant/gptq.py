"""Rounding a weight matrix so that a layer's outputs change least (pure).

Shape suffixes: O output channels, I input channels, G groups of input channels.
"""

import torch
from torch import Tensor

from trainer.grid import Grid, Rounded, nearest, round_to_nearest, spread

DAMPING = 0.01  # of the mean diagonal, added to it
BLOCK = 128  # columns whose errors are spread at once


def round_with_compensation(weight_OI: Tensor, hessian_II: Tensor, grid: Grid) -> Rounded:
    """Round column by column, letting the columns to come make up for each error.

    Steps are those of ``round_to_nearest``. Output channels for which plain rounding does no worse
    keep it, so the output error on the calibration rows never exceeds that of plain rounding.

    Args:
        weight_OI: Any float dtype.
        hessian_II: Sum of ``x x^T`` over the layer's inputs; float32 or float64.
        grid: What to round to.

    Raises:
        ValueError: If the grid's group does not divide the input channels.

    Source:
        Frantar et al. 2023, GPTQ, arXiv:2210.17323; columns in order of falling diagonal. The
        choice per output channel is ours.
    """
    alone = round_to_nearest(weight_OI, grid)
    weight_OI = weight_OI.float()
    scale_OI = spread(alone.scale_OG, weight_OI.shape[1]).expand_as(weight_OI)
    compensated_OI = _compensate(weight_OI, hessian_II, scale_OI, grid)
    errors = [
        _output_error(weight_OI - values_OI * scale_OI, hessian_II)
        for values_OI in (alone.values_OI.float(), compensated_OI)
    ]
    is_better_O1 = (errors[1] < errors[0])[:, None]
    values_OI = torch.where(is_better_O1, compensated_OI.to(torch.int8), alone.values_OI)
    return Rounded(values_OI, alone.scale_OG)


def _compensate(weight_OI: Tensor, hessian_II: Tensor, scale_OI: Tensor, grid: Grid) -> Tensor:
    """Integers as float32."""
    order_I = hessian_II.diagonal().argsort(descending=True)
    left_OI, scale_OI = weight_OI[:, order_I], scale_OI[:, order_I]
    spread_II = _spread_errors(hessian_II[order_I][:, order_I]).float()
    values_OI = torch.empty_like(left_OI)
    for start in range(0, left_OI.shape[1], BLOCK):
        end = min(start + BLOCK, left_OI.shape[1])
        errors_OB = torch.empty_like(left_OI[:, start:end])
        for column in range(start, end):
            now_O, scale_O = left_OI[:, column], scale_OI[:, column]
            values_OI[:, column] = nearest(now_O, scale_O, grid)
            error_O = (now_O - values_OI[:, column] * scale_O) / spread_II[column, column]
            left_OI[:, column:end] -= error_O[:, None] * spread_II[column, column:end]
            errors_OB[:, column - start] = error_O
        left_OI[:, end:] -= errors_OB @ spread_II[start:end, end:]
    return values_OI[:, order_I.argsort()]


def _spread_errors(hessian_II: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse: row ``i`` says how an error at ``i`` spreads."""
    damped_II = hessian_II.to(torch.float64, copy=True)
    diagonal_I = damped_II.diagonal()
    silent_I = (diagonal_I == 0).double()  # inputs never seen: rounded alone
    diagonal_I += silent_I + DAMPING * diagonal_I.mean().clamp(min=1e-12)
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(damped_II))
    upper_II: Tensor = torch.linalg.cholesky(inverse_II, upper=True)
    return upper_II


def _output_error(difference_OI: Tensor, hessian_II: Tensor) -> Tensor:
    """Squared change of each output, summed over the inputs seen: ``(O,)``."""
    return ((difference_OI @ hessian_II.float()) * difference_OI).sum(dim=1)
