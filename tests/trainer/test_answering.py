from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from tests.support.tiny_model import make_tiny_model
from trainer.answering import Answer, Sampling, end_ids, sample_answers
from trainer.errors import DatasetError
from trainer.student import open_teacher

GREEDY = Sampling(0.0, 12)
PROMPTS = [np.array(ids, np.int32) for ids in ([9, 50, 7], [200], [31, 8, 120, 77, 14, 66])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("answering") / "student")


@pytest.fixture
def student(folder: Path) -> PreTrainedModel:
    return open_teacher(folder, torch.device("cpu")).eval()


def tokens(answers: list[Answer]) -> list[list[int]]:
    return [answer.completion_ids.tolist() for answer in answers]


def test_prompts_side_by_side_are_answered_as_each_alone(student: PreTrainedModel) -> None:
    alone = [answer for p in PROMPTS for answer in sample_answers(student, [], GREEDY, [p])]

    assert tokens(sample_answers(student, [], GREEDY, PROMPTS)) == tokens(alone)
    assert [len(answer.completion_ids) for answer in alone] == [12, 12, 12]


def test_an_answer_ends_with_the_token_that_ends_it(student: PreTrainedModel) -> None:
    whole = tokens(sample_answers(student, [], GREEDY, PROMPTS))
    end = whole[0][2]
    found = sample_answers(student, [end], GREEDY, PROMPTS)

    for answer, row in zip(found, whole, strict=True):
        stops = end in row
        assert answer.completion_ids.tolist() == (row[: row.index(end) + 1] if stops else row)
        assert answer.finish_reason == ("stop" if stops else "length")
    assert found[0].finish_reason == "stop"


def test_tokens_are_drawn_from_the_student_s_own_distribution(student: PreTrainedModel) -> None:
    """Whatever its folder says: the frequencies of 4,000 first tokens are its probabilities."""
    student.generation_config = GenerationConfig(top_k=1, repetition_penalty=9.0, do_sample=True)
    torch.manual_seed(0)
    found = sample_answers(student, [], Sampling(1.0, 1), [PROMPTS[0]] * 4000)
    counts = np.bincount([answer.completion_ids[0] for answer in found], minlength=261)
    with torch.inference_mode():
        logits = student(torch.from_numpy(PROMPTS[0].astype(np.int64))[None]).logits[0, -1]
    probs = logits.softmax(-1).numpy().astype(np.float64)
    error = np.sqrt(probs * (1 - probs) / 4000)

    assert (np.abs(counts / 4000 - probs) <= 5 * error + 1e-3).all()


def test_a_prompt_without_room_for_an_answer_is_refused(student: PreTrainedModel) -> None:
    with pytest.raises(DatasetError, match=r"has 512 tokens, the student takes 512.*where"):
        sample_answers(student, [], GREEDY, [np.full(512, 9, np.int32)])


def test_whatever_the_folder_names_ends_an_answer(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token_id == 1
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert end_ids(tmp_path, tokenizer) == [7, 1]
    GenerationConfig(eos_token_id=[4, 5]).save_pretrained(tmp_path)

    assert end_ids(folder, tokenizer) == [1]
    assert end_ids(tmp_path, tokenizer) == [4, 5, 7, 1]
    tokenizer.eos_token = None
    assert end_ids(tmp_path / "none", tokenizer) == []


def test_answering_leaves_the_student_as_its_checkpoint_will_say(student: PreTrainedModel) -> None:
    before = student.generation_config.to_dict()
    sample_answers(student, [5], GREEDY, PROMPTS)

    assert student.generation_config.to_dict() == before
