from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import Dataset, from_table
from trainer.evaluation import _binned, evaluate

ROWS = np.arange(8)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("evaluation") / "teacher")


@pytest.fixture(scope="module")
def dataset(teacher: Path) -> Dataset:
    return from_table(answer(teacher, len(ROWS)), teacher)


def test_a_teacher_is_its_own_best_student(teacher: Path, dataset: Dataset) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    quality = evaluate(model, dataset, ROWS, 64)

    assert quality.kl_to_teacher_nats == pytest.approx(0, abs=1e-3)
    assert quality.mass_overlap == pytest.approx(1, abs=1e-2)
    assert quality.entropy_ratio == pytest.approx(1, abs=1e-2)
    assert quality.top1_agreement == 1


def test_another_model_is_further_off(dataset: Dataset, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    model = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)
    quality = evaluate(model, dataset, ROWS, 64)

    assert quality.kl_to_teacher_nats is not None
    assert quality.mass_overlap is not None
    assert quality.kl_to_teacher_nats > 0.01
    assert quality.mass_overlap < 0.99
    assert 0 <= quality.ece <= 1


def test_the_batches_do_not_matter(teacher: Path, dataset: Dataset) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    one, other = (evaluate(model, dataset, ROWS, tokens) for tokens in (16, 4096))

    for name in ("kl_to_teacher_nats", "cross_entropy", "mass_overlap", "entropy_ratio", "ece"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-5)


def test_confidence_that_is_kept_is_well_calibrated() -> None:
    confidence = torch.full((1000,), 0.7, dtype=torch.float64)
    is_right = (torch.arange(1000) < 700).double()
    confidence_B, right_B = _binned(confidence, is_right)

    assert (confidence_B - right_B).abs().sum() == pytest.approx(0, abs=1e-9)
    confidence_B, right_B = _binned(confidence, torch.zeros(1000, dtype=torch.float64))
    assert (confidence_B - right_B).abs().sum() / 1000 == pytest.approx(0.7)


def test_an_answer_is_exact_if_greedy_decoding_gives_it(teacher: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    table = answer(teacher, len(ROWS))
    prompts = table["prompt_ids"].to_pylist()
    greedy = [
        model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=None)[0]
        for ids in prompts
    ]
    said = [ids[len(prompt) :].tolist() for prompt, ids in zip(prompts, greedy, strict=True)]
    half = [said[n] if n % 2 else row for n, row in enumerate(table["completion_ids"].to_pylist())]
    column = pa.array(half, type=table.schema.field("completion_ids").type)
    place = table.schema.get_field_index("completion_ids")
    mixed = from_table(table.set_column(place, "completion_ids", column), teacher)
    expected = sum(one == other for one, other in zip(half, said, strict=True)) / len(ROWS)

    assert 0.5 <= expected < 1
    assert evaluate(model, mixed, ROWS, 64).exact_match == expected
