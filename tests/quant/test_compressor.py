import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quant import compressor
from quant.calibration import Tokens
from quant.compressor import linear_layers, quantize_layers
from quant.errors import CompressionError
from quant.linear import Int8Linear


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

    one_by_one = quantize_layers(alone, linear_layers(alone), sequences(3, 40), 1, lambda: None)
    padded = quantize_layers(together, linear_layers(together), sequences(3, 40), 99, lambda: None)

    assert one_by_one.keys() == padded.keys()
    for name, weight in one_by_one.items():
        same = (weight.values_OI == padded[name].values_OI).float().mean()
        assert same > 0.99, name  # sums of another order may tip a weight on the fence


def test_layers_that_do_not_fit_into_memory_at_once_are_done_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compressor, "HESSIAN_BYTES", 3 * 4 * 32**2)
    model = make_model(tied=False)
    finished: list[int] = []

    weights = quantize_layers(
        model, linear_layers(model), sequences(20), 64, lambda: finished.append(1)
    )

    int8 = [name for name, module in model.named_modules() if isinstance(module, Int8Linear)]
    assert sorted(int8) == sorted(weights)
    assert len(finished) == len(weights) == 2 * 7


def test_a_model_that_overflows_is_refused_by_layer() -> None:
    model = make_model(tied=True)
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[0] = torch.inf

    with pytest.raises(CompressionError, match=r"inputs of model\.layers\.1\.self_attn\.q_proj"):
        quantize_layers(model, linear_layers(model), sequences(8), 64, lambda: None)
