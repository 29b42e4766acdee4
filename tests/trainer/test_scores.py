from pathlib import Path

import pytest
import torch

from tests.support.distill_run import distill, make_home, write_config
from tests.support.model_kinds import SUPPORTED, UNSUPPORTED, make_model
from tests.support.tiny_model import make_tiny_model
from trainer.config import TrainerConfig
from trainer.errors import ModelError
from trainer.rollout_commands import _scorer
from trainer.scores import check_scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", SUPPORTED)
def test_scores_that_are_a_product_of_the_last_states_are_accepted(
    kind: str, dtype: torch.dtype
) -> None:
    check_scores(make_model(kind).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_model_with_other_scores_is_refused_by_its_type(kind: str, dtype: torch.dtype) -> None:
    model = make_model(kind).to(dtype)

    with pytest.raises(ModelError, match=f"type {model.config.model_type} cannot be used.*Llama"):
        check_scores(model)


def test_looking_changes_nothing() -> None:
    model = make_model("Llama").train()
    before = torch.random.get_rng_state()
    check_scores(model)

    assert model.training
    assert torch.equal(torch.random.get_rng_state(), before)
    token_ids = torch.arange(4)[None]
    expected = model.model(token_ids)[0] @ model.lm_head.weight.T
    torch.testing.assert_close(model(token_ids).logits, expected)


@pytest.mark.parametrize("kind", ["Granite", "GPTNeoX"])
def test_such_a_student_is_not_trained(tmp_path: Path, kind: str) -> None:
    home = make_home(tmp_path)
    folder = make_tiny_model(home / "student")
    (folder / "model.safetensors").unlink()
    make_model(kind, vocab_size=261, max_position_embeddings=512).save_pretrained(folder)

    with pytest.raises(ModelError, match="cannot be used"):
        distill(write_config(home, student='"student"'))
    assert not (home / "out").exists()


def test_such_a_teacher_scores_no_rollouts(tmp_path: Path) -> None:
    make_model("Granite").save_pretrained(tmp_path / "teacher")
    config = TrainerConfig.model_construct(teacher=tmp_path / "teacher", device="cpu")

    with pytest.raises(ModelError, match="type granite"):
        _scorer(config, None)
