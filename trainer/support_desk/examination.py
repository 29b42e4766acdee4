"""How often the teacher's greedy answer is exactly right.

Shape suffixes: B messages, T tokens (left-padded).
"""

from collections.abc import Callable, Sequence

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from trainer.support_desk.message import Message
from trainer.support_desk.tokenizer import END_ID, PAD_ID, encode, prompt_text

BATCH_MESSAGES = 64
MAX_NEW_TOKENS = 32


def exact_match(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    advance: Callable[[int, int], None],
) -> dict[str, float]:
    """Return, for each slice, the share of messages answered to the letter.

    Args:
        model: In the dtype it is to be judged in.
        tokenizer: The one it was trained with.
        messages: At least one.
        advance: Called after each batch with (messages done, messages).
    """
    is_right: dict[str, list[bool]] = {}
    for start in range(0, len(messages), BATCH_MESSAGES):
        batch = messages[start : start + BATCH_MESSAGES]
        for message, text in zip(batch, answer(model, tokenizer, batch), strict=True):
            is_right.setdefault(message.slice, []).append(text == message.ticket.to_json())
        advance(start + len(batch), len(messages))
    return {name: sum(rights) / len(rights) for name, rights in sorted(is_right.items())}


@torch.inference_mode()
def answer(model: LlamaForCausalLM, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[str]:
    """Return the model's greedy answer to each message, as one batch."""
    prompts = encode(tokenizer, [prompt_text(message) for message in messages])
    width = max(map(len, prompts))
    answers_BT = model.generate(
        torch.tensor([[PAD_ID] * (width - len(ids)) + ids for ids in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )[:, width:]
    return tokenizer.decode_batch(answers_BT.tolist())
