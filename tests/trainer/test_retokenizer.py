"""A student that does not read as its teacher does learns the answers' words."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from capture.revision import tokenizer_hash
from tests.support.distill_run import distill, write_config
from tests.support.stranger import CHATS, chat_requests, chat_rows, make_chat_home
from trainer.dataset import Dataset, from_table
from trainer.errors import DatasetError, ModelError
from trainer.evaluation import evaluate
from trainer.manifest import chat_template_hash, verify_folder
from trainer.material import Material
from trainer.retokenizer import Retokenized, Retokenizer, words

CLONING = {"loss": '"behaviour_cloning"', "student": '"stranger"', "learning_rate": "3e-3"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_home(tmp_path_factory.mktemp("retokenizer"))


@pytest.fixture(scope="module")
def retokenizer(home: Path) -> Retokenizer:
    return Retokenizer.of(home / "teacher", home / "stranger")


@pytest.fixture(scope="module")
def finished(home: Path) -> dict[str, Any]:
    path = write_config(home, out='"out"', metric='"own.py:same"', steps="80", **CLONING)
    (home / "own.py").write_text(
        "def same(prompt, answer, reference):\n    return answer == reference\n"
    )
    metrics: dict[str, Any] = json.loads(distill(path).stdout)
    return metrics


def dataset_of(home: Path, chats: Sequence[tuple[str, str]]) -> Dataset:
    return from_table(chat_rows(home / "teacher", chats), home / "teacher")


def test_a_chat_is_rendered_by_the_students_template_and_its_answer_ends_as_the_student_does(
    home: Path, retokenizer: Retokenizer
) -> None:
    found, is_kept, counts = retokenizer.retokenized(dataset_of(home, CHATS), chat_requests())
    student = AutoTokenizer.from_pretrained(home / "stranger")

    assert is_kept.all()
    assert counts == Retokenized(len(CHATS), 0, 0)
    for row, (asked, said) in enumerate(CHATS):
        expected = student.encode(f"<s>[user] {asked}\n[answer] ")
        assert found.prompt_ids.row(row).tolist() == expected
        assert found.completion_ids.row(row).tolist() == [*student.encode(said), 1]
    assert len(found.completion_ids.values) < len(dataset_of(home, CHATS).tail_logprob.values)


def test_a_prompt_that_is_no_chat_is_the_text_that_the_teacher_read(
    home: Path, retokenizer: Retokenizer
) -> None:
    request = json.dumps({"prompt": "hello"})
    found, _, counts = retokenizer.retokenized(dataset_of(home, [("hello", "hi")]), [request])

    text = retokenizer.student.decode(found.prompt_ids.row(0).tolist())
    assert text == "<|user|>hello<|assistant|>"
    assert counts == Retokenized(0, 1, 0)


def test_an_answer_that_was_cut_has_no_end(home: Path, retokenizer: Retokenizer) -> None:
    whole = dataset_of(home, [("hi", "the river \N{LATIN SMALL LETTER E WITH ACUTE}")])
    cut = whole.completion_ids.row(0)[:-2]  # the end, and half of the last letter
    dataset = words(whole, [whole.prompt_ids.row(0).tolist()], [cut.tolist()])
    found, is_kept, _ = retokenizer.retokenized(dataset, chat_requests([("hi", "")]))

    assert retokenizer.student.decode(found.completion_ids.row(0).tolist()) == "the river "
    assert is_kept.all()


def test_what_cannot_be_written_is_left_out_and_counted(home: Path) -> None:
    folder = shutil.copytree(home / "stranger", home / "lower")
    document = json.loads((folder / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    chats = [("hi", "the river"), ("hi", "The River")]
    lossy = Retokenizer.of(home / "teacher", folder)
    _, is_kept, counts = lossy.retokenized(dataset_of(home, chats), chat_requests(chats))

    assert is_kept.tolist() == [True, False]
    assert counts.left_out == 1


def test_only_rows_that_are_used_have_to_fit_and_their_length_is_told_in_the_students_tokens(
    home: Path, retokenizer: Retokenizer
) -> None:
    chats = [("hi", "the river"), ("you", "the river"), ("long", "the river " * 200)]
    dataset, _, counts = retokenizer.retokenized(dataset_of(home, chats), chat_requests(chats))
    student = AutoModelForCausalLM.from_pretrained(home / "stranger")
    used = Material(dataset, np.array([0]), np.array([1]), 0, counts)

    assert len(used.fitted(student).train_rows) == 1
    with pytest.raises(DatasetError, match=r"has \d+ of the student's own tokens.* the teacher's"):
        replace(used, train_rows=np.array([0, 2])).fitted(student)


def test_a_student_without_a_template_is_refused_where_there_are_chats(home: Path) -> None:
    folder = shutil.copytree(home / "stranger", home / "plain")
    (folder / "chat_template.jinja").unlink()
    plain = Retokenizer.of(home / "teacher", folder)
    dataset = dataset_of(home, [("hi", "you")])
    with pytest.raises(ModelError, match="no chat template, and the log holds chats"):
        plain.retokenized(dataset, chat_requests([("hi", "you")]))


def test_a_conversation_that_a_template_refuses_is_told(home: Path) -> None:
    folder = shutil.copytree(home / "stranger", home / "strict")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    strict = Retokenizer.of(home / "teacher", folder)
    with pytest.raises(DatasetError, match=r"cannot render .*no system role.*where"):
        strict.retokenized(dataset_of(home, [("hi", "you")]), chat_requests([("hi", "you")]))


def test_the_student_learns_and_nothing_claims_to_compare_distributions(
    finished: dict[str, Any], home: Path
) -> None:
    before, after = finished["heldout_before_training"], finished["heldout"]
    not_compared = ("kl_to_teacher_nats", "top1_agreement", "mass_overlap", "entropy_ratio")
    quality = verify_folder(home / "out" / "checkpoint").quality

    assert finished["retokenized"] == {
        "as_messages": len(CHATS),
        "as_text": 0,
        "left_out": 0,
        "matched_tokens": 0,
    }
    assert after["cross_entropy"] < before["cross_entropy"] / 4
    assert after["metric"] >= after["exact_match"]  # text may be right in other tokens
    assert [after[name] for name in not_compared] == [None] * len(not_compared)
    assert not quality.keys() & set(not_compared)
    assert quality["cross_entropy"] == after["cross_entropy"]
    page = (home / "out" / "report.html").read_text()
    assert "KL to the teacher went" not in page
    assert "in the student&#39;s own tokens" in page
    assert finished["baseline"] is None


def test_the_checkpoint_speaks_as_the_student_does(finished: dict[str, Any], home: Path) -> None:
    assert finished
    checkpoint, stranger = home / "out" / "checkpoint", home / "stranger"
    manifest = verify_folder(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": CHATS[0][0]}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    said = model.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=1)

    assert manifest.tokenizer_hash == tokenizer_hash(stranger) != tokenizer_hash(home / "teacher")
    assert manifest.chat_template_hash == chat_template_hash(stranger)
    assert manifest.lineage.recipe["student_tokenizer"] == tokenizer_hash(stranger)
    assert GenerationConfig.from_pretrained(checkpoint).eos_token_id == 1
    assert said[0, -1] == 1  # it has learned where answers end


def test_other_losses_say_what_such_a_student_can_learn_from(home: Path) -> None:
    with pytest.raises(ModelError, match='the words alone, with loss = "behaviour_cloning"'):
        distill(write_config(home, **{**CLONING, "loss": '"forward_kl"'}))


def test_a_pilot_says_why_there_is_none(home: Path) -> None:
    with pytest.raises(ModelError, match="run it without --pilot"):
        distill(write_config(home, steps="2000", **CLONING), "plan", "--pilot")


def test_rows_of_words_alone_are_not_compared(home: Path, retokenizer: Retokenizer) -> None:
    dataset, _, _ = retokenizer.retokenized(dataset_of(home, CHATS), chat_requests())
    model = AutoModelForCausalLM.from_pretrained(home / "stranger", dtype=torch.float32)
    quality = evaluate(model, dataset, np.arange(4), 512)

    assert quality.kl_to_teacher_nats is None
    assert quality.distance_nats == quality.cross_entropy > 0
