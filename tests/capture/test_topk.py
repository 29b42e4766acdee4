import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capture.adaptive import Limits, kept_sizes
from capture.piece import Rows
from capture.search import search
from capture.topk import CHUNK, CHUNKS_PER_CANDIDATE, candidates

TWO_STAGES = CHUNK * CHUNKS_PER_CANDIDATE * 64


@settings(max_examples=40)
@example(seed=315, scales=[1.0, 1.0, 0.25, 1.0, 1.0], k_min=1, k_max=300, mass=0.5)  # a tie
@given(
    seed=st.integers(0, 2**31),
    scales=st.lists(st.floats(0.1, 12.0), min_size=5, max_size=5),
    k_min=st.integers(1, 12),
    k_max=st.sampled_from([12, 16, 300, 500]),
    mass=st.sampled_from([0.5, 0.9, 0.995]),
)
def test_a_gpu_keeps_what_the_compiled_search_keeps(
    seed: int, scales: list[float], k_min: int, k_max: int, mass: float
) -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(seed))
    logits *= torch.tensor(scales)[:, None]
    limits, rows = Limits(k_min, k_max, mass), np.arange(5)

    top = [part.numpy() for part in candidates(logits, limits)]
    found = Rows.chosen(rows, rows.astype(np.int32), top, limits)

    size_R, tail_R, ids_E, logprobs_E, _ = search(
        logits.numpy().ravel(), 300 * rows, 300, limits, np.empty((5, 0))
    )
    assert np.abs(found.size_R - size_R).max() <= 1  # a sum within rounding of the mass
    if found.size_R.tolist() == size_R.tolist():
        rows_E = np.repeat(rows, size_R)  # among logprobs that round alike either may choose
        one, other = (logits.numpy()[rows_E, ids] for ids in (found.ids_E, ids_E))
        assert np.allclose(one, other, rtol=1e-6, atol=1e-6)
        assert len(set(zip(rows_E.tolist(), found.ids_E.tolist(), strict=True))) == len(rows_E)
        assert np.allclose(found.logprobs_E, logprobs_E, atol=3e-6)
        assert np.allclose(np.exp(found.tail_R), np.exp(tail_R), atol=2e-6)


@pytest.mark.parametrize("vocabulary", [TWO_STAGES, TWO_STAGES + 37, 151_936])
@pytest.mark.parametrize("num_rows", [3, 40])
def test_two_stages_find_what_one_finds(vocabulary: int, num_rows: int) -> None:
    logits = torch.randn(num_rows, vocabulary, generator=torch.Generator().manual_seed(1))
    logits[0, -1], logits[1, :70] = 30.0, 20.0 + torch.arange(70.0)

    top = candidates(logits, Limits(1, 64, 0.9999))

    assert top.ids_RK.shape == (num_rows, 64)
    assert top.ids_RK[0, 0] == vocabulary - 1
    # Equal but for two that are one rounding step apart.
    found = logits.gather(1, top.ids_RK.long())
    assert torch.allclose(found, logits.topk(64, dim=-1).values, rtol=0, atol=1e-6)


def test_a_vocabulary_smaller_than_k_is_kept_whole() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])

    ids, logprobs, _ = candidates(logits, Limits(1, 64, 1.0))

    assert ids.tolist() == [[2, 1, 0]]
    assert kept_sizes(logprobs.numpy(), k_min=1, mass=1.0).tolist() == [3]


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = torch.randn(2, 500, generator=torch.Generator().manual_seed(2)).bfloat16()

    top = candidates(logits, Limits(1, 8, 0.5))

    expected = logits.double().log_softmax(-1).gather(1, top.ids_RK.long())
    assert top.logprobs_RK.dtype is torch.float32
    assert torch.allclose(top.logprobs_RK.double(), expected, atol=1e-5)


def test_draws_follow_what_is_not_kept() -> None:
    probs = torch.tensor([[0.6, 0.2, 0.1, 0.06, 0.04], [1.0, 0.0, 0.0, 0.0, 0.0]])

    top = candidates(probs.log(), Limits(1, 3, 0.75), draws=20_000)

    drawn, counts = np.unique(top.draws_RD[0].numpy(), return_counts=True)
    assert drawn.tolist() == [2, 3, 4]
    assert np.allclose(counts / counts.sum(), [0.5, 0.3, 0.2], atol=0.015)
    assert (top.draws_RD[1] == -1).all()
