"""A byte-level BPE tokenizer trained on the desk's own messages, and its chat template."""

from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from trainer.support_desk.message import Message
from trainer.support_desk.sets import SYSTEM_PROMPT

PAD, END = "<|pad|>", "<|end|>"
SPECIAL = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")
PAD_ID, END_ID = 0, 1
# A JSON key with the quotes around it is one piece; so are words, numbers, punctuation.
PIECES = r"""["]?[{,]"[a-z]+":"?| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"""
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(messages: Iterable[Message], vocab_size: int) -> Tokenizer:
    """Train on messages and their answers; any text can be encoded and comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs = ((f"{SYSTEM_PROMPT}\n{m.text}", m.ticket.to_json()) for m in messages)
    tokenizer.train_from_iterator((text for pair in pairs for text in pair), trainer)
    return tokenizer


def prompt_text(message: Message) -> str:
    """Return what the chat template makes of a message, up to the answer's start."""
    return f"<|system|>{SYSTEM_PROMPT}<|user|>{message.text}<|assistant|>"


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts in which special tokens are written out."""
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]
