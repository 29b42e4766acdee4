from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.compare.bootstrap import Resampled, Span, rows_to_clear

NEVER_BETTER = Span(best=0.0)
Draw = Callable[[], np.ndarray]


def wrong(misses: int, rows: int) -> np.ndarray:
    """Differences of exact match: -1 for each miss."""
    return -(np.arange(rows) < misses).astype(np.float64)


@pytest.mark.parametrize(
    ("misses", "rows", "low", "high"),
    # Bounds of Clopper and Pearson at 5 % on each side, from the quantiles of beta distributions.
    [(0, 20, -0.13911, 0.0), (3, 50, -0.14784, -0.01655), (20, 400, -0.07192, -0.03335)],
)
def test_bounds_of_right_and_wrong_are_those_of_clopper_and_pearson(
    misses: int, rows: int, low: float, high: float
) -> None:
    found = Resampled.of(wrong(misses, rows), NEVER_BETTER, seed=0)

    assert found.mean == pytest.approx(-misses / rows)
    assert found.low(0.05) == pytest.approx(low, abs=0.002)
    assert found.high(0.05) == pytest.approx(high, abs=0.002)


def test_equal_rows_are_not_certainty() -> None:
    few = Resampled.of(np.zeros(20), Span(), seed=0)
    many = Resampled.of(np.zeros(2000), Span(), seed=0)

    assert few.low(0.05) < -0.1 < many.low(0.05) < 0 < many.high(0.05) < 0.1 < few.high(0.05)


@given(
    st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=60),
    st.integers(0, 5),
)
def test_bounds_lie_around_the_mean_and_widen_with_certainty(
    values: list[float], seed: int
) -> None:
    found = Resampled.of(values, Span(), seed, draws=2000)

    # The unseen row moves the middle by no more than its own weight.
    slack = 2 / (len(values) + 1) + 0.05
    assert -1 <= found.low(0.01) <= found.low(0.2) <= found.mean + slack
    assert found.mean - slack <= found.high(0.2) <= found.high(0.01) <= 1


def test_the_same_seed_gives_the_same_bounds_in_any_order_of_rows() -> None:
    values = np.random.default_rng(0).normal(0, 0.2, 90)

    first = Resampled.of(values, Span(), seed=3, draws=500)
    again = Resampled.of(values[::-1], Span(), seed=3, draws=500)

    assert first.low(0.05) == pytest.approx(again.low(0.05))


@pytest.mark.parametrize("rows", [25, 120])
@pytest.mark.parametrize("name", ["wrong", "either way", "graded", "skewed"])
def test_an_interval_misses_the_truth_no_more_often_than_it_says(name: str, rows: int) -> None:
    random = np.random.default_rng(rows)
    alpha, runs = 0.05, 400
    cases: dict[str, tuple[Draw, float, Span]] = {
        "wrong": (lambda: -(random.random(rows) < 0.05).astype(float), -0.05, NEVER_BETTER),
        "either way": (
            lambda: random.choice([-1.0, 0.0, 1.0], rows, p=[0.2, 0.7, 0.1]),
            -0.1,
            Span(),
        ),
        "graded": (lambda: random.uniform(-0.6, 0.2, rows), -0.2, Span()),
        "skewed": (lambda: -random.beta(0.1, 1.9, rows), -0.05, NEVER_BETTER),
    }
    draw, truth, span = cases[name]

    found = [Resampled.of(draw(), span, seed, draws=1000) for seed in range(runs)]

    too_high = np.mean([each.low(alpha) > truth for each in found])
    too_low = np.mean([each.high(alpha) < truth for each in found])
    slack = 2.6 * np.sqrt(alpha * (1 - alpha) / runs)  # chance of these runs alone, 1 in 200
    assert too_high <= alpha + slack
    assert too_low <= alpha + slack


def test_rows_are_counted_until_a_bound_clears() -> None:
    values = wrong(4, 200)  # 2 % worse

    needed = rows_to_clear(values, -0.05, NEVER_BETTER, 0.05, seed=0)
    already = rows_to_clear(values, -0.2, NEVER_BETTER, 0.05, seed=0)

    assert already == 200
    assert needed is not None
    enough, short = (
        Resampled.of(wrong(round(rows * 0.02), rows), NEVER_BETTER, seed=1).low(0.05)
        for rows in (round(needed * 1.25), round(needed * 0.75))
    )
    assert short < -0.05 < enough


def test_perfect_rows_need_as_many_as_the_rule_of_three_says() -> None:
    needed = rows_to_clear(np.zeros(10), -0.05, NEVER_BETTER, 0.05, seed=0)

    assert needed == pytest.approx(np.log(0.05) / np.log(0.95), rel=0.1)


def test_worse_rows_are_counted_until_that_is_sure() -> None:
    needed = rows_to_clear(wrong(8, 100), -0.05, NEVER_BETTER, 0.05, seed=0)

    assert needed is not None
    assert (
        Resampled.of(wrong(round(needed * 0.1), round(needed * 1.25)), NEVER_BETTER, 0).high(0.05)
        < -0.05
    )


def test_at_the_limit_no_number_of_rows_is_promised() -> None:
    assert rows_to_clear(wrong(5, 100), -0.05, NEVER_BETTER, 0.05, seed=0) is None


def test_many_different_values_are_counted_too() -> None:
    values = np.linspace(-0.6, 0.54, 101)  # 3 % worse

    needed = rows_to_clear(values, -0.05, Span(), 0.05, seed=0)

    spread = values.std() / (values.mean() + 0.05)
    assert needed == pytest.approx((1.645 * spread) ** 2, rel=0.35)
