from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.support.tiny_model import make_tiny_model
from trainer.config import TrainerConfig
from trainer.errors import ModelError
from trainer.fake import FakeFormat, FakeRoundedLinear, fake_quantize, grid_of
from trainer.student import open_student


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_student_computes_with_rounded_weights_and_learns_plain_ones(
    name: FakeFormat, tmp_path: Path
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    student = open_student(folder, folder, torch.device("cpu"))
    names = [name for name, _ in student.named_parameters()]
    ids = torch.arange(5, 25)[None]
    plain = student(ids).logits

    fake_quantize(student, name)
    rounded = student(ids).logits
    rounded.sum().backward()

    assert [name for name, _ in student.named_parameters()] == names
    layers = [m for m in student.modules() if isinstance(m, nn.Linear)]
    assert sum(isinstance(layer, FakeRoundedLinear) for layer in layers) == len(layers) - 1
    assert not isinstance(student.lm_head, FakeRoundedLinear)
    difference = (rounded - plain).abs().max()
    assert 0 < difference < plain.abs().max()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


def test_widths_that_no_group_divides_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", hidden_size=48)
    student = open_student(folder, folder, torch.device("cpu"))

    with pytest.raises(ModelError, match=r"groups of 32 do not divide the widths \[32, 48, 96\]"):
        fake_quantize(student, "int4")
    assert grid_of(student, "int8").group is None


def test_corrections_of_rounded_weights_are_refused() -> None:
    with pytest.raises(ValidationError, match="lora_rank leaves them as they are"):
        TrainerConfig.model_validate(
            {
                "log": "log",
                "teacher": "t",
                "student": "s",
                "out": "o",
                "lora_rank": 4,
                "fake_quantize": "int4",
            }
        )
