import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capture import topk
from capture.topk import select


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


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 8.0), k_min=st.integers(1, 4))
def test_it_keeps_the_fewest_entries_that_reach_the_mass(
    seed: int, scale: float, k_min: int
) -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(seed)) * scale
    ids, sizes, tails = reference(logits, k_min, 16, 0.9)

    top = select(logits, k_min=k_min, k_max=16, mass=0.9)

    assert top.size_R.tolist() == sizes
    assert [row[:n].tolist() for row, n in zip(top.ids_RK, sizes, strict=True)] == ids
    assert top.tail_logprob_R.exp().tolist() == pytest.approx(tails, abs=2e-6)
    expected = logits.double().log_softmax(-1).gather(1, top.ids_RK.long())
    assert torch.allclose(top.logprobs_RK.double(), expected, atol=2e-6)


@pytest.mark.parametrize("vocabulary", [topk.CHUNKED_FROM, topk.CHUNKED_FROM + 37, 151_936])
def test_two_stages_find_what_one_finds(vocabulary: int) -> None:
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(1))
    logits[0, -1], logits[1, :70] = 30.0, 20.0 + torch.arange(70.0)

    top = select(logits, k_min=1, k_max=64, mass=1.0)

    assert torch.equal(top.ids_RK.long(), logits.topk(64, dim=-1).indices)


def test_a_vocabulary_smaller_than_k_is_kept_whole() -> None:
    top = select(torch.tensor([[1.0, 2.0, 3.0]]), k_min=1, k_max=64, mass=1.0)

    assert top.ids_RK.tolist() == [[2, 1, 0]]
    assert top.size_R.tolist() == [3]
    assert top.tail_logprob_R.exp().item() <= 1e-6


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = torch.randn(2, 500, generator=torch.Generator().manual_seed(2)).bfloat16()

    top = select(logits, k_min=1, k_max=8, mass=0.5)

    expected = logits.double().log_softmax(-1).gather(1, top.ids_RK.long())
    assert top.logprobs_RK.dtype is torch.float32
    assert torch.allclose(top.logprobs_RK.double(), expected, atol=1e-5)
