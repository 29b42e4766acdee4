"""A linear layer that computes what the engine's INT8 kernel computes.

Shape suffixes: O output channels, I input channels.
"""

from torch import Tensor, nn

from quant.gptq import LIMIT, Int8Weight


def round_activations(inputs: Tensor) -> Tensor:
    """Round each token's features (last dimension) to 8 bits of its own scale, and back."""
    scale = (inputs.abs().amax(dim=-1, keepdim=True) / LIMIT).clamp(min=1e-12)
    return (inputs / scale).round() * scale


class Int8Linear(nn.Module):
    """Weights per output channel and inputs per token in 8 bits; computes in float32."""

    def __init__(self, weight: Int8Weight, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(..., I)`` to ``(..., O)``, in the dtype of the inputs."""
        weight_OI = self.weight.values_OI.float() * self.weight.scale_O1.float()
        outputs = round_activations(inputs.float()) @ weight_OI.T
        return (outputs if self.bias is None else outputs + self.bias).to(inputs.dtype)
