import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quant.gptq import round_with_compensation
from quant.linear import RoundedLinear
from trainer.grid import (
    Grid,
    Rounded,
    fake_round,
    int4_grid,
    int8_grid,
    largest_group,
    round_inputs,
    round_to_nearest,
)

GRIDS = [int8_grid(127), int8_grid(64), int4_grid(32), Grid(-128, 127)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def correlated_inputs(channels: int, *, seed: int, count: int = 400) -> Tensor:
    """Inputs whose channels move together, as those of a network do: ``(count, channels)``."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, channels // 4, generator=random)
    mixing = torch.randn(channels // 4, channels, generator=random)
    return mixed @ mixing + 0.1 * torch.randn(count, channels, generator=random)


def random_weight(outputs: int, inputs: int, seed: int = 0) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def output_error(weight: Tensor, rounded: Rounded, inputs: Tensor) -> Tensor:
    left = weight.double() - rounded.dense().double()
    return ((inputs.double() @ left.T) ** 2).sum(dim=0)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1000),
    channels=st.sampled_from([32, 128, 192, 224]),
    grid=st.sampled_from(GRIDS),
)
def test_compensation_never_does_worse_than_rounding_each_weight_alone(
    seed: int, channels: int, grid: Grid
) -> None:
    inputs = correlated_inputs(channels, seed=seed)
    weight = random_weight(24, channels, seed + 1)

    better = round_with_compensation(weight, inputs.T @ inputs, grid)

    compensated = output_error(weight, better, inputs)
    nearest = output_error(weight, round_to_nearest(weight, grid), inputs)
    assert (compensated <= nearest * 1.001).all()  # float32 sums decide which is better
    assert compensated.sum() < 0.5 * nearest.sum()


def test_independent_inputs_leave_nothing_to_compensate() -> None:
    weight = random_weight(8, 32)

    rounded = round_with_compensation(weight, torch.eye(32), int4_grid(32))

    alone = round_to_nearest(weight, int4_grid(32))
    torch.testing.assert_close(rounded.values_OI, alone.values_OI)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_weight_is_within_half_a_step_when_rounded_alone(grid: Grid) -> None:
    weight = random_weight(8, 64)

    rounded = round_to_nearest(weight, grid)

    step_OI = rounded.scale_OG.repeat_interleave(64 // rounded.scale_OG.shape[1], dim=1)
    assert ((rounded.dense() - weight).abs() <= step_OI * 0.5001).all()
    assert rounded.values_OI.min() >= grid.low
    assert rounded.values_OI.max() <= grid.high
    assert rounded.values_OI.abs().max() >= grid.high


@pytest.mark.parametrize("grid", GRIDS)
def test_no_weight_leaves_the_grid_when_compensated(grid: Grid) -> None:
    inputs = correlated_inputs(32, seed=0)

    rounded = round_with_compensation(random_weight(8, 32), inputs.T @ inputs, grid)

    assert grid.low <= rounded.values_OI.min()
    assert rounded.values_OI.max() <= grid.high


def test_each_group_of_inputs_has_its_own_step() -> None:
    weight = torch.cat([torch.full((2, 32), 0.01), torch.full((2, 32), 5.0)], dim=1)

    rounded = round_to_nearest(weight, int4_grid(32))

    assert rounded.scale_OG.shape == (2, 2)
    torch.testing.assert_close(rounded.dense(), weight, rtol=0.07, atol=0)


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of 32 do not divide 40 input channels"):
        round_to_nearest(random_weight(2, 40), int4_grid(32))
    assert largest_group([256, 192]) == 64
    assert largest_group([256, 40]) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid", [int8_grid(127), int4_grid(32)])
def test_silent_inputs_and_zero_rows_are_no_trouble(dtype: torch.dtype, grid: Grid) -> None:
    inputs = correlated_inputs(32, seed=0)
    inputs[:, :3] = 0
    weight = random_weight(4, 32).to(dtype)
    weight[1] = 0

    rounded = round_with_compensation(weight, inputs.T @ inputs, grid)

    assert rounded.scale_OG.dtype == dtype
    assert rounded.scale_OG.gt(0).all()
    assert rounded.values_OI[1].tolist() == [0] * 32
    alone = round_to_nearest(weight, grid).values_OI
    torch.testing.assert_close(rounded.values_OI[:, :3], alone[:, :3])


@pytest.mark.parametrize("grid", [int8_grid(64), int4_grid(32)])
def test_training_sees_exactly_the_weights_that_are_exported(grid: Grid) -> None:
    trained = random_weight(64, 512, seed=3)

    seen = fake_round(trained, grid, torch.bfloat16)

    exported = round_to_nearest(trained.to(torch.bfloat16), grid).dense()
    assert torch.equal(seen, exported)


def test_rounding_has_slope_one_in_training() -> None:
    weight = random_weight(4, 32).requires_grad_()
    factor = random_weight(4, 32, seed=1)

    (fake_round(weight, int4_grid(32), torch.bfloat16) * factor).sum().backward()  # type: ignore[no-untyped-call]

    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, factor)


def test_inputs_are_rounded_token_by_token() -> None:
    inputs = torch.tensor([[127.0, 1.4, -0.6], [0.0, 0.0, 0.0], [0.127, 0.001, -0.0004]])

    rounded = round_inputs(inputs)

    expected = torch.tensor([[127.0, 1.0, -1.0], [0.0, 0.0, 0.0], [0.127, 0.001, 0.0]])
    torch.testing.assert_close(rounded, expected)


@pytest.mark.parametrize(
    ("grid", "rounds_inputs", "error"),
    [(int8_grid(127), True, 0.03), (Grid(-128, 127), False, 0.03), (int4_grid(32), False, 0.4)],
)
def test_a_rounded_layer_computes_what_the_linear_one_did(
    grid: Grid, rounds_inputs: bool, error: float
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 32).to(torch.bfloat16)
    inputs = torch.randn(5, 64, dtype=torch.bfloat16)
    weight = round_to_nearest(layer.weight.detach(), grid)

    outputs = RoundedLinear(weight, layer.bias, rounds_inputs=rounds_inputs)(inputs)

    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs, layer(inputs), atol=error, rtol=0.02)
