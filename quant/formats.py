"""How one linear layer is stored and computed with (data)."""

from dataclasses import dataclass

import torch

from trainer.grid import Grid, Rounded, int4_grid, int8_grid


@dataclass(frozen=True, slots=True)
class Format:
    """Weights on a grid and inputs as they come or in 8 bits.

    Attributes:
        name: As bundles, reports and ``quant.schemes`` call it.
        grid: Of the weights.
        rounds_inputs: Whether each token's inputs are rounded to 8 bits, and integers multiplied.
    """

    name: str
    grid: Grid
    rounds_inputs: bool = False

    @property
    def is_packed(self) -> bool:
        """Whether several weights share a stored integer; else each is an int8."""
        return not self.rounds_inputs


def int8(largest: int) -> Format:
    """Weights and inputs in 8 bits; no weight above ``largest``, which the host says."""
    return Format("int8", int8_grid(largest), rounds_inputs=True)


def int8_weight() -> Format:
    """Weights in 8 bits, one step per output channel."""
    return Format("int8-weight", Grid(-128, 127))


def int4(group: int) -> Format:
    """Weights in 4 bits, one step per so many input channels."""
    return Format("int4", int4_grid(group))


def pack(rounded: Rounded, grid: Grid) -> torch.Tensor:
    """Lay integers side by side in int32, the first in the lowest bits, offset to be positive.

    Returns:
        ``(O, ceil(I * bits / 32))``, the layout that compressed-tensors calls pack-quantized.
    """
    per_word = 32 // grid.bits
    offset = 1 << (grid.bits - 1)
    unsigned_OI = rounded.values_OI.to(torch.int64) + offset
    missing = -unsigned_OI.shape[1] % per_word
    padded = torch.nn.functional.pad(unsigned_OI, (0, missing))
    words_OWP = padded.view(len(padded), -1, per_word)
    shifts_P = torch.arange(per_word) * grid.bits
    words_OW: torch.Tensor = (words_OWP << shifts_P).sum(dim=2)
    return (words_OW - ((words_OW >> 31) << 32)).to(torch.int32)  # the top bit is int32's sign


def unpack(words_OW: torch.Tensor, channels: int, grid: Grid) -> torch.Tensor:
    """Take apart what ``pack`` laid side by side: ``(O, channels)``, int8."""
    shifts_P = torch.arange(32 // grid.bits, dtype=torch.int32) * grid.bits
    unsigned_OWP = (words_OW[:, :, None] >> shifts_P) & ((1 << grid.bits) - 1)
    return (unsigned_OWP.flatten(1)[:, :channels] - (1 << (grid.bits - 1))).to(torch.int8)
