"""The parts of the benchmark of tokenizers that decide what its figures mean."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.bench.tokenizers import learned, matrices, transplant
from tests.support.tiny_model import make_tiny_model

TEXT = "the quick brown fox jumps over the lazy dog, and über naïve cafés " * 20


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tokens") / "teacher")


def test_a_model_that_gets_the_tokens_it_has_says_what_it_said(teacher: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    ids = torch.tensor([tokenizer.encode("a bit of text")])
    before = model(ids).logits

    transplant(model, tokenizer, tokenizer)

    assert torch.equal(model(ids).logits, before[..., : len(tokenizer)])


def test_a_token_of_ones_own_begins_as_the_mean_of_what_it_was_written_with(teacher: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    theirs = AutoTokenizer.from_pretrained(teacher)
    ours = learned(theirs, [TEXT], 320)
    old = model.get_input_embeddings().weight.detach().clone()

    transplant(model, theirs, ours)

    assert ours.decode(ours.encode(TEXT)) == TEXT
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.chat_template == theirs.chat_template
    assert model.config.eos_token_id == ours.eos_token_id
    own = ours.get_vocab()["Ġfox"]
    pieces = theirs.encode(" fox", add_special_tokens=False)
    assert len(pieces) > 1
    assert torch.allclose(matrices(model)[0][own], old[pieces].mean(0))
