"""What a student with another tokenizer can still take of its teacher's distribution."""

import json
from pathlib import Path

import numpy as np
import pytest

from capture.revision import model_revision
from tests.support.distill_run import distill, write_config
from tests.support.stranger import CHATS, chat_requests, chat_rows, make_chat_home
from trainer.dataset import from_table
from trainer.errors import ModelError
from trainer.retokenizer import Retokenizer
from trainer.shared_vocabulary import SharedVocabulary, common_places

SHARED = {"loss": '"shared_vocabulary_kl"', "student": '"stranger"', "learning_rate": "3e-3"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_home(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def retokenizer(home: Path) -> Retokenizer:
    return Retokenizer.of(home / "teacher", home / "stranger")


@pytest.fixture(scope="module")
def shared(retokenizer: Retokenizer) -> SharedVocabulary:
    return SharedVocabulary.of(retokenizer.teacher, retokenizer.student, [1], 1)


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], [(0, 0), (1, 1), (2, 2)]),
        ([3, 4, 9], [1, 3, 4, 6, 9], [(1, 2)]),
        ([2, 4], [1, 3, 4], []),
        ([1, 2, 2, 3], [1, 2, 3], [(0, 0), (3, 2)]),  # two tokens make one letter
        ([], [], []),
    ],
)
def test_places_are_common_where_both_begin_and_end(
    theirs: list[int], ours: list[int], expected: list[tuple[int, int]]
) -> None:
    assert common_places(theirs, ours) == expected


def test_entries_that_the_student_lacks_join_the_tail(
    retokenizer: Retokenizer, shared: SharedVocabulary
) -> None:
    letter = retokenizer.teacher.convert_tokens_to_ids("e")
    user = retokenizer.teacher.convert_tokens_to_ids("<|user|>")
    probs = np.array([0.5, 0.3, 0.1], dtype=np.float32)
    said = shared.said(
        np.array([user, letter, 1], dtype=np.int32), np.log(probs), float(np.log(0.1))
    )

    assert said is not None
    assert said.ids.tolist() == [retokenizer.student.convert_tokens_to_ids("e"), 1]
    assert np.exp(said.logprobs) == pytest.approx([0.3, 0.1])
    assert np.exp(said.tail_logprob) == pytest.approx(0.6)
    assert shared.said(np.array([user, 99_999], np.int32), np.log(probs[:2]), -1.0) is None


def test_only_tokens_that_both_say_alike_get_a_distribution(
    home: Path, retokenizer: Retokenizer
) -> None:
    chats = [("hi", "zz red"), ("hi", "zz red")]
    dataset = from_table(chat_rows(home / "teacher", chats), home / "teacher")
    words, _, _ = retokenizer.retokenized(dataset, chat_requests(chats))
    found, matched = retokenizer.with_distributions(dataset, words, np.array([0]))
    tokens = retokenizer.student.convert_ids_to_tokens(found.completion_ids.row(0).tolist())
    mass = np.exp(found.topk_logprobs.row(0))

    assert tokens == ["z", "z", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}red", "</s>"]
    assert mass == pytest.approx([0.9, 0.9, 1.0, 0.9])
    assert np.exp(found.tail_logprob.row(0)) == pytest.approx([0.1, 0.1, 0.0, 0.1])
    assert matched == 3
    assert found.topk_ids.row(0).tolist() == found.completion_ids.row(0).tolist()
    assert np.exp(found.topk_logprobs.row(1)) == pytest.approx([1.0] * 4)


def test_it_trains_and_is_compared_with_the_words_alone(home: Path) -> None:
    result = distill(write_config(home, steps="40", **SHARED))
    metrics = json.loads(result.stdout)
    before, after = metrics["heldout_before_training"], metrics["heldout"]

    assert "shared_vocabulary_kl is experimental" in result.stderr
    assert metrics["retokenized"]["matched_tokens"] >= metrics["rows"]  # ends at least
    assert after["cross_entropy"] < before["cross_entropy"] / 2
    assert after["kl_to_teacher_nats"] is None
    assert metrics["baseline"]["heldout"]["kl_to_teacher_nats"] is None
    assert "cross-entropy of the teacher&#39;s words" in (home / "out" / "report.html").read_text()
    assert model_revision(home / "out" / "checkpoint") != model_revision(home / "stranger")


def test_it_is_refused_where_the_tokenizers_are_the_same(home: Path) -> None:
    with pytest.raises(ModelError, match='use loss = "forward_kl"'):
        distill(write_config(home, loss=SHARED["loss"]))


def test_vocabularies_that_are_written_otherwise_are_refused(retokenizer: Retokenizer) -> None:
    student = type(retokenizer.student).from_pretrained(retokenizer.student.name_or_path)
    student.backend_tokenizer.pre_tokenizer = None
    with pytest.raises(ModelError, match="not written alike"):
        SharedVocabulary.of(retokenizer.teacher, student, [1], 1)


def test_every_chat_ends_with_a_distribution(home: Path, retokenizer: Retokenizer) -> None:
    dataset = from_table(chat_rows(home / "teacher"), home / "teacher")
    words, _, _ = retokenizer.retokenized(dataset, chat_requests())
    found, _ = retokenizer.with_distributions(dataset, words, np.arange(len(CHATS)))
    lasts = [found.tail_logprob.row(row)[-1] for row in range(len(CHATS))]

    assert np.exp(lasts) == pytest.approx([0.1] * len(CHATS))
