import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.adaptive import kept_sizes, tail_logprobs
from capture.topk import CHUNK, CHUNKS_PER_CANDIDATE, FEW, candidates

TWO_STAGES = CHUNK * CHUNKS_PER_CANDIDATE * 64


def reference(
    logits: torch.Tensor, k_min: int, k_max: int, mass: float
) -> tuple[list[list[int]], list[int], list[float]]:
    """Row by row in float64, from the full softmax."""
    ids, sizes, tails = [], [], []
    for row in logits.double():
        probs = row.softmax(0)
        order = torch.argsort(row, descending=True, stable=True)
        size = next((n for n in range(1, k_max + 1) if probs[order[:n]].sum() >= mass), k_max)
        size = max(size, k_min)
        ids.append(order[:size].tolist())
        sizes.append(size)
        tails.append(float(probs[order[size:]].sum()))
    return ids, sizes, tails


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    scales=st.lists(st.floats(0.1, 12.0), min_size=5, max_size=5),
    k_min=st.integers(1, 12),
    k_max=st.sampled_from([12, 16, 300, 500]),
    mass=st.sampled_from([0.5, 0.9, 0.995]),
)
def test_it_keeps_the_fewest_entries_that_reach_the_mass(
    seed: int, scales: list[float], k_min: int, k_max: int, mass: float
) -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(seed))
    logits *= torch.tensor(scales)[:, None]
    ids, sizes, tails = reference(logits, k_min, min(k_max, 300), mass)

    top_ids, logprobs = (
        part.numpy() for part in candidates(logits, k_min=k_min, k_max=k_max, mass=mass)
    )
    found = kept_sizes(logprobs, k_min=k_min, mass=mass)

    assert np.abs(found - sizes).max() <= 1  # a sum within rounding of the mass
    for row, size in enumerate(found):
        assert top_ids[row, :size].tolist()[: sizes[row]] == ids[row][:size]
        if size == sizes[row]:
            assert np.exp(tail_logprobs(logprobs, found)[row]) == pytest.approx(
                tails[row], abs=2e-6
            )
        exact = logits[row].double().log_softmax(-1)[torch.from_numpy(top_ids[row, :size]).long()]
        assert np.allclose(logprobs[row, :size], exact, atol=2e-6)


@pytest.mark.parametrize("vocabulary", [TWO_STAGES, TWO_STAGES + 37, 151_936])
@pytest.mark.parametrize("num_rows", [3, 40])
def test_two_stages_find_what_one_finds(vocabulary: int, num_rows: int) -> None:
    logits = torch.randn(num_rows, vocabulary, generator=torch.Generator().manual_seed(1))
    logits[0, -1], logits[1, :70] = 30.0, 20.0 + torch.arange(70.0)

    top = candidates(logits, k_min=1, k_max=64, mass=0.9999)

    assert top.ids_RK.shape == (num_rows, 64)
    assert top.ids_RK[0, 0] == vocabulary - 1
    assert torch.equal(top.ids_RK[1:].long(), logits[1:].topk(64, dim=-1).indices)


def test_rows_whose_few_suffice_are_not_searched_again() -> None:
    logits = torch.randn(4, 2000, generator=torch.Generator().manual_seed(3))
    logits[:, 7] = 40.0

    top = candidates(logits, k_min=1, k_max=64, mass=0.995)

    assert top.ids_RK.shape == (4, FEW)
    assert top.ids_RK[:, 0].tolist() == [7] * 4


def test_a_vocabulary_smaller_than_k_is_kept_whole() -> None:
    ids, logprobs = candidates(torch.tensor([[1.0, 2.0, 3.0]]), k_min=1, k_max=64, mass=1.0)
    sizes = kept_sizes(logprobs.numpy(), k_min=1, mass=1.0)

    assert ids.tolist() == [[2, 1, 0]]
    assert sizes.tolist() == [3]
    assert np.exp(tail_logprobs(logprobs.numpy(), sizes)) <= 1e-6


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = torch.randn(2, 500, generator=torch.Generator().manual_seed(2)).bfloat16()

    top = candidates(logits, k_min=1, k_max=8, mass=0.5)

    expected = logits.double().log_softmax(-1).gather(1, top.ids_RK.long())
    assert top.logprobs_RK.dtype is torch.float32
    assert torch.allclose(top.logprobs_RK.double(), expected, atol=1e-5)
