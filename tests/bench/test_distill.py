"""The parts of the benchmark that decide what its figures mean."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM

from tests.bench.distill import trl
from tests.bench.distill.__main__ import gap_closed, in_equal_seconds, prompts_ratio
from tests.bench.distill.arms import cut_to, draw_fewer, some, with_everything
from tests.bench.distill.jobs import Place, by_prompt
from tests.bench.distill.wide import widen
from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import Dataset, Ragged, from_table
from trainer.evaluation import evaluate


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("bench") / "teacher")


@pytest.fixture(scope="module")
def whole(teacher: Path) -> Dataset:
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    return with_everything(from_table(answer(teacher, 8), teacher), model)


def mass(dataset: Dataset) -> np.ndarray:
    """Of entries and tail together, position by position."""
    ends = np.cumsum(dataset.topk_size.values)[:-1]
    kept = np.split(np.exp(dataset.topk_logprobs.values), ends)
    heads = np.array([part.sum() for part in kept])
    total: np.ndarray = heads + np.exp(dataset.tail_logprob.values)
    return total


def test_the_whole_distribution_is_the_teachers(teacher: Path, whole: Dataset) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    quality = evaluate(model, whole, np.arange(8), 64)

    assert set(whole.topk_size.values.tolist()) == {model.config.vocab_size}
    assert mass(whole) == pytest.approx(1, abs=1e-5)
    assert quality.kl_to_teacher_nats == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("k", ["4", "16", "adaptive"])
def test_what_is_left_out_joins_the_tail(whole: Dataset, k: str) -> None:
    cut = cut_to(whole, k)

    assert mass(cut) == pytest.approx(1, abs=1e-5)
    assert len(cut.topk_ids.values) == cut.topk_size.values.sum()
    assert (np.diff(cut.topk_ids.offsets) >= cut.completion_ids.lengths).all()
    assert cut.topk_ids.row(3)[0] == whole.topk_ids.row(3)[0]
    if k != "adaptive":
        assert set(cut.topk_size.values.tolist()) == {int(k)}


def test_some_answers_are_whole_answers(whole: Dataset) -> None:
    part = some(whole, np.array([5, 2]))

    assert len(part) == 2
    for place, row in enumerate((5, 2)):
        assert np.array_equal(part.completion_ids.row(place), whole.completion_ids.row(row))
        assert np.array_equal(part.topk_logprobs.row(place), whole.topk_logprobs.row(row))
    assert sorted(by_prompt(whole)) == list(range(8))


def test_fewer_draws_are_the_first_at_each_position(whole: Dataset) -> None:
    positions = len(whole.completion_ids.values)
    values, starts = np.arange(3 * positions, dtype=np.int32), 3 * whole.completion_ids.offsets

    fewer = draw_fewer(replace(whole, tail_draws=Ragged(values, starts)), 2)

    first = 3 * whole.completion_ids.offsets[5]
    assert fewer.tail_draws.row(5)[:4].tolist() == [first, first + 1, first + 3, first + 4]
    assert fewer.tail_draws.lengths.tolist() == (2 * whole.completion_ids.lengths).tolist()


def rows(seconds: float = 10.0, equal: str = "steps", **kls: float) -> list[dict[str, Any]]:
    """KL by arm and number of prompts, such as ``bc_2000``."""
    found = []
    for name, kl in kls.items():
        arm, _, prompts = name.rpartition("_")
        run = {"arm": arm, "prompts": int(prompts), "seed": 0, "equal": equal, "steps": 400}
        found.append({**run, "seconds": seconds, "kl_nats": kl})
    return found


def test_the_gap_is_measured_with_all_prompts() -> None:
    measured = rows(bc_2000=0.10, full_2000=0.02, bucket_k16_2000=0.04, bc_500=0.2)

    assert gap_closed(measured, "bucket_k16") == pytest.approx(0.75)


def test_in_equal_seconds_what_is_slower_makes_fewer_steps() -> None:
    cloned, slower = (
        rows(bc_2000=0.10, bc_500=0.2),
        rows(12.5, full_2000=0.02, bucket_k16_2000=0.04),
    )

    jobs = in_equal_seconds(cloned + slower)

    assert {(job.arm, job.prompts, job.steps) for job in jobs} == {
        ("full", 2000, 320),
        ("bucket_k16", 2000, 320),
    }
    timed = rows(equal="seconds", full_2000=0.05, bucket_k16_2000=0.06)
    everything = cloned + slower + timed
    assert gap_closed(everything, "bucket_k16") == pytest.approx(0.75)
    assert gap_closed(everything, "bucket_k16", "seconds") == pytest.approx(0.8)


def test_prompts_are_read_off_between_two_sizes() -> None:
    cloned = rows(bc_500=0.3, bc_1000=0.2, bc_2000=0.10)
    between = rows(bucket_adaptive_500=0.12, bucket_adaptive_1000=0.08, bucket_adaptive_2000=0.06)
    at_once = rows(bucket_adaptive_500=0.09, bucket_adaptive_2000=0.06)
    never = rows(bucket_adaptive_500=0.5, bucket_adaptive_2000=0.4)

    ratio = prompts_ratio(cloned + between)
    assert ratio["prompts_ratio_for_same_kl"] == pytest.approx(0.25 * 2**0.5)
    assert not ratio["ratio_is_bound"]
    assert prompts_ratio(cloned + at_once) == {
        "prompts_ratio_for_same_kl": 0.25,
        "ratio_is_bound": True,
    }
    assert prompts_ratio(cloned + never)["prompts_ratio_for_same_kl"] == 1.0


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_wider_model_scores_the_old_ids_as_before(teacher: Path, is_tied: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher, tie_word_embeddings=is_tied)
    known = model.config.vocab_size
    ids = torch.tensor([[5, known - 1, 17]])
    before = model(ids).logits

    widen(model, 4 * known)

    after = model(ids).logits
    assert after.shape[-1] == model.config.vocab_size == 4 * known
    assert torch.allclose(after[..., :known], before, atol=1e-5)
    assert after[..., known:].std() > 0
    matrices = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (matrices[0] is matrices[1]) == is_tied


def test_only_the_tokens_after_warming_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl, "WARMING", 2)
    lengths = np.array([1000, 10, 20, 30])
    batches = [np.array([0]), np.array([0, 1]), np.array([1, 2]), np.array([3])]

    assert trl.tokens_per_second([7.0, 9.0, 9.5, 11.0], batches, lengths) == pytest.approx(30.0)


def test_the_ratio_is_over_the_faster_trainer() -> None:
    rounds = {
        "retort": [900.0, 800.0, 100.0],
        "gkd": [80.0, 90.0, 70.0],
        "distillation": [400.0] * 3,
    }

    found = trl.outcome(rounds, {"vocabulary": 32_768})

    assert found["trl_speed_ratio"] == pytest.approx(2.0)
    assert found["trl"]["ratio_over"] == pytest.approx({"gkd": 10.0, "distillation": 2.0})
    assert found["trl"]["tokens_per_second"] == rounds


def test_a_trl_that_cannot_be_installed_is_said(tmp_path: Path) -> None:
    place, in_the_way = Place(tmp_path, tmp_path), tmp_path / "peers"
    in_the_way.write_text("a file, not a folder")

    found = trl.beside_trl(place, in_the_way, Progress(disable=True))

    assert found["trl_speed_ratio"] is None
    assert "Not a directory" in found["trl_error"]
