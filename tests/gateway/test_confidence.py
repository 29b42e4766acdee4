"""The bounds hold at every time of looking, and narrow as evidence grows."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.confidence import confidence_sequence

ALPHA = 0.05


@st.composite
def counts(draw: st.DrawFn, max_trials: int = 5000) -> tuple[int, int]:
    trials = draw(st.integers(0, max_trials))
    return draw(st.integers(0, trials)), trials


def chance_of_ever_missing(probability: float, looks: int) -> float:
    """Exact chance that the bounds exclude the truth at one of the first ``looks`` sizes.

    ``inside[s]`` is the chance of having seen ``s`` successes and been right all along.
    """
    inside = [1.0]
    for trials in range(1, looks + 1):
        reached = [0.0] * (trials + 1)
        for successes, chance in enumerate(inside):
            reached[successes] += chance * (1 - probability)
            reached[successes + 1] += chance * probability
        inside = [
            chance if chance and holds(successes, trials, probability) else 0.0
            for successes, chance in enumerate(reached)
        ]
    return 1 - math.fsum(inside)


def holds(successes: int, trials: int, probability: float) -> bool:
    low, high = confidence_sequence.__wrapped__(successes, trials, ALPHA)
    return low <= probability <= high


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
def test_looking_after_every_trial_errs_less_often_than_alpha(probability: float) -> None:
    missed = chance_of_ever_missing(probability, looks=150)

    assert 0.0 < missed <= ALPHA


def test_a_bound_for_one_look_would_err_too_often_when_looked_at_after_every_trial() -> None:
    """The reason for this module: the usual interval is wrong several times as often."""

    def wald_holds(successes: int, trials: int, probability: float) -> bool:
        margin = 1.96 * math.sqrt(probability * (1 - probability) / trials)
        return abs(successes / trials - probability) <= margin

    inside = {0: 1.0}
    for trials in range(1, 151):
        reached: dict[int, float] = {}
        for successes, chance in inside.items():
            for gained in (0, 1):
                reached[successes + gained] = reached.get(successes + gained, 0.0) + chance / 2
        inside = {s: chance for s, chance in reached.items() if wald_holds(s, trials, 0.5)}

    assert 1 - math.fsum(inside.values()) > 3 * ALPHA


@given(counts())
def test_the_bounds_surround_what_was_observed(count: tuple[int, int]) -> None:
    successes, trials = count

    low, high = confidence_sequence(successes, trials, ALPHA)

    assert 0 <= low <= high <= 1
    assert low * trials <= successes <= high * trials + 1e-9


@given(counts())
def test_exchanging_success_and_failure_mirrors_the_bounds(count: tuple[int, int]) -> None:
    successes, trials = count

    low, high = confidence_sequence(successes, trials, ALPHA)

    mirrored = confidence_sequence(trials - successes, trials, ALPHA)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(counts(500), st.integers(2, 50))
def test_the_same_evidence_again_only_narrows_the_bounds(count: tuple[int, int], n: int) -> None:
    successes, trials = count

    low, high = confidence_sequence(successes, trials, ALPHA)
    low_again, high_again = confidence_sequence(n * successes, n * trials, ALPHA)

    assert low <= low_again + 1e-12
    assert high_again <= high + 1e-12


@given(counts(500))
def test_a_smaller_alpha_widens_the_bounds(count: tuple[int, int]) -> None:
    low, high = confidence_sequence(*count, 0.05)
    low_surer, high_surer = confidence_sequence(*count, 0.01)

    assert low_surer <= low
    assert high <= high_surer


def test_the_bounds_agree_with_the_mixture_integrated_numerically() -> None:
    """Both ends are where the mean likelihood over the prior is 1/alpha times the likelihood."""
    successes, trials = 37, 50
    steps = 200_000
    angles = [(i + 0.5) / steps * math.pi / 2 for i in range(steps)]
    # Under Beta(1/2, 1/2) the angle is uniform, where the probability is its sine squared.
    mean = math.fsum(
        math.sin(a) ** (2 * successes) * math.cos(a) ** (2 * (trials - successes)) for a in angles
    )

    for bound in confidence_sequence(successes, trials, ALPHA):
        likelihood = bound**successes * (1 - bound) ** (trials - successes)
        assert mean / steps / likelihood == pytest.approx(1 / ALPHA, rel=1e-6)


@pytest.mark.parametrize(("ceiling", "needed"), [(0.05, 116), (0.02, 320), (0.01, 680)])
def test_the_documented_numbers_of_faultless_trials_prove_a_ceiling(
    ceiling: float, needed: int
) -> None:
    assert confidence_sequence(0, needed - 1, ALPHA)[1] > ceiling
    assert confidence_sequence(0, needed, ALPHA)[1] <= ceiling


def test_no_evidence_leaves_everything_possible() -> None:
    assert confidence_sequence(0, 0, ALPHA) == (0.0, 1.0)


def test_a_billion_trials_are_no_trouble() -> None:
    low, high = confidence_sequence(900_000_000, 1_000_000_000, ALPHA)

    assert 0.8998 < low < 0.9 < high < 0.9002


@pytest.mark.parametrize("bad", [(-1, 5, 0.05), (6, 5, 0.05), (1, 5, 0.0), (1, 5, 1.0)])
def test_impossible_counts_are_refused(bad: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        confidence_sequence(*bad)
