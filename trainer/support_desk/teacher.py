"""The teacher before training: a small Llama with random weights."""

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.support_desk.tokenizer import END_ID, PAD_ID

MAX_TOKENS = 512
HEAD_DIM = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of the model."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int


def build_model(shape: Shape, vocab_size: int, seed: int) -> LlamaForCausalLM:
    """Make a model in float32; equal arguments give equal weights."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        attn_implementation="eager",  # the fused kernel's backward is slow on messages this short
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
