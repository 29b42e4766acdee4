"""Muon: momentum whose update is made orthogonal, for the matrices inside a model.

It learns as much as AdamW from half the tokens. PyTorch's own computes in bfloat16 only, which
CPUs without it emulate at a hundredth of their speed; this one computes in the weights' dtype, and
all matrices of one shape at once.

Shape suffixes: N matrices of one shape, O rows, I columns.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at zero; singular values end up between 0.7 and 1.2
ITERATIONS = 5
SMALLEST = 1e-12  # norm that is told apart from none
RMS_OF_ADAMW = 0.2  # of an update's entries; makes one learning rate serve both


class Muon(Optimizer):
    """Steps matrices along their orthogonalized, Nesterov-averaged gradients.

    Source:
        Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the update's
        scale: Liu et al. 2025, arXiv:2502.16982, sec. 2.2.
    """

    def __init__(
        self, weights: Iterable[Tensor], learning_rate: float, momentum: float, decay: float
    ) -> None:
        super().__init__(weights, {"lr": learning_rate, "momentum": momentum, "decay": decay})

    def step(self) -> None:  # type: ignore[override]
        """Update every matrix from its gradient."""
        with torch.no_grad():
            for group in self.param_groups:
                by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
                for weight in group["params"]:
                    by_shape[weight.shape].append(weight)
                for weights in by_shape.values():
                    self._step(weights, group)

    def _step(self, weights: list[Tensor], group: Mapping[str, Any]) -> None:
        """Update matrices of one shape."""
        gradient_NOI = torch.stack([weight.grad for weight in weights])  # type: ignore[misc]
        state = self.state[weights[0]]
        average_NOI = state.setdefault("average_NOI", torch.zeros_like(gradient_NOI))
        average_NOI.lerp_(gradient_NOI, 1 - group["momentum"])
        update_NOI = orthogonalized(gradient_NOI.lerp(average_NOI, group["momentum"]))
        torch._foreach_mul_(weights, 1 - group["lr"] * group["decay"])
        rate = group["lr"] * RMS_OF_ADAMW * max(weights[0].shape) ** 0.5
        torch._foreach_add_(weights, update_NOI.unbind(), alpha=-rate)


def orthogonalized(matrix_NOI: Tensor) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1.

    A Newton-Schulz iteration; nothing is near 1 that was below a thousandth of the norm.
    """
    linear, cubic, quintic = QUINTIC
    is_tall = matrix_NOI.shape[1] > matrix_NOI.shape[2]
    x_NOI = matrix_NOI.mT if is_tall else matrix_NOI
    x_NOI = x_NOI / x_NOI.norm(dim=(1, 2), keepdim=True).clamp_min(SMALLEST)
    for _ in range(ITERATIONS):
        gram_NOO = x_NOI @ x_NOI.mT
        step_NOO = torch.baddbmm(gram_NOO, gram_NOO, gram_NOO, beta=cubic, alpha=quintic)
        x_NOI = torch.baddbmm(x_NOI, step_NOO, x_NOI, beta=linear)
    return x_NOI.mT if is_tall else x_NOI
