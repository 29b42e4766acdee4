import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quant.calibration import Sample, sample_of
from quant.config import QuantConfig
from quant.errors import CompressionError
from quant.groups import fused_groups
from quant.mixing import Sensitivity, search
from quant.paged import in_memory
from quant.screen import Screen
from quant.sensitivity import AS_IT_IS

GROUPS = [
    *("model.layers.0.self_attn.qkv_proj", "model.layers.0.self_attn.o_proj"),
    *("model.layers.0.mlp.gate_up_proj", "model.layers.0.mlp.down_proj"),
    *("model.layers.1.self_attn.qkv_proj", "model.layers.1.self_attn.o_proj"),
    *("model.layers.1.mlp.gate_up_proj", "model.layers.1.mlp.down_proj"),
]


def make_model(*, tied: bool) -> LlamaForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            dtype=torch.float32,
        )
    ).eval()


def searched(model: LlamaForCausalLM) -> Sensitivity:
    rng = np.random.default_rng(0)
    rows = tuple(rng.integers(0, 128, 12) for _ in range(8))
    with Screen.opened() as screen:
        return search(model, Sample(rows, (4,) * 8), QuantConfig(), 127, in_memory, screen)


@pytest.fixture(scope="module")
def found() -> Sensitivity:
    return searched(make_model(tied=False))


def test_what_the_engine_multiplies_at_once_has_one_format(found: Sensitivity) -> None:
    assert list(found.groups) == [*GROUPS, "lm_head"]
    assert found.groups["model.layers.1.mlp.gate_up_proj"] == (
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.up_proj",
    )
    assert fused_groups(["q_proj", "k_proj"]) == {"qkv_proj": ("q_proj", "k_proj")}


def test_fewer_bits_lose_more_of_every_group(found: Sensitivity) -> None:
    kl = {(each.group, each.format): each.kl_nats for each in found.findings}
    size = {(each.group, each.format): each.size_bytes for each in found.findings}

    for group in found.groups:
        eight = "int8-weight" if group == "lm_head" else "int8"
        assert kl[group, AS_IT_IS] == 0
        assert 0 < kl[group, eight] < kl[group, "int4"]
        assert size[group, AS_IT_IS] > size[group, eight] > size[group, "int4"]


def test_the_model_is_left_as_it_was() -> None:
    model = make_model(tied=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    found = searched(model)

    assert list(found.groups) == GROUPS  # the head is the embeddings
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_larger_budget_never_loses_more(found: Sensitivity) -> None:
    budgets = (0.2, 0.3, 0.5, 1.0)
    choices = [found.choose(budget) for budget in budgets]

    for budget, choice in zip(budgets, choices, strict=True):
        assert choice.size <= budget * found.stored_bytes
    losses = [choice.loss for choice in choices]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0
    assert set(choices[-1].names.values()) == {AS_IT_IS}
    assert found.formats_of(choices[-1]) == {}


def test_every_layer_of_a_chosen_group_gets_its_format(found: Sensitivity) -> None:
    choice = found.choose(0.25)

    formats = found.formats_of(choice)

    for group, layers in found.groups.items():
        assert {formats[layer].name if layer in formats else AS_IT_IS for layer in layers} == {
            choice.names[group]
        }


def test_a_budget_that_nothing_fits_is_refused_with_the_least_that_does(found: Sensitivity) -> None:
    with pytest.raises(CompressionError, match=r"5\.0% of the layers' size, the smallest takes 1"):
        found.choose(0.05)


def test_prompts_as_long_as_what_is_read_do_not_hide_what_rounding_loses() -> None:
    rng = np.random.default_rng(0)
    rows = {"prompt_ids": (600,) * 4, "completion_ids": (6,) * 4}
    table = pa.table(
        {name: [rng.integers(0, 128, n).tolist() for n in each] for name, each in rows.items()}
    )

    with Screen.opened() as screen:
        found = search(
            make_model(tied=True), sample_of(table, 32), QuantConfig(), 127, in_memory, screen
        )

    assert all(each.kl_nats > 0 for each in found.findings if each.format != AS_IT_IS)


def test_rows_without_answers_cannot_choose_formats() -> None:
    rows = tuple(np.arange(12) for _ in range(4))

    with (
        Screen.opened() as screen,
        pytest.raises(CompressionError, match="no token of an answer among the 4 rows"),
    ):
        search(
            make_model(tied=True), Sample(rows, (12,) * 4), QuantConfig(), 127, in_memory, screen
        )
