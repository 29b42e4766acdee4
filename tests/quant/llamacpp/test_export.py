"""What llama.cpp computes with an exported model, beside transformers, layer for layer the same."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from quant.llamacpp.export import read_gguf, write_gguf
from quant.llamacpp.making import quiet
from quant.llamacpp.trial import open_llama
from tests.support.tiny_model import make_tiny_model

pytestmark = pytest.mark.gguf
SHAPE = {
    "vocab_size": 261,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
}
MODELS = {
    "llama": LlamaConfig(**SHAPE),
    "llama-biased": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, head_dim=32),
    "mistral": MistralConfig(**SHAPE, sliding_window=None, rope_theta=5000.0),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=True),
}


def make(folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    """A model none of whose norms and biases are trivial, in the folder of a tokenizer."""
    make_tiny_model(folder)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, float("norm" in name), 0.3)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(params=MODELS)
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, PreTrainedModel]:
    quiet()
    model = make(tmp_path / "model", MODELS[request.param])
    write_gguf(tmp_path / "model.gguf", model, tmp_path / "model", "gpt-2", lambda: None)
    return tmp_path, model


def test_llama_cpp_computes_the_checkpoints_logits(exported: tuple[Path, PreTrainedModel]) -> None:
    home, model = exported
    ids = np.random.default_rng(0).integers(5, 261, 60)

    with closing(open_llama(home / "model.gguf", 128, 1)) as llama:
        llama.eval(ids.tolist())
        theirs = llama.scores[: len(ids)].copy()

    with torch.inference_mode():
        ours = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    assert np.abs(ours).max() > 3
    assert np.abs(theirs - ours).max() < 1e-4


def test_what_is_written_is_read_back(exported: tuple[Path, PreTrainedModel]) -> None:
    home, model = exported

    read, _ = read_gguf(home / "model.gguf", home / "model")

    assert read.config.model_type == model.config.model_type
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
