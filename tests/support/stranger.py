"""A model with another tokenizer and chat template than the tiny one, and a log of plain chats."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from capture.revision import model_revision, tokenizer_hash
from capture.schema import LOGITS
from tests.support.answered_rows import COLUMNS, write_log
from tests.support.tiny_model import make_tiny_model

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[answer] {% endif %}"
)
BEGIN, END = "<s>", "</s>"
COLOURS = ("red", "green", "blue", "yellow", "violet", "orange", "purple", "brown")
THINGS = ("apple", "river", "lantern", "garden", "window")
CHATS = tuple(
    (f"what colour is the {colour} {thing}", f"the {thing} is {colour}")
    for colour in COLOURS
    for thing in THINGS
)


def make_chat_home(folder: Path) -> Path:
    """A teacher, a student of another tokenizer and the log of the teacher's chats."""
    teacher = make_tiny_model(folder / "teacher", hidden_size=32)
    make_stranger(folder / "stranger")
    write_log(chat_rows(teacher), folder / "log", folder / "spool", requests=chat_requests())
    return folder


def make_stranger(folder: Path) -> Path:
    """Write a Llama whose tokens are pieces of words of ``CHATS``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for chat in CHATS for text in chat], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, chat_template=TEMPLATE
    )
    torch.manual_seed(5)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=None,
        )
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def chat_rows(teacher: Path, chats: Sequence[tuple[str, str]] = CHATS) -> pa.Table:
    """The chats as a teacher's log has them, each token with nine tenths of the mass."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    rows = []
    for number, (asked, said) in enumerate(chats):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, return_dict=False
        )
        completion = [*tokenizer.encode(said), tokenizer.eos_token_id]
        num_tokens = len(completion)
        rows.append(
            {
                "exchange_id": f"x{number:04}",
                "choice": 0,
                "model_revision": model_revision(teacher),
                "tokenizer_hash": tokenizer_hash(teacher),
                "prompt_ids": prompt,
                "completion_ids": completion,
                "topk_size": [1] * num_tokens,
                "topk_ids": completion,
                "topk_logprobs": [float(np.log(0.9))] * num_tokens,
                "tail_logprob": [float(np.log(0.1))] * num_tokens,
                "tail_draws": [],
            }
        )
    return pa.Table.from_pylist(rows, schema=pa.schema([LOGITS.field(name) for name in COLUMNS]))


def chat_requests(chats: Sequence[tuple[str, str]] = CHATS) -> list[str]:
    """What was asked, as the log keeps it."""
    return [json.dumps({"messages": [{"role": "user", "content": asked}]}) for asked, _ in chats]
