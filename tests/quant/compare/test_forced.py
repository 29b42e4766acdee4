import math
from typing import Any

import numpy as np
import pytest
import torch

from quant.compare.forced import TOP, Forced, compared
from trainer.losses import Targets, forward_kl
from trainer.student_view import look

VOCABULARY, KEPT, POSITIONS = 300, 24, 5


def said(logprobs_NV: torch.Tensor, actual: list[int], top: int) -> list[dict[str, Any]]:
    """As vLLM has it: the likeliest tokens and the one that is there, each with its rank."""
    found = []
    for row, token in zip(logprobs_NV, actual, strict=True):
        order = row.argsort(descending=True).tolist()
        ids = dict.fromkeys([token, *order[:top]])
        found.append({str(i): {"logprob": float(row[i]), "rank": order.index(i) + 1} for i in ids})
    return found


def logged(seed: int, sharpness: float = 1.5) -> tuple[torch.Tensor, Targets]:
    """A teacher's kept entries, and a student's scores."""
    random = torch.Generator().manual_seed(seed)
    teacher_NV = sharpness * torch.randn(POSITIONS, VOCABULARY, generator=random).double()
    student_NV = teacher_NV + torch.randn(POSITIONS, VOCABULARY, generator=random).double()
    logprobs_NK, ids_NK = teacher_NV.log_softmax(-1).topk(KEPT)
    tail_N = torch.log1p(-logprobs_NK.exp().sum(-1))
    return student_NV, Targets(ids_NK[:, 1], ids_NK, logprobs_NK, tail_N)


def ours(student_NV: torch.Tensor, targets: Targets, top: int) -> tuple[float, float, float]:
    return compared(
        said(student_NV.log_softmax(-1), targets.completion_ids_N.tolist(), top),
        [KEPT] * POSITIONS,
        targets.topk_ids_NK.flatten().tolist(),
        targets.topk_logprobs_NK.flatten().tolist(),
        targets.tail_logprob_N.tolist(),
    )


def exact(student_NV: torch.Tensor, targets: Targets) -> float:
    seen = look(student_NV, targets.completion_ids_N, targets.topk_ids_NK)
    return float(forward_kl(seen, targets).mean())


@pytest.mark.parametrize("seed", range(5))
def test_with_every_token_it_is_the_trainers_kl(seed: int) -> None:
    student_NV, targets = logged(seed)

    kl, agreement, covered = ours(student_NV, targets, VOCABULARY)

    assert kl == pytest.approx(exact(student_NV, targets), rel=1e-6)
    best = student_NV.argmax(-1) == targets.topk_ids_NK[:, 0]
    assert agreement == pytest.approx(float(best.double().mean()))
    assert covered == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(20))
def test_with_fewer_tokens_it_is_a_lower_bound(seed: int) -> None:
    student_NV, targets = logged(seed, sharpness=3.0)

    values = [ours(student_NV, targets, top) for top in (2, 8, TOP)]

    kls = [kl for kl, _, _ in values]
    assert 0 <= kls[0] <= kls[1] + 1e-12 <= kls[2] + 2e-12
    assert kls[2] <= exact(student_NV, targets) + 1e-9
    assert values[0][2] < values[1][2] <= values[2][2] <= 1 + 1e-12


def test_a_model_beside_itself_differs_by_nothing() -> None:
    teacher_NV = torch.randn(POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(0))
    logprobs_NK, ids_NK = teacher_NV.double().log_softmax(-1).topk(KEPT)
    tail_N = torch.log1p(-logprobs_NK.exp().sum(-1))
    targets = Targets(ids_NK[:, 0], ids_NK, logprobs_NK, tail_N)

    kl, agreement, _ = ours(teacher_NV.double(), targets, TOP)

    assert kl < 1e-9
    assert agreement == 1.0


def test_a_sure_student_that_is_wrong_is_far_away_and_finite() -> None:
    student_NV = torch.zeros(1, VOCABULARY).double()
    student_NV[0, 7] = 60.0
    entry = said(student_NV.log_softmax(-1), [3], TOP)

    kl, agreement, covered = compared(entry, [1], [3], [0.0], [-math.inf])

    assert 50 < kl < 100
    assert agreement == 0.0
    assert covered == 1.0


def test_means_weigh_tokens_and_leave_out_rows_without_room() -> None:
    looks = Forced(
        kl_nats=np.array([1.0, 3.0, np.nan]),
        agreement=np.array([0.0, 1.0, np.nan]),
        covered=np.ones(3),
        tokens=np.array([1.0, 3.0, 50.0]),
    )

    assert looks.mean("kl_nats") == 2.5
    assert looks.mean("agreement", [0]) == 0.0
    assert math.isnan(looks.mean("kl_nats", [2]))
