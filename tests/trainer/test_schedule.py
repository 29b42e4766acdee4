from hypothesis import given
from hypothesis import strategies as st

from trainer.schedule import learning_rate_factor


@given(steps=st.integers(1, 500), warmup=st.integers(0, 500))
def test_the_rate_rises_then_falls_and_stays_positive(steps: int, warmup: int) -> None:
    factors = [learning_rate_factor(step, steps=steps, warmup=warmup) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_the_peak_is_reached_after_the_warm_up_and_left_at_half_time() -> None:
    factors = [learning_rate_factor(step, steps=100, warmup=9) for step in range(100)]
    assert factors[0] == 0.1
    assert factors[9:51] == [1.0] * 42
    assert factors[75] == 0.5
    assert factors[99] == 0.02
