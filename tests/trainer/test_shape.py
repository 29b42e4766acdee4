import itertools

import pytest
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from capture.errors import ConfigError
from trainer.config import CutConfig
from trainer.shape import Shape, choose, num_parameters, shape_of
from trainer.student import count_parameters

SIZES = {
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
}
LLAMA = LlamaConfig(**SIZES, tie_word_embeddings=True)
BUDGET = num_parameters(LLAMA, shape_of(LLAMA)) // 4


def lost(shape: Shape, weights: dict[str, float]) -> float:
    """A made-up damage: each dimension's missing share, weighed."""
    missing = {
        "layers": 1 - shape.layers / 4,
        "hidden_size": 1 - shape.hidden_size / 128,
        "heads": 1 - shape.heads / 4,
        "intermediate_size": 1 - shape.intermediate_size / 256,
    }
    return sum(weights.get(name, 0.1) * share for name, share in missing.items())


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (LLAMA, LlamaForCausalLM),
        (LlamaConfig(**SIZES, tie_word_embeddings=False), LlamaForCausalLM),
        (Qwen3Config(**SIZES, tie_word_embeddings=True), Qwen3ForCausalLM),
    ],
)
def test_the_formula_counts_what_the_model_has(
    config: PretrainedConfig, model: type[LlamaForCausalLM]
) -> None:
    assert num_parameters(config, shape_of(config)) == count_parameters(model(config))


@pytest.mark.parametrize("dear", ["layers", "hidden_size", "heads", "intermediate_size"])
def test_no_shape_within_the_budget_loses_less(dear: str) -> None:
    def damage(shape: Shape) -> float:
        return lost(shape, {dear: 0.9})

    chosen = choose(LLAMA, CutConfig(), BUDGET, damage)
    grid = itertools.product(range(32, 129, 32), range(32, 257, 32), range(1, 5), (2, 4))
    fitting = [s for s in itertools.starmap(Shape, grid) if num_parameters(LLAMA, s) <= BUDGET]
    assert num_parameters(LLAMA, chosen) <= BUDGET
    assert damage(chosen) == pytest.approx(min(damage(shape) for shape in fitting))


def test_a_hopeless_size_is_neither_chosen_nor_gone_below() -> None:
    tried: list[int] = []

    def damage(shape: Shape) -> float:
        tried.append(shape.hidden_size)
        return 5.0 if shape.hidden_size < 64 else 0.0

    assert choose(LLAMA, CutConfig(), BUDGET, damage).hidden_size >= 64
    assert min(tried) == 32


def test_what_the_user_fixes_is_kept_and_not_measured() -> None:
    seen: set[int] = set()

    def damage(shape: Shape) -> float:
        seen.add(shape.layers)
        return lost(shape, {})

    chosen = choose(LLAMA, CutConfig(layers=2, heads=2), BUDGET, damage)
    assert (chosen.layers, chosen.heads) == (2, 2)
    assert seen == {4}


def test_a_fully_given_shape_is_taken_without_measuring() -> None:
    wanted = CutConfig(hidden_size=96, intermediate_size=200, layers=3, heads=4)

    def refuse(_: Shape) -> float:
        raise AssertionError

    assert choose(LLAMA, wanted, BUDGET, refuse) == Shape(96, 200, 3, 4)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (CutConfig(layers=5), r"layers is 5, expected at most the teacher's \(4\)"),
        (CutConfig(heads=3), "heads is 3, expected a multiple of 2"),
        (CutConfig(hidden_size=98, heads=4), "hidden_size is 98, expected a multiple of heads"),
        (CutConfig(hidden_size=128, layers=4, intermediate_size=256), "no student of at most"),
    ],
)
def test_a_cut_that_cannot_be_had_is_refused(wanted: CutConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(LLAMA, wanted, BUDGET, lambda shape: lost(shape, {}))
