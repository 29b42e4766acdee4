"""The compiled search against the same rule in float64, row by row."""

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.adaptive import Limits
from capture.search import BLOCK, NO_TOKEN, Kept, search

Scores = npt.NDArray[np.float32]


def found_in(
    scores_RV: Scores, k_min: int, k_max: int, mass: float, draw_RD: Scores | None = None
) -> Kept:
    num_rows, vocabulary = scores_RV.shape
    first_R = np.arange(num_rows) * vocabulary
    draws = np.empty((num_rows, 0)) if draw_RD is None else draw_RD.astype(np.float64)
    return Kept(*search(scores_RV.ravel(), first_R, vocabulary, Limits(k_min, k_max, mass), draws))


def exact_logprobs(scores_V: Scores) -> npt.NDArray[np.float64]:
    wide_V = scores_V.astype(np.float64)
    norm: float = np.log(np.exp(wide_V - wide_V.max()).sum()) + wide_V.max()
    return wide_V - norm


def assert_right(scores_RV: Scores, kept: Kept, k_min: int, k_max: int, mass: float) -> None:
    end = 0
    for scores_V, size, tail in zip(scores_RV, kept.size_R, kept.tail_R, strict=True):
        logprobs_V = exact_logprobs(scores_V)
        order_V = np.argsort(-scores_V, kind="stable")
        cumulative_V = np.exp(logprobs_V[order_V]).cumsum()
        fewest = int(np.searchsorted(cumulative_V, mass)) + 1
        wanted = min(max(fewest, k_min), k_max, len(scores_V))
        if size != wanted:  # a sum within rounding of the mass
            assert abs(cumulative_V[min(size, wanted) - 1] - mass) < 1e-6
        ids = kept.ids_E[end : end + size]
        assert ids.tolist() == order_V[:size].tolist()
        assert np.allclose(kept.logprobs_E[end : end + size], logprobs_V[ids], atol=3e-6)
        outside = np.exp(logprobs_V[order_V[size:]]).sum()
        assert np.exp(tail) == pytest.approx(outside, rel=5e-5, abs=2e-9)
        end += size
    assert end == len(kept.ids_E) == len(kept.logprobs_E)


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**31),
    vocabulary=st.sampled_from([1, 3, 64, 65, 300, BLOCK, BLOCK + 1, 5000]),
    scales=st.lists(st.floats(0.0, 15.0), min_size=3, max_size=3),
    k_min=st.integers(1, 12),
    k_max=st.sampled_from([12, 16, 64, 500]),
    mass=st.sampled_from([0.5, 0.9, 0.995, 1.0]),
)
def test_it_keeps_the_fewest_entries_that_reach_the_mass(
    seed: int, vocabulary: int, scales: list[float], k_min: int, k_max: int, mass: float
) -> None:
    random = np.random.default_rng(seed)
    noise_RV = random.standard_normal((3, vocabulary))
    scores_RV = (noise_RV * np.array(scales)[:, None]).astype(np.float32)

    assert_right(scores_RV, found_in(scores_RV, k_min, k_max, mass), k_min, k_max, mass)


@pytest.mark.parametrize("peak", [0.0, 12.0, 25.0, 60.0])
def test_a_real_vocabulary_is_searched_to_its_last_entry(peak: float) -> None:
    scores_RV = np.random.default_rng(1).standard_normal((2, 151_936)).astype(np.float32)
    scores_RV[0, -1] += np.float32(peak)
    scores_RV[1, 70_000] += np.float32(peak)

    assert_right(scores_RV, found_in(scores_RV, 1, 64, 0.995), 1, 64, 0.995)


def test_masked_entries_have_no_mass() -> None:
    scores_RV = np.full((2, 3000), -np.inf, np.float32)
    scores_RV[0, [5, 2999]] = [1.0, 1.0]
    scores_RV[1, 7] = -300.0

    kept = found_in(scores_RV, 1, 64, 0.995)

    assert kept.size_R.tolist() == [2, 1]
    assert kept.ids_E.tolist() == [5, 2999, 7]
    assert np.allclose(np.exp(kept.logprobs_E), [0.5, 0.5, 1.0])


def test_scores_that_are_not_numbers_are_kept_as_such_and_harm_no_other_row() -> None:
    scores_RV = np.random.default_rng(2).standard_normal((3, 2000)).astype(np.float32)
    scores_RV[1] = np.nan
    scores_RV[2, 17] = np.inf

    kept = found_in(scores_RV, 1, 64, 0.9, np.full((3, 2), 0.5, np.float32))

    alone = found_in(scores_RV[:1], 1, 64, 0.9)
    assert (kept.size_R >= 1).all()
    assert kept.ids_E[: kept.size_R[0]].tolist() == alone.ids_E.tolist()
    assert kept.tail_R[0] == pytest.approx(alone.tail_R[0])


def test_draws_follow_the_tail() -> None:
    probs = np.array([0.6, 0.2, 0.1, 0.06, 0.04])
    scores_RV = np.full((1, 12 * BLOCK), -np.inf, np.float32)
    places = np.array([4, 1030, 9, 2060, 3000])
    scores_RV[0, places] = np.log(probs)
    draw_RD = np.random.default_rng(3).random((1, 20_000)).astype(np.float32)

    kept = found_in(scores_RV, 1, 2, 0.7, draw_RD)

    assert kept.ids_E.tolist() == [4, 1030]
    drawn, counts = np.unique(kept.draws_RD, return_counts=True)
    assert drawn.tolist() == [9, 2060, 3000]
    assert np.allclose(counts / counts.sum(), [0.5, 0.3, 0.2], atol=0.015)


def test_nothing_is_drawn_from_a_tail_without_mass() -> None:
    kept = found_in(np.zeros((1, 3), np.float32), 3, 3, 1.0, np.zeros((1, 2), np.float32))

    assert kept.draws_RD.tolist() == [[NO_TOKEN, NO_TOKEN]]


def test_it_works_where_nothing_can_be_written() -> None:
    code = """
from numba.core import caching

class Nowhere(caching.InTreeCacheLocator):
    def ensure_cache_path(self):
        raise OSError("read-only")

caching.CacheImpl._locator_classes = [Nowhere]
from capture import search
print(search._maximum.stats.cache_path, search._maximum(search.np.ones(3, "f4")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "None 1.0\n", done.stderr
