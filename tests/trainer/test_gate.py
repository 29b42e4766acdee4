from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import Dataset, from_table
from trainer.entries import words_only
from trainer.gate import Gate
from trainer.losses import forward_kl
from trainer.packing import collate
from trainer.student_view import look

ROWS = np.arange(12)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Answers of whose tokens every other one is sure, and two rows of words only."""
    teacher = make_tiny_model(tmp_path_factory.mktemp("gate") / "teacher")
    found = from_table(answer(teacher, len(ROWS)), teacher)
    sizes = found.topk_size.values.astype(np.int64)
    is_sure = np.arange(len(sizes)) % 2 == 0
    firsts = np.cumsum(sizes) - sizes
    logprobs = found.topk_logprobs.values - 30 * np.repeat(is_sure, sizes)
    logprobs[firsts[is_sure]] = 0.0
    tails = np.where(is_sure, -15, found.tail_logprob.values).astype(np.float32)
    sure = replace(
        found,
        topk_logprobs=replace(found.topk_logprobs, values=logprobs),
        tail_logprob=replace(found.tail_logprob, values=tails),
    )
    return words_only(sure, ROWS < 2)


def test_all_stay_by_default(dataset: Dataset) -> None:
    batch = collate(dataset, ROWS, CPU)

    assert Gate(1.0, (0, 1)).thinned(batch, dataset, ROWS) is batch
    assert set(batch.weights_N.tolist()) == {1.0}


def test_only_sure_tokens_are_left_out_and_the_rest_counts_for_them(dataset: Dataset) -> None:
    batch = collate(dataset, ROWS, CPU)
    every, sure = len(batch.predicts_N), (len(ROWS) - 2) * 3
    sizes, totals = [], []
    for step in range(200):
        thin = Gate(0.25, (0, step)).thinned(batch, dataset, ROWS)
        sizes.append(len(thin.predicts_N))
        totals.append(float(thin.weights_N.sum()))
        assert len(thin.targets.completion_ids_N) == len(thin.predicts_N) == len(thin.weights_N)
        assert set(thin.weights_N.tolist()) <= {1.0, 4.0}

    assert min(sizes) >= every - sure
    assert np.mean(sizes) == pytest.approx(every - 0.75 * sure, rel=0.02)
    assert np.mean(totals) == pytest.approx(every, rel=0.02)


def test_the_loss_is_the_same_on_average(dataset: Dataset) -> None:
    batch = collate(dataset, ROWS, CPU)
    scores = torch.randn(len(batch.predicts_N), 261, generator=torch.Generator().manual_seed(1))

    def total(step: int, share: float) -> float:
        thin = Gate(share, (0, step)).thinned(batch, dataset, ROWS)
        stayed = torch.isin(batch.predicts_N, thin.predicts_N)
        found = thin.targets
        seen = look(scores[stayed], found.completion_ids_N, found.topk_ids_NK)
        return float((forward_kl(seen, found) * thin.weights_N).sum())

    assert np.mean([total(step, 0.25) for step in range(400)]) == pytest.approx(
        total(0, 1.0), rel=0.02
    )


def test_a_tokens_lot_does_not_depend_on_the_rows_beside_it(dataset: Dataset) -> None:
    gate = Gate(0.5, (3, 7))
    together = gate.thinned(collate(dataset, ROWS, CPU), dataset, ROWS)
    halves = [
        gate.thinned(collate(dataset, rows, CPU), dataset, rows) for rows in (ROWS[:5], ROWS[5:])
    ]

    assert torch.equal(together.weights_N, torch.cat([half.weights_N for half in halves]))
    ids = torch.cat([half.targets.completion_ids_N for half in halves])
    assert torch.equal(together.targets.completion_ids_N, ids)
