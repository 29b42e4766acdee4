"""Projection and loss in one: the same numbers and gradients as the plain way, chunk by chunk."""

import pytest
import torch
from torch import Tensor

from trainer import fused
from trainer.fused import each_seen, fused_loss
from trainer.losses import LOSSES, Loss, Targets
from trainer.student_view import look

N, D, V, K = 7, 5, 13, 4


def targets_of(dtype: torch.dtype, *, full: bool = False, draws: bool = True) -> Targets:
    """Positions with rows of different lengths, one of them without a tail."""
    random = torch.Generator().manual_seed(2)
    logits = torch.randn(N, V, generator=random, dtype=torch.float64)
    logprobs, ids = logits.log_softmax(-1).sort(dim=-1, descending=True)
    size = V if full else K
    kept, tail_ids = ids[:, :size].clone(), ids[:, size:]
    top = logprobs[:, :size].clone()
    tail = torch.full((N,), -torch.inf, dtype=torch.float64)
    if not full:
        tail = logprobs[:, size:].logsumexp(-1)
        top[1, 2:] = -torch.inf  # a short row
        kept[1, 2:] = kept[1, 0]
        tail[2] = -torch.inf
    drawn = None
    if draws and not full:
        drawn = tail_ids[:, :2].clone()
        drawn[2] = -1
    labels = torch.randint(V, (N,), generator=random)
    return Targets(labels, kept, top.to(dtype), tail.to(dtype), drawn)


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    hidden = torch.randn(N, D, generator=random, dtype=torch.float64).to(dtype)
    weight = torch.randn(V, D, generator=random, dtype=torch.float64).to(dtype)
    weights = torch.rand(N, generator=random, dtype=torch.float64).to(dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), weights


def plain(hidden: Tensor, weight: Tensor, targets: Targets, loss: Loss, weights: Tensor) -> Tensor:
    ids = (targets.completion_ids_N, targets.topk_ids_NK, targets.draws_NM)
    return (loss(look(hidden @ weight.T, *ids), targets) * weights).sum()


@pytest.fixture(params=[1, 3, N])
def rows_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(fused, "CHUNK_BYTES", request.param * 4 * V)
    rows: int = request.param
    return rows


@pytest.mark.usefixtures("rows_at_once")
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradients_are_those_of_the_plain_way(name: str, full: bool) -> None:
    targets = targets_of(torch.float64, full=full)
    hidden, weight, weights = inputs(torch.float64)
    ours = fused_loss(hidden, weight, targets, LOSSES[name], weights)
    theirs = plain(hidden, weight, targets, LOSSES[name], weights)
    found = torch.autograd.grad(3 * ours, (hidden, weight))
    expected = torch.autograd.grad(3 * theirs, (hidden, weight))

    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
    for grad, reference in zip(found, expected, strict=True):
        assert torch.allclose(grad, reference, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_match_finite_differences(name: str) -> None:
    targets = targets_of(torch.float64)
    hidden, weight, weights = inputs(torch.float64)

    assert torch.autograd.gradcheck(
        lambda h, w: fused_loss(h, w, targets, LOSSES[name], weights), (hidden, weight)
    )


def test_a_frozen_projection_gets_no_gradient() -> None:
    hidden, weight, weights = inputs(torch.float32)
    frozen = weight.detach()
    loss = fused_loss(hidden, frozen, targets_of(torch.float32), LOSSES["forward_kl"], weights)
    torch.autograd.backward(loss)

    assert frozen.grad is None
    assert hidden.grad is not None


def test_products_follow_autocast_and_sums_stay_in_float32() -> None:
    hidden, weight, weights = inputs(torch.float32)
    targets = targets_of(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused_loss(hidden, weight, targets, LOSSES["forward_kl"], weights)
    torch.autograd.backward(loss)
    exact = plain(hidden, weight, targets, LOSSES["forward_kl"], weights)

    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.03)
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_a_student_with_more_tokens_than_the_teacher_has_them_in_its_tail() -> None:
    hidden, weight, weights = inputs(torch.float64)
    padded = torch.cat([weight, weight.new_full((3, D), -9.0)])
    targets = targets_of(torch.float64)

    assert torch.isfinite(fused_loss(hidden, padded, targets, LOSSES["forward_kl"], weights))


@pytest.mark.usefixtures("rows_at_once")
def test_what_is_seen_without_gradients_is_the_same() -> None:
    targets = targets_of(torch.float64)
    hidden, weight, _ = inputs(torch.float64)
    whole = look(hidden @ weight.T, targets.completion_ids_N, targets.topk_ids_NK)
    chunks = list(each_seen(hidden, weight, targets))

    best = (hidden @ weight.T).softmax(-1).max(-1)
    assert torch.equal(torch.cat([chunk.best_N for chunk in chunks]), best.indices)
    assert torch.allclose(torch.cat([chunk.confidence_N for chunk in chunks]), best.values)
    assert torch.allclose(torch.cat([chunk.seen.tail_N for chunk in chunks]), whole.tail_N)
    assert torch.allclose(torch.cat([chunk.seen.head_NK for chunk in chunks]), whole.head_NK)
