"""Rounding weights to few numbers (pure): the rule that exporter and fake quantizer share.

A model trained under ``fake_round`` is, number by number, the model that ``round_to_nearest``
makes of it.

Shape suffixes: O output channels, I input channels, G groups of neighbouring input channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP_SIZES = (128, 64, 32)  # that every kernel for 4 bits takes, the cheapest first
INPUT_LIMIT = 127  # of inputs in 8 bits; symmetric


@dataclass(frozen=True, slots=True)
class Grid:
    """Integers that a weight may become.

    Attributes:
        low: The smallest.
        high: The largest.
        group: Input channels that share a step; None if all of an output channel do.
    """

    low: int
    high: int
    group: int | None = None

    @property
    def bits(self) -> int:
        """That one integer takes."""
        return (self.high - self.low).bit_length()


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight matrix as ``values * scale``.

    Attributes:
        values_OI: int8.
        scale_OG: Step of each group, positive, in the dtype the weight was stored in.
    """

    values_OI: Tensor
    scale_OG: Tensor

    def dense(self) -> Tensor:
        """Return the weights that are meant, ``(O, I)`` in float32."""
        return self.values_OI.float().mul_(spread(self.scale_OG, self.values_OI.shape[1]))


def int8_grid(largest: int) -> Grid:
    """8 bits, symmetric; no weight above ``largest``, 127 where integer products are exact."""
    return Grid(-largest, largest)


def int4_grid(group: int) -> Grid:
    """4 bits, all sixteen values of them."""
    return Grid(-8, 7, group)


def largest_group(widths: Iterable[int]) -> int | None:
    """The largest of ``GROUP_SIZES`` that divides the inputs of every layer; None if none does."""
    widths = list(widths)
    return next((size for size in GROUP_SIZES if all(w % size == 0 for w in widths)), None)


def round_inputs(inputs: Tensor) -> Tensor:
    """Round each token's features (last dimension) to 8 bits of its own scale, and back."""
    scale = (inputs.abs().amax(dim=-1, keepdim=True) / INPUT_LIMIT).clamp(min=1e-12)
    return (inputs / scale).round() * scale


def round_to_nearest(weight_OI: Tensor, grid: Grid) -> Rounded:
    """Round every weight alone, the largest of each group to the end of the grid.

    Raises:
        ValueError: If the group does not divide the input channels.
    """
    scale_OG = step_sizes(weight_OI, grid)
    values_OI = nearest(weight_OI.float(), spread(scale_OG, weight_OI.shape[1]), grid)
    return Rounded(values_OI.to(torch.int8), scale_OG)


def fake_round(weight_OI: Tensor, grid: Grid, stored: torch.dtype) -> Tensor:
    """Return what the weights will be once stored and rounded, as if rounding had slope one.

    Args:
        weight_OI: Of any float dtype, which the result has.
        grid: Of the export.
        stored: The dtype the checkpoint stores weights in.

    Source:
        Bengio et al. 2013, arXiv:1308.3432 (straight-through estimator).
    """
    with torch.no_grad():
        rounded_OI = round_to_nearest(weight_OI.to(stored), grid).dense()
    return straight_through(weight_OI, rounded_OI)


def straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """Return what was rounded, with the slope of what was not."""
    return rounded.to(value.dtype).detach() + (value - value.detach())


def step_sizes(weight_OI: Tensor, grid: Grid) -> Tensor:
    """Return the step of each group, ``(O, G)`` in the weight's dtype, never zero.

    Raises:
        ValueError: If the group does not divide the input channels.
    """
    channels = weight_OI.shape[1]
    size = grid.group or channels
    if channels % size:
        raise ValueError(f"groups of {size} do not divide {channels} input channels")
    largest_OG = weight_OI.float().abs().view(-1, channels // size, size).amax(dim=2)
    scale_OG = (largest_OG / ((grid.high - grid.low) / 2)).to(weight_OI.dtype)
    return scale_OG.clamp(min=torch.finfo(weight_OI.dtype).tiny)


def spread(scale_OG: Tensor, channels: int) -> Tensor:
    """Repeat each step for the channels that share it: ``(O, I)``, or ``(O, 1)``, in float32."""
    groups = scale_OG.shape[1]
    if groups == 1:
        return scale_OG.float()
    return scale_OG.float().repeat_interleave(channels // groups, dim=1)


def nearest(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Integers of the grid, in the weight's dtype; shapes broadcast."""
    return (weight / scale).round().clamp(grid.low, grid.high)
