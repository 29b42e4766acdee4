from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import Dataset, from_table
from trainer.evaluation import evaluate
from trainer.learner import Learner
from trainer.loop import Recipe, make_optimizer, train
from trainer.losses import LOSSES

ROWS = np.arange(4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("loop") / "teacher")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("loop") / "other", seed=1)


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return from_table(answer(folder, 4), folder)


def recipe(loss: str, steps: int) -> Recipe:
    return Recipe(LOSSES[loss], steps, 256, 1e-2, 5, seed=0)


@pytest.mark.parametrize(
    ("loss", "figure"),
    [("forward_kl", "kl_to_teacher_nats"), ("behaviour_cloning", "cross_entropy")],
)
def test_one_batch_can_be_overfitted(loss: str, figure: str, dataset: Dataset, other: Path) -> None:
    student = AutoModelForCausalLM.from_pretrained(other)
    before = evaluate(student, dataset, ROWS, 256)
    learner = Learner(student, make_optimizer(student))
    steps = list(train(learner, dataset, ROWS, recipe(loss, 120)))
    after = evaluate(student, dataset, ROWS, 256)
    assert [step.number for step in steps] == list(range(1, 121))
    assert getattr(before, figure) > 0.5
    assert getattr(after, figure) < 0.05


def test_the_same_seed_gives_the_same_weights(dataset: Dataset, other: Path) -> None:
    weights = []
    for _ in range(2):
        student = AutoModelForCausalLM.from_pretrained(other)
        learner = Learner(student, make_optimizer(student))
        for _ in train(learner, dataset, ROWS, recipe("forward_kl", 4)):
            pass
        weights.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    assert torch.equal(weights[0], weights[1])


def test_the_teacher_agrees_with_itself(dataset: Dataset, folder: Path) -> None:
    quality = evaluate(AutoModelForCausalLM.from_pretrained(folder), dataset, ROWS, 64)
    assert quality.kl_to_teacher_nats == pytest.approx(0, abs=1e-4)
    assert quality.top1_agreement == 1
    assert (quality.rows, quality.tokens) == (4, 24)
