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
    per_byte, per_word = 8 // grid.bits, 32 // grid.bits
    device = rounded.values_OI.device
    unsigned_OI = rounded.values_OI.to(torch.uint8) + (1 << (grid.bits - 1))  # modulo 256
    padded = torch.nn.functional.pad(unsigned_OI, (0, -unsigned_OI.shape[1] % per_word))
    shifts_P = torch.arange(per_byte, dtype=torch.uint8, device=device) * grid.bits
    bytes_OBP = padded.view(len(padded), -1, per_byte) << shifts_P
    return bytes_OBP.sum(dim=2, dtype=torch.uint8).view(torch.int32)  # of a little-endian machine


def unpack(words_OW: torch.Tensor, channels: int, grid: Grid) -> torch.Tensor:
    """Take apart what ``pack`` laid side by side: ``(O, channels)``, int8."""
    shifts_P = torch.arange(32 // grid.bits, dtype=torch.int32) * grid.bits
    unsigned_OWP = (words_OW[:, :, None] >> shifts_P) & ((1 << grid.bits) - 1)
    return (unsigned_OWP.flatten(1)[:, :channels] - (1 << (grid.bits - 1))).to(torch.int8)
