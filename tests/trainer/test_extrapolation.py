import numpy as np
import pytest

from trainer.extrapolation import predict

SHARES = [0.01, 0.02, 0.04, 0.08]


def test_a_clean_curve_is_drawn_out() -> None:
    values = [0.3 * share**-0.3 for share in SHARES]
    found = predict(SHARES, values)

    assert found.low < 0.3 < found.high
    assert found.low <= found.median <= found.high
    assert values[-1] > found.median


def test_a_flat_curve_stays_where_it_is() -> None:
    found = predict(SHARES, [0.5, 0.5, 0.5, 0.5])

    assert found.low < 0.5 < found.high < 0.7
    assert 0.4 < found.median < 0.5


def test_the_interval_holds_what_comes_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(300):
        floor, exponent = rng.uniform(0, 0.3), rng.uniform(0.1, 0.8)
        curve = floor + (1 - floor) * (np.array([*SHARES, 1.0]) / SHARES[0]) ** -exponent
        *values, truth = curve * np.exp(rng.normal(0, 0.05, len(curve)))
        found = predict(SHARES, values)
        hits.append(found.low <= truth <= found.high)

    assert np.mean(hits) > 0.85


def test_noise_widens_the_interval() -> None:
    clean, noisy = (
        predict(SHARES, (np.array([8, 4, 2, 1]) * wobbles).tolist())
        for wobbles in ([1, 1, 1, 1], [1.3, 0.8, 1.3, 0.8])
    )

    assert noisy.high / noisy.low > 1.5 * clean.high / clean.low


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0, 0.0], [0.2, 0.1, 0.0, 0.0]])
def test_values_may_be_nothing(values: list[float]) -> None:
    found = predict(SHARES, values)

    assert 0 < found.low <= found.high < 1e-3
