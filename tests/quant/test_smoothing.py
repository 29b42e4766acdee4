from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GemmaConfig, GemmaForCausalLM, PreTrainedModel

from quant.compressor import batches_of, linear_layers, round_layers
from quant.formats import Format, int8, int8_weight
from quant.smoothing import smooth
from tests.support.tiny_model import make_tiny_model

ROWS = [np.random.default_rng(n).integers(5, 261, 24 + n) for n in range(6)]
OUTLIERS = [3, 20, 41]
BATCHES = list(batches_of(ROWS, 128))


def tiny(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(make_tiny_model(folder / "m"), dtype=dtype)
    return model.requires_grad_(requires_grad=False)


def with_outliers(model: PreTrainedModel) -> PreTrainedModel:
    """The same function, some of the channels behind each norm being 256 times as large."""
    for layer in model.model.layers:
        heads, mlp = layer.self_attn, layer.mlp
        for norm, fed in (
            (layer.input_layernorm, [heads.q_proj, heads.k_proj, heads.v_proj]),
            (layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]),
        ):
            norm.weight[OUTLIERS] *= 256
            for linear in fed:
                linear.weight[:, OUTLIERS] /= 256
    return model


@torch.inference_mode()
def predicted(model: PreTrainedModel) -> Tensor:
    return torch.cat([model(ids_BT).logits[is_real] for ids_BT, is_real in BATCHES])


def formats_of(model: PreTrainedModel, each: Format) -> dict[str, Format]:
    return dict.fromkeys(linear_layers(model), each)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_smoothed_model_computes_the_very_same(tmp_path: Path, dtype: torch.dtype) -> None:
    model = with_outliers(tiny(tmp_path, dtype))
    before, weight = predicted(model), model.model.layers[0].mlp.up_proj.weight.clone()

    changed = smooth(model, linear_layers(model), formats_of(model, int8(127)), BATCHES)

    assert torch.equal(predicted(model), before)
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, weight)
    assert set(changed) == {
        f"model.layers.{n}.{norm}.weight"
        for n in range(2)
        for norm in ("input_layernorm", "post_attention_layernorm")
    }
    stored = dict(model.named_parameters())
    assert all(torch.equal(stored[name], tensor) for name, tensor in changed.items())


def test_eight_bits_stand_outliers_that_were_smoothed(tmp_path: Path) -> None:
    errors = []
    for is_smoothed in (False, True):
        model = with_outliers(tiny(tmp_path))
        formats = formats_of(model, int8(127))
        before = predicted(model).log_softmax(-1)
        if is_smoothed:
            smooth(model, linear_layers(model), formats, BATCHES)
        round_layers(model, linear_layers(model), formats)
        after = predicted(model).log_softmax(-1)
        errors.append(float((before.exp() * (before - after)).sum(-1).mean()))

    assert errors[1] < errors[0] / 10


def test_nothing_changes_where_inputs_are_not_rounded(tmp_path: Path) -> None:
    model = with_outliers(tiny(tmp_path))
    formats = formats_of(model, int8(127))
    formats["model.layers.0.self_attn.v_proj"] = int8_weight()

    changed = smooth(model, linear_layers(model), formats, BATCHES)

    assert "model.layers.0.input_layernorm.weight" not in changed
    assert "model.layers.1.input_layernorm.weight" in changed


def test_a_norm_of_another_kind_is_put_back() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
    model = GemmaForCausalLM(GemmaConfig(vocab_size=261, **shape, **heads))
    model.requires_grad_(requires_grad=False)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # such a norm multiplies by one more than its weight
            parameter.uniform_(-0.5, 2.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    changed = smooth(model, linear_layers(model), formats_of(model, int8(127)), BATCHES)

    assert changed == {}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
