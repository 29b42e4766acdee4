import math
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.reference import bucketed, kl_divergence, log_softmax
from trainer import losses
from trainer.config import LossName
from trainer.losses import LOSSES, Loss, Targets
from trainer.student_view import look

VOCABULARY = 12
scores = st.lists(
    st.floats(-30, 30, allow_nan=False, width=32), min_size=VOCABULARY, max_size=VOCABULARY
)
sizes = st.integers(1, VOCABULARY)
law = settings(max_examples=40)


def of_logits(loss: Loss, logits: Tensor, targets: Targets) -> Tensor:
    ids = (targets.completion_ids_N, targets.topk_ids_NK, targets.draws_NM)
    return loss(look(logits, *ids), targets)


def forward_kl(logits: Tensor, targets: Targets) -> Tensor:
    return of_logits(losses.forward_kl, logits, targets)


def behaviour_cloning(logits: Tensor, targets: Targets) -> Tensor:
    return of_logits(losses.behaviour_cloning, logits, targets)


def targets_of(teacher_logits: list[float], size: int, dtype: torch.dtype) -> Targets:
    """What the log would hold of one position."""
    logprobs = log_softmax(teacher_logits)
    head = sorted(range(VOCABULARY), key=lambda i: -logprobs[i])[:size]
    *kept, tail = bucketed(logprobs, head)
    return Targets(
        torch.tensor([head[0]]),
        torch.tensor([head]),
        torch.tensor([kept], dtype=dtype),
        torch.tensor([tail], dtype=dtype),
    )


def loss_of(teacher: list[float], student: list[float], size: int) -> float:
    targets = targets_of(teacher, size, torch.float64)
    return float(forward_kl(torch.tensor([student], dtype=torch.float64), targets))


@law
@given(teacher=scores, student=scores, size=sizes)
def test_forward_kl_is_what_its_definition_says(
    teacher: list[float], student: list[float], size: int
) -> None:
    head = targets_of(teacher, size, torch.float64).topk_ids_NK[0].tolist()
    expected = kl_divergence(
        bucketed(log_softmax(teacher), head), bucketed(log_softmax(student), head)
    )
    assert loss_of(teacher, student, size) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@law
@given(teacher=scores, student=scores, size=sizes)
def test_forward_kl_lies_between_zero_and_the_full_divergence(
    teacher: list[float], student: list[float], size: int
) -> None:
    full = kl_divergence(log_softmax(teacher), log_softmax(student))
    assert -1e-9 <= loss_of(teacher, student, size) <= full + 1e-9


@law
@given(teacher=scores, student=scores)
def test_forward_kl_of_the_whole_vocabulary_is_the_full_divergence(
    teacher: list[float], student: list[float]
) -> None:
    full = kl_divergence(log_softmax(teacher), log_softmax(student))
    assert loss_of(teacher, student, VOCABULARY) == pytest.approx(full, rel=1e-9, abs=1e-9)


@law
@given(teacher=scores, student=scores, size=st.integers(1, VOCABULARY - 1))
def test_forward_kl_never_falls_when_more_entries_are_kept(
    teacher: list[float], student: list[float], size: int
) -> None:
    assert loss_of(teacher, student, size) <= loss_of(teacher, student, size + 1) + 1e-9


@law
@given(teacher=scores, size=sizes)
def test_forward_kl_of_a_model_with_itself_is_zero(teacher: list[float], size: int) -> None:
    assert loss_of(teacher, teacher, size) == pytest.approx(0, abs=1e-9)


@law
@given(teacher=scores, student=scores, size=sizes)
def test_float32_follows_the_float64_reference(
    teacher: list[float], student: list[float], size: int
) -> None:
    targets = targets_of(teacher, size, torch.float32)
    in_float32 = float(forward_kl(torch.tensor([student], dtype=torch.float32), targets))
    assert in_float32 == pytest.approx(loss_of(teacher, student, size), rel=1e-4, abs=1e-4)


@law
@given(teacher=scores, student=scores, size=sizes)
def test_gradient_matches_finite_differences(
    teacher: list[float], student: list[float], size: int
) -> None:
    targets = targets_of(teacher, size, torch.float64)
    logits = (torch.tensor([student], dtype=torch.float64) / 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: forward_kl(z, targets), (logits,))


@pytest.mark.parametrize("gap", [10.0, 50.0, 80.0])
def test_a_tail_too_small_for_float32_keeps_its_value_and_gradient(gap: float) -> None:
    student = torch.zeros(1, VOCABULARY)
    student[0, 0] = gap
    student.requires_grad_()
    tail = math.log(0.5)
    targets = Targets(
        torch.tensor([0]), torch.tensor([[0]]), torch.tensor([[tail]]), torch.tensor([tail])
    )
    loss = forward_kl(student, targets).sum()
    torch.autograd.backward(loss)
    # The student's tail has log-mass log(11) - gap: 1 - exp(-gap) would round to none.
    expected = tail - 0.5 * (math.log(VOCABULARY - 1) - gap)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-3)
    assert student.grad is not None
    assert student.grad[0, 0] == pytest.approx(0.5, abs=1e-3)


def test_an_empty_tail_and_short_rows_give_finite_gradients() -> None:
    ids = torch.tensor([[3, 1, 2], [5, 5, 5]])
    logprobs = torch.tensor([[-0.5, -1.5, -2.0], [0.0, -torch.inf, -torch.inf]])
    targets = Targets(torch.tensor([3, 5]), ids, logprobs, torch.tensor([-3.0, -torch.inf]))
    logits = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    loss = forward_kl(logits, targets)
    torch.autograd.backward(loss.sum())
    assert loss[1].item() == pytest.approx(-logits.log_softmax(-1)[1, 5].item(), abs=1e-5)
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_rounded_logprobs_are_rescaled_before_they_are_compared() -> None:
    teacher = list(np.linspace(3, -3, VOCABULARY))
    exact = targets_of(teacher, 4, torch.float64)
    rounded = Targets(
        exact.completion_ids_N,
        exact.topk_ids_NK,
        exact.topk_logprobs_NK + 0.01,
        exact.tail_logprob_N + 0.01,
    )
    logits = torch.tensor([teacher], dtype=torch.float64)
    assert float(forward_kl(logits, rounded)) == pytest.approx(0, abs=1e-9)


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1)).bfloat16()
    targets = targets_of([float(x) for x in range(VOCABULARY)], 3, torch.float32)
    losses: list[Tensor] = [forward_kl(logits, targets), behaviour_cloning(logits, targets)]
    assert [loss.dtype for loss in losses] == [torch.float32] * 2
    assert torch.equal(losses[0], forward_kl(logits.float(), targets))


def test_behaviour_cloning_is_the_surprise_at_the_generated_token() -> None:
    student = [float(x) for x in range(VOCABULARY)]
    targets = targets_of(student, 2, torch.float32)
    expected = -log_softmax(student)[VOCABULARY - 1]
    assert float(behaviour_cloning(torch.tensor([student]), targets)) == pytest.approx(expected)


def mixture(one: list[float], other: list[float], share: float) -> list[float]:
    """Logarithms of a mixture of two rows of probabilities."""
    pairs = zip(one, other, strict=True)
    return [math.log(share * math.exp(a) + (1 - share) * math.exp(b)) for a, b in pairs]


def reverse(teacher: list[float], student: list[float]) -> float:
    return kl_divergence(student, teacher)


def jensen_shannon(teacher: list[float], student: list[float]) -> float:
    middle = mixture(teacher, student, 0.5)
    return (kl_divergence(teacher, middle) + kl_divergence(student, middle)) / 2


def skewed(teacher: list[float], student: list[float]) -> float:
    return kl_divergence(teacher, mixture(teacher, student, 0.1))


def both_ways(teacher: list[float], student: list[float]) -> float:
    return (kl_divergence(teacher, student) + kl_divergence(student, teacher)) / 2


@law
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("reverse_kl", reverse),
        ("jensen_shannon", jensen_shannon),
        ("skew_kl", skewed),
        ("mixed_kl", both_ways),
    ],
)
@given(teacher=scores, student=scores, size=st.integers(1, VOCABULARY - 1))
def test_each_divergence_is_what_its_definition_says(
    name: str,
    reference: Callable[[list[float], list[float]], float],
    teacher: list[float],
    student: list[float],
    size: int,
) -> None:
    targets = targets_of(teacher, size, torch.float64)
    head = targets.topk_ids_NK[0].tolist()
    sides = (bucketed(log_softmax(side), head) for side in (teacher, student))
    found = of_logits(LOSSES[name], torch.tensor([student], dtype=torch.float64), targets)

    assert float(found) == pytest.approx(reference(*sides), rel=1e-7, abs=1e-9)
    assert float(found) >= -1e-9


@law
@given(teacher=scores, student=scores, size=st.integers(1, VOCABULARY - 1))
def test_draws_give_the_full_gradient_on_average(
    teacher: list[float], student: list[float], size: int
) -> None:
    """Every id outside the entries drawn once, weighted by its mass: the exact expectation."""
    targets = targets_of(teacher, size, torch.float64)
    logprobs, head = log_softmax(teacher), targets.topk_ids_NK[0].tolist()
    outside = [i for i in range(VOCABULARY) if i not in head]
    masses = np.exp([logprobs[i] for i in outside])
    logits = (torch.tensor([student], dtype=torch.float64) / 5).requires_grad_()
    expected = torch.zeros_like(logits)
    for token, mass in zip(outside, masses / masses.sum(), strict=True):
        drawn = replace(targets, draws_NM=torch.tensor([[token]]))
        (grad,) = torch.autograd.grad(of_logits(losses.forward_kl_draws, logits, drawn), logits)
        expected += mass * grad
    full = logits.softmax(-1) - torch.tensor([logprobs], dtype=torch.float64).exp()

    assert torch.allclose(expected, full, atol=1e-7)


def test_renormalising_overstates_the_entries_and_a_tail_of_zero_can_fall_below_zero() -> None:
    teacher = [2.0] + [0.0] * (VOCABULARY - 1)
    targets = targets_of(teacher, 1, torch.float64)
    logits = torch.tensor([teacher], dtype=torch.float64)

    assert float(of_logits(LOSSES["renormalised_topk"], logits, targets)) > 0.5
    assert float(forward_kl(logits, targets)) == pytest.approx(0, abs=1e-9)
    student = torch.tensor([[9.0] + [0.0] * (VOCABULARY - 1)], dtype=torch.float64)
    assert float(of_logits(LOSSES["zero_tail"], student, targets)) < 0


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mixture_is_as_much_of_each(share: float) -> None:
    targets = targets_of([float(x) for x in range(VOCABULARY)], 3, torch.float64)
    logits = torch.zeros(1, VOCABULARY, dtype=torch.float64)
    mixed = of_logits(losses.mixed(losses.forward_kl, share), logits, targets)
    parts = forward_kl(logits, targets), behaviour_cloning(logits, targets)

    assert float(mixed) == pytest.approx(float(share * parts[0] + (1 - share) * parts[1]))


def test_every_loss_may_be_named_in_a_run() -> None:
    assert set(LOSSES) == set(get_args(LossName))
