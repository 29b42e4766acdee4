import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.model_kinds import make_model
from tests.support.tiny_model import make_tiny_model
from trainer.config import TrainerConfig
from trainer.start import make_student
from trainer.student import remove_dropout

DROPOUT = {"dropout": 0.3, "attention_dropout": 0.2, "layerdrop": 0.1}


def with_dropout(folder: Path, rate: float) -> Path:
    path = make_tiny_model(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_dropout": rate}))
    return folder


@pytest.mark.parametrize("from_scratch", [True, False])
def test_a_student_is_trained_without_dropout(tmp_path: Path, from_scratch: bool) -> None:
    """With it a run that goes on after a kill would end with other weights."""
    student = with_dropout(tmp_path / "student", 0.3)
    teacher = make_tiny_model(tmp_path / "teacher")
    config = TrainerConfig.model_construct(
        teacher=teacher, student=student, from_scratch=from_scratch, seed=0, device="cpu"
    )
    found, _ = make_student(config, None, lambda _words: None)  # type: ignore[arg-type]  # unread
    ids, found = torch.arange(9)[None], found.train()

    assert torch.equal(found(ids).logits, found(ids).logits)
    found.save_pretrained(tmp_path / "saved")
    assert AutoConfig.from_pretrained(tmp_path / "saved").attention_dropout == 0


def test_every_kind_of_dropout_goes_and_so_it_does_in_what_is_made_of_the_config() -> None:
    model = make_model("OPT", **DROPOUT).train()
    ids = torch.arange(9)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    remove_dropout(model)

    assert torch.equal(model(ids).logits, model.eval()(ids).logits)
    again = AutoModelForCausalLM.from_config(model.config).train()
    assert torch.equal(again(ids).logits, again(ids).logits)
    assert model.config.num_hidden_layers == 2
