"""A linear layer that computes what the engine's kernel computes."""

from torch import Tensor, nn

from trainer.grid import Rounded, round_inputs


class RoundedLinear(nn.Module):
    """Rounded weights and, if the format says so, inputs in 8 bits; computes in float32.

    Args:
        weight: Integers and scales.
        bias: None if the layer has none.
        rounds_inputs: Whether the engine multiplies integers.
    """

    def __init__(self, weight: Rounded, bias: Tensor | None, *, rounds_inputs: bool) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.rounds_inputs = rounds_inputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(..., I)`` to ``(..., O)``, in the dtype of the inputs."""
        seen = round_inputs(inputs.float()) if self.rounds_inputs else inputs.float()
        outputs = seen @ self.weight.dense().T
        return (outputs if self.bias is None else outputs + self.bias).to(inputs.dtype)
