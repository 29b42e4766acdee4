"""Quantization-aware training: a student computes with the weights it will have once exported."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from capture.host import largest_int8_weight
from trainer.errors import ModelError
from trainer.grid import (
    GROUP_SIZES,
    Grid,
    fake_round,
    int4_grid,
    int8_grid,
    largest_group,
    round_inputs,
    straight_through,
)

FakeFormat = Literal["int8", "int4"]

STORED = torch.bfloat16  # what a checkpoint's weights are, and the exporter rounds


class FakeRoundedLinear(nn.Linear):
    """A linear layer that rounds its weights, and its inputs if wished, each time it is used.

    Its parameters are those of ``nn.Linear``, under the same names, and learn as if nothing had
    been rounded.

    Attributes:
        grid: Of the weights.
        rounds_inputs: Whether each token's inputs are rounded to 8 bits.
    """

    grid: Grid
    rounds_inputs: bool

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(..., I)`` to ``(..., O)``."""
        weight_OI = fake_round(self.weight, self.grid, STORED)
        if self.rounds_inputs:
            inputs = straight_through(inputs, round_inputs(inputs.detach()))
        return functional.linear(inputs, weight_OI, self.bias)


def fake_quantize(student: PreTrainedModel, name: FakeFormat) -> None:
    """Let every linear layer but the output projection compute as it will when exported.

    Raises:
        ModelError: If the width of a layer cannot be divided into groups.
    """
    grid = grid_of(student, name)
    for layer in _layers(student):
        layer.__class__ = FakeRoundedLinear
        layer.grid, layer.rounds_inputs = grid, name == "int8"  # type: ignore[assignment]


def grid_of(student: PreTrainedModel, name: FakeFormat) -> Grid:
    """Return what the weights of a format are rounded to on this machine.

    Raises:
        ModelError: If the width of a layer cannot be divided into groups.
    """
    if name == "int8":
        return int8_grid(largest_int8_weight())
    widths = [layer.in_features for layer in _layers(student)]
    group = largest_group(widths)
    if group is None:
        raise ModelError(
            f"fake_quantize = {name!r}: groups of {GROUP_SIZES[-1]} do not divide the widths "
            f"{sorted(set(widths))} of the layers; choose a student of others, or "
            "fake_quantize = 'int8'"
        )
    return int4_grid(group)


def _layers(student: PreTrainedModel) -> list[nn.Linear]:
    head = student.get_output_embeddings()
    return [m for m in student.modules() if isinstance(m, nn.Linear) and m is not head]
