"""Tiny random models of many kinds: those whose scores are computed here rightly, and others."""

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

Sizes = dict[str, int | float]

SUPPORTED: dict[str, Sizes] = {
    "Llama": {},
    "Mistral": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Gemma": {"head_dim": 16},
    "Gemma3Text": {"head_dim": 16},
    "Phi3": {},
    "Olmo2": {},
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}
UNSUPPORTED: dict[str, Sizes] = {
    "Phi": {},  # a bias
    "Granite": {"logits_scaling": 8.0},
    "Cohere": {"logit_scale": 0.0625},
    "Gemma2": {"head_dim": 16, "final_logit_softcapping": 30.0},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "GPTNeoX": {},
    "GPTJ": {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8},
}
SHAPE: Sizes = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def make_model(kind: str, **replaced: float) -> PreTrainedModel:
    """Make one, in float32."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")
    own = (SUPPORTED | UNSUPPORTED)[kind]
    return AutoModelForCausalLM.from_config(config(**{**SHAPE, **own, **replaced})).eval()
