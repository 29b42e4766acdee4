import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from capture.log import Log
from capture.schema import Flag
from tests.support.answered_rows import answer, write_log
from tests.support.distill_run import distill, write_config
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import Dataset, from_table
from trainer.entries import _positions, fit_vocabulary, keep, words_only
from trainer.errors import DatasetError
from trainer.losses import LOSSES
from trainer.packing import collate
from trainer.student_view import look

ROWS = np.arange(10)
FAST = {"steps": "2", "baseline": "false"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    teacher = make_tiny_model(tmp_path_factory.mktemp("entries") / "teacher")
    return from_table(answer(teacher, len(ROWS)), teacher)


def mass(dataset: Dataset) -> np.ndarray:
    """What each position's entries and tail add up to."""
    total: np.ndarray = np.exp(dataset.tail_logprob.values)
    np.add.at(total, _positions(dataset), np.exp(dataset.topk_logprobs.values))
    return total


def test_what_is_left_out_joins_the_tail(dataset: Dataset) -> None:
    is_kept = np.random.default_rng(0).random(len(dataset.topk_ids.values)) < 0.5
    is_kept |= np.diff(_positions(dataset), prepend=-1) > 0  # the first of each
    fewer = keep(dataset, is_kept)

    assert mass(fewer) == pytest.approx(mass(dataset), abs=1e-6)
    assert fewer.topk_ids.values.tolist() == dataset.topk_ids.values[is_kept].tolist()
    assert fewer.topk_size.values.sum() == is_kept.sum()
    for row in range(len(ROWS)):
        start, end = dataset.topk_ids.offsets[row : row + 2]
        assert fewer.topk_ids.row(row).tolist() == (
            dataset.topk_ids.row(row)[is_kept[start:end]].tolist()
        )


def test_padding_of_the_teachers_vocabulary_joins_the_tail(dataset: Dataset) -> None:
    ids = dataset.topk_ids.values.copy()
    ids[1] = 10_000  # its second entry, if there are two
    assert dataset.topk_size.values[0] > 1
    draws = np.where(np.arange(len(dataset.tail_draws.values)) == 3, 9_999, 7)
    padded = replace(
        dataset,
        topk_ids=replace(dataset.topk_ids, values=ids),
        tail_draws=replace(dataset.tail_draws, values=draws),
    )
    fitted = fit_vocabulary(padded, 261)

    assert fitted.topk_ids.values.max() < 261
    assert fitted.topk_size.values.sum() == dataset.topk_size.values.sum() - 1
    assert mass(fitted) == pytest.approx(mass(dataset), abs=1e-6)
    assert fitted.tail_draws.values[:5].tolist() == [7, 7, 7, -1, 7]
    assert fit_vocabulary(dataset, 261) is dataset


def test_a_token_that_was_said_must_be_the_students_too(dataset: Dataset) -> None:
    said = int(dataset.completion_ids.values.max())
    with pytest.raises(DatasetError, match=f"vocabulary ends at {said - 1}"):
        fit_vocabulary(dataset, said)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_a_flagged_row_is_cross_entropy(dataset: Dataset, name: str) -> None:
    is_flagged = ROWS % 2 == 1
    changed = words_only(dataset, is_flagged)
    targets = collate(changed, ROWS, torch.device("cpu")).targets
    scores = torch.randn(len(targets.completion_ids_N), 261, generator=torch.Generator())
    seen = look(scores, targets.completion_ids_N, targets.topk_ids_NK, targets.draws_NM)
    found, words = LOSSES[name](seen, targets), LOSSES["behaviour_cloning"](seen, targets)
    flagged = torch.from_numpy(np.repeat(is_flagged, dataset.completion_ids.lengths))

    assert torch.allclose(found[flagged], words[flagged], atol=1e-5)
    if name != "behaviour_cloning":
        assert not torch.allclose(found[~flagged], words[~flagged], atol=1e-2)
    before = collate(dataset, ROWS, torch.device("cpu")).targets
    plain = look(scores, before.completion_ids_N, before.topk_ids_NK, before.draws_NM)
    assert torch.allclose(found[~flagged], LOSSES[name](plain, before)[~flagged], atol=1e-5)


def test_a_log_of_masked_answers_is_trained_on_by_their_tokens(tmp_path: Path) -> None:
    teacher = make_tiny_model(tmp_path / "teacher", hidden_size=128)
    flags = [Flag.MASKED, Flag.BIASED, 0, 0] * 10
    write_log(answer(teacher, 40), tmp_path / "log", tmp_path / "spool", flags)
    log = Log(tmp_path / "log")
    assert [log.snapshot(view=name).num_rows for name in ("examples", "answers")] == [20, 40]

    found = {
        how: json.loads(distill(write_config(tmp_path, flagged=f'"{how}"', **FAST)).stdout)
        for how in ("cross_entropy", "leave_out")
    }
    every, fewer = found["cross_entropy"], found["leave_out"]
    assert (every["flagged_rows"], fewer["flagged_rows"]) == (20, 0)
    assert every["snapshot"]["num_rows"] == 2 * fewer["snapshot"]["num_rows"] == 40
    assert every["rows"] > fewer["rows"]
