from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model
from trainer.config import CutConfig
from trainer.cut import cut
from trainer.dataset import Dataset, from_table
from trainer.errors import ModelError
from trainer.importance import Importance, measure
from trainer.packing import collate
from trainer.reduction import Reduction
from trainer.shape import Shape, num_parameters, shape_of
from trainer.student import count_parameters

SIZES = {
    "vocab_size": 261,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": 0,
}
CLOSE = 2e-3  # of logits that reach 6; what float32 leaves after another order of the sums
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "tied": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, tie_word_embeddings=False)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("cut") / "teacher")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return from_table(answer(folder, 24), folder)


def make_teacher(model: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A random model whose norms have uneven gains, as trained ones have."""
    torch.manual_seed(0)
    teacher = model(config).eval()
    for name, weight in teacher.named_parameters():
        if "norm" in name and not (config.tie_word_embeddings and name == "model.norm.weight"):
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return teacher


def measured(teacher: PreTrainedModel, dataset: Dataset) -> Importance:
    return measure(teacher, [collate(dataset, np.arange(24), torch.device("cpu"))])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_of_the_teachers_own_shape_computes_the_same(family: str, dataset: Dataset) -> None:
    teacher = make_teacher(*FAMILIES[family])
    whole = cut(teacher, measured(teacher, dataset), shape_of(teacher.config), torch.float32)
    ids = torch.randint(0, 261, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(whole(ids).logits, teacher(ids).logits, atol=CLOSE)


def test_a_teacher_that_uses_few_directions_loses_nothing_by_losing_the_others(
    dataset: Dataset,
) -> None:
    teacher = make_teacher(*FAMILIES["llama"])
    basis, _ = torch.linalg.qr(torch.randn(64, 32, generator=torch.Generator().manual_seed(2)))
    with torch.no_grad():
        embeddings = teacher.model.embed_tokens.weight
        embeddings.copy_(embeddings @ basis @ basis.T)
        for layer in teacher.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.copy_(basis @ basis.T @ linear.weight)
    importance = measured(teacher, dataset)
    half = cut(teacher, importance, Shape(32, 96, 3, 4), torch.float32)
    ids = torch.randint(0, 261, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(half(ids).logits, teacher(ids).logits, atol=CLOSE)


def test_heads_neurons_and_layers_that_add_nothing_go_first(tmp_path: Path) -> None:
    teacher = make_teacher(*FAMILIES["llama"])
    with torch.no_grad():
        teacher.model.layers[1].self_attn.o_proj.weight.zero_()
        teacher.model.layers[1].mlp.down_proj.weight.zero_()
        for layer in teacher.model.layers:
            layer.self_attn.o_proj.weight[:, :64].zero_()
            layer.mlp.down_proj.weight[:, 10:42].zero_()
    teacher.save_pretrained(tmp_path)
    importance = measured(teacher, from_table(answer(tmp_path, 24), tmp_path))
    assert importance.layers_L[-1] == 1
    rest = cut(teacher, importance, Shape(64, 64, 2, 2), torch.float32)
    ids = torch.randint(0, 261, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(rest(ids).logits, teacher(ids).logits, atol=CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_has_exactly_its_shape_and_loads_again(
    family: str, dataset: Dataset, tmp_path: Path
) -> None:
    teacher = make_teacher(*FAMILIES[family])
    shape = Shape(32, 64, 2, 2)
    student = cut(teacher, measured(teacher, dataset), shape, torch.float32)
    assert count_parameters(student) == num_parameters(teacher.config, shape)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, student(ids).logits)


def test_an_automatic_cut_fits_a_quarter(folder: Path, dataset: Dataset) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(folder)
    said: list[str] = []
    student = Reduction(teacher, dataset, np.arange(24), 0, said.append).run(CutConfig())
    assert count_parameters(student) * 4 <= count_parameters(teacher)
    assert any(words.startswith("trying") for words in said)


def test_a_family_that_cannot_be_cut_is_refused(dataset: Dataset) -> None:
    biased = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True))
    with pytest.raises(ModelError, match=r"llama with attention_bias.*`student`"):
        Reduction(biased, dataset, np.arange(24), 0, print).run(CutConfig())
