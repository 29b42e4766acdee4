"""A model of random weights that is written without ever being held."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from tests.support.tiny_model import make_tiny_model

WIDTH = 1024


def make_large_model(folder: Path, *, blocks: int, inner: int, vocabulary: int) -> Path:
    """Write a bfloat16 Llama with the tiny model's tokenizer, a file per block.

    Args:
        folder: Of the model; must not exist.
        blocks: How many.
        inner: Width of their feed-forward layers.
        vocabulary: Rows of the embeddings and of the output head.
    """
    make_tiny_model(folder)
    (folder / "model.safetensors").unlink()
    random = torch.Generator().manual_seed(0)

    def matrix(outputs: int, inputs: int) -> Tensor:
        return torch.randn(outputs, inputs, generator=random).div(inputs**0.5).bfloat16()

    ends = {
        "model.embed_tokens.weight": matrix(vocabulary, WIDTH),
        "model.norm.weight": torch.ones(WIDTH, dtype=torch.bfloat16),
        "lm_head.weight": matrix(vocabulary, WIDTH),
    }
    places = _write(folder, "ends.safetensors", ends)
    for number in range(blocks):
        shapes = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"mlp.{name}_proj": (inner, WIDTH) for name in ("gate", "up")}
        shapes |= {"mlp.down_proj": (WIDTH, inner)}
        block = {f"{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            block[f"{name}.weight"] = torch.ones(WIDTH, dtype=torch.bfloat16)
        tensors = {f"model.layers.{number}.{name}": tensor for name, tensor in block.items()}
        places |= _write(folder, f"block-{number}.safetensors", tensors)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    return folder


def _write(folder: Path, name: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    save_file(tensors, folder / name, {"format": "pt"})
    return dict.fromkeys(tensors, name)
