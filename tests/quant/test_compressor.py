from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from quant import compressor
from quant.calibration import Tokens
from quant.compressor import (
    Formats,
    batches_of,
    compensate_layers,
    group_size,
    linear_layers,
    output_head,
)
from quant.errors import CompressionError
from quant.formats import int8
from quant.gptq import round_with_compensation
from quant.linear import RoundedLinear
from quant.packed import Layer
from quant.paged import keep_in
from quant.smoothing import smooth
from tests.support.model_kinds import make_model as make_kind
from trainer.grid import Rounded, round_inputs


def make_model(*, tied: bool) -> LlamaForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
        )
    ).eval()


def compensate(
    model: LlamaForCausalLM, rows: list[Tokens], batch_tokens: int, finished: list[str]
) -> dict[str, Layer]:
    layers = linear_layers(model)
    formats: Formats = dict.fromkeys(layers, int8(127))
    batches = batches_of(rows, batch_tokens)
    return compensate_layers(model, layers, formats, batches, lambda: finished.append("layer"))


def sequences(*lengths: int) -> list[Tokens]:
    return [np.arange(length, dtype=np.int64) % 64 for length in lengths]


def test_blocks_that_give_a_layer_all_tokens_in_one_row_are_observed_too() -> None:
    model = make_kind("OPT")
    layers, rows = linear_layers(model), list(batches_of(sequences(6, 9, 12), 64))
    formats: Formats = dict.fromkeys(layers, int8(127))
    smooth(model, layers, formats, rows)

    assert len(compensate_layers(model, layers, formats, rows, lambda: None)) == len(layers)


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_head_is_left_alone(tied: bool) -> None:
    model = make_model(tied=tied)

    layers = linear_layers(model)

    assert len(layers) == 2 * 7
    assert "lm_head" not in layers


def test_padding_is_not_calibrated_on() -> None:
    alone, together = make_model(tied=True), make_model(tied=True)

    one_by_one = compensate(alone, sequences(3, 40), 1, [])
    padded = compensate(together, sequences(3, 40), 99, [])

    assert one_by_one.keys() == padded.keys()
    for name, layer in one_by_one.items():
        same = (layer.weight.values_OI == padded[name].weight.values_OI).float().mean()
        assert same > 0.99, name  # sums of another order may tip a weight on the fence


def test_layers_that_do_not_fit_into_memory_at_once_are_done_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compressor, "HESSIAN_BYTES", 3 * 4 * 32**2)
    model = make_model(tied=False)
    finished: list[str] = []

    weights = compensate(model, sequences(20), 64, finished)

    rounded = [name for name, module in model.named_modules() if isinstance(module, RoundedLinear)]
    assert sorted(rounded) == sorted(weights)
    assert len(finished) == len(weights) == 2 * 7


def test_a_model_that_overflows_is_refused_by_layer() -> None:
    model = make_model(tied=True)
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[0] = torch.inf

    with pytest.raises(CompressionError, match=r"inputs of model\.layers\.1\.self_attn\.q_proj"):
        compensate(model, sequences(8), 64, [])


def test_the_output_head_is_its_own_layer_only_where_it_is_not_the_embeddings() -> None:
    assert output_head(make_model(tied=True)) == {}
    assert list(output_head(make_model(tied=False))) == ["lm_head"]


def test_the_group_is_the_largest_that_divides_every_layer() -> None:
    layers = linear_layers(make_model(tied=True))  # widths 32 and 48

    words = "has 48 input channels, which groups of {} do not divide: use --scheme int8"
    with pytest.raises(CompressionError, match=words.format(32)):
        group_size(layers)
    with pytest.raises(CompressionError, match=r"groups of 64 .*: leave `group_size` out of"):
        group_size(layers, 64)
    assert group_size(layers, 16) == 16


@torch.inference_mode()
def compensated_whole(
    model: LlamaForCausalLM, rows: list[Tokens], turns: list[list[str]]
) -> dict[str, Rounded]:
    """Run the whole model for every turn of layers, and round those by what their inputs were."""
    done = {}
    layers, form = linear_layers(model), int8(127)
    for turn in turns:
        sums = {name: torch.zeros(2 * (layers[name].in_features,)) for name in turn}

        def see(name: str, inputs: Tensor, sums: dict[str, Tensor] = sums) -> None:
            inputs_NI = round_inputs(inputs.flatten(0, 1).float())
            sums[name].addmm_(inputs_NI.T, inputs_NI)

        hooks = [
            layers[name].register_forward_pre_hook(lambda _, given, n=name: see(n, given[0]))
            for name in turn
        ]
        for row in rows:
            model(torch.from_numpy(row)[None])
        for hook in hooks:
            hook.remove()
        for name in turn:
            weight_OI = layers[name].weight.to(model.config.dtype)
            done[name] = round_with_compensation(weight_OI, sums[name], form.grid)
            model.set_submodule(name, RoundedLinear(done[name], None, rounds_inputs=True))
    return done


@pytest.mark.parametrize("per_turn", [3, 14])
def test_block_by_block_and_in_files_weights_are_those_of_a_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_turn: int
) -> None:
    rows, whole, model = sequences(5, 9, 20), make_model(tied=True), make_model(tied=True)
    layers = linear_layers(model)
    names = list(layers)
    turns = [names[i : i + per_turn] for i in range(0, len(names), per_turn)]
    turn_of = iter([{name: layers[name] for name in turn} for turn in turns])
    monkeypatch.setattr(compressor, "_turns", lambda _layers: turn_of)
    formats: Formats = dict.fromkeys(layers, int8(127))

    made = compensate_layers(
        model, layers, formats, batches_of(rows, 1), lambda: None, keep_in(tmp_path)
    )

    for name, expected in compensated_whole(whole, rows, turns).items():
        assert torch.equal(made[name].weight.values_OI, expected.values_OI), name
        assert torch.equal(made[name].weight.scale_OG, expected.scale_OG), name
