import numpy as np
import pytest
import torch
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
from quant.linear import RoundedLinear
from quant.packed import Layer


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

    with pytest.raises(CompressionError, match="has 48 input channels, which groups of 32 do not"):
        group_size(layers)
    assert group_size(layers, 16) == 16
