"""Models for benchmarks: the demo's teacher, and one whose vocabulary is of real size."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LARGE_VOCABULARY = 151_936  # Qwen's
CPU_SHAPE = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8}
GPU_SHAPE = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24}  # 1.5 B


def demo_teacher(demo: Path) -> Path:
    """The demo's teacher; built if the demo has not run yet."""
    teacher = demo / "cache" / "teacher"
    if not (teacher / "config.json").is_file():
        subprocess.run([sys.executable, "-m", "trainer.support_desk", demo / "cache"], check=True)
    return teacher


def large_vocabulary(
    folder: Path, shape: Mapping[str, int] = CPU_SHAPE, *, has_weights: bool = True
) -> Path:
    """Random bfloat16 weights and a word for every id; made once.

    Args:
        folder: Where.
        shape: Of ``LlamaConfig``; heads are 64 wide, two share a key.
        has_weights: Else the engine has to make them (``--load-format dummy``).
    """
    if (folder / "config.json").is_file():
        return folder
    words = {f"w{number}": number for number in range(LARGE_VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))  # noqa: S106  no secret
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=LARGE_VOCABULARY,
        **shape,
        num_attention_heads=shape["hidden_size"] // 64,
        num_key_value_heads=shape["hidden_size"] // 128,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    if has_weights:
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        model.generation_config.update(eos_token_id=1, pad_token_id=0, bos_token_id=None)
        model.save_pretrained(folder)
    else:
        config.dtype, config.architectures = torch.bfloat16, ["LlamaForCausalLM"]
        config.save_pretrained(folder)
    special = {"unk_token": "w0", "eos_token": "w1"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder
