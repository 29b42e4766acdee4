import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quant.gptq import Int8Weight, round_to_nearest, round_with_compensation
from quant.linear import Int8Linear, round_activations


def correlated_inputs(channels: int, *, seed: int, count: int = 400) -> Tensor:
    """Inputs whose channels move together, as those of a network do: ``(count, channels)``."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, channels // 4, generator=random)
    mixing = torch.randn(channels // 4, channels, generator=random)
    return mixed @ mixing + 0.1 * torch.randn(count, channels, generator=random)


def output_error(weight: Tensor, rounded: Int8Weight, inputs: Tensor) -> Tensor:
    restored = rounded.values_OI.double() * rounded.scale_O1.double()
    return ((inputs.double() @ (weight.double() - restored).T) ** 2).sum(dim=0)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), channels=st.sampled_from([16, 128, 192, 200]))
def test_compensation_never_does_worse_than_rounding_each_weight_alone(
    seed: int, channels: int
) -> None:
    inputs = correlated_inputs(channels, seed=seed)
    weight = torch.randn(24, channels, generator=torch.Generator().manual_seed(seed + 1))

    better = round_with_compensation(weight, inputs.T @ inputs)

    compensated = output_error(weight, better, inputs)
    nearest = output_error(weight, round_to_nearest(weight), inputs)
    assert (compensated <= nearest * 1.001).all()  # float32 sums decide which is better
    assert compensated.sum() < 0.5 * nearest.sum()


def test_independent_inputs_leave_nothing_to_compensate() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))

    rounded = round_with_compensation(weight, torch.eye(32))

    torch.testing.assert_close(rounded.values_OI, round_to_nearest(weight).values_OI)


def test_every_weight_is_within_half_a_step_when_rounded_alone() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))

    rounded = round_to_nearest(weight)

    error = (rounded.values_OI * rounded.scale_O1 - weight).abs()
    assert (error <= rounded.scale_O1 * 0.5001).all()
    assert rounded.values_OI.abs().amax(dim=1).tolist() == [127] * 8


def test_no_weight_exceeds_the_limit() -> None:
    inputs = correlated_inputs(32, seed=0)
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))

    rounded = round_with_compensation(weight, inputs.T @ inputs, 64)

    assert rounded.values_OI.abs().max() == 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_silent_inputs_and_zero_rows_are_no_trouble(dtype: torch.dtype) -> None:
    inputs = correlated_inputs(16, seed=0)
    inputs[:, :3] = 0
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[1] = 0

    rounded = round_with_compensation(weight, inputs.T @ inputs)

    assert rounded.scale_O1.dtype == dtype
    assert rounded.scale_O1.gt(0).all()
    assert rounded.values_OI[1].tolist() == [0] * 16
    alone = round_to_nearest(weight).values_OI
    torch.testing.assert_close(rounded.values_OI[:, :3], alone[:, :3])


def test_inputs_are_rounded_token_by_token() -> None:
    inputs = torch.tensor([[127.0, 1.4, -0.6], [0.0, 0.0, 0.0], [0.127, 0.001, -0.0004]])

    rounded = round_activations(inputs)

    expected = torch.tensor([[127.0, 1.0, -1.0], [0.0, 0.0, 0.0], [0.127, 0.001, 0.0]])
    torch.testing.assert_close(rounded, expected)


def test_an_int8_layer_computes_what_the_linear_one_did() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 32).to(torch.bfloat16)
    inputs = torch.randn(5, 64, dtype=torch.bfloat16)

    int8 = Int8Linear(round_to_nearest(layer.weight.detach()), layer.bias)

    outputs = int8(inputs)
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs, layer(inputs), atol=0.03, rtol=0.02)
