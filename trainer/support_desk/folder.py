"""The teacher as a plain Hugging Face folder that vLLM serves as it is."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from trainer.support_desk.examination import MAX_NEW_TOKENS
from trainer.support_desk.teacher import MAX_TOKENS
from trainer.support_desk.tokenizer import CHAT_TEMPLATE, END, END_ID, PAD, PAD_ID, SPECIAL


def write_teacher(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Write weights in bfloat16, the tokenizer and its chat template into a new folder."""
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=END_ID, pad_token_id=PAD_ID
    )
    disable_progress_bar()  # it would tear our own
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    settings = {
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [name for name in SPECIAL if name not in {END, PAD}],
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_TOKENS,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(settings, indent=2)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
