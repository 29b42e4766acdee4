"""How narrow a domain is: how much of the newest traffic's wording older traffic has (pure)."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

LETTERS = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"  # scripts without spaces
WORD = re.compile(rf"[{LETTERS}]|[^\W{LETTERS}]+|[^\w\s]")
NEW_WORDS = 5_000
OLD_WORDS = 20_000
NEEDED_WORDS = NEW_WORDS + OLD_WORDS
FIRST_WORDS = 100  # of a text: so that few long ones are not all that is looked at

Pair = tuple[str, str]


def seen_share(texts: Sequence[Sequence[str]]) -> float | None:
    """Return which share of the newest pairs of neighbouring words was there before.

    The newest 5,000 words are compared with the 20,000 before them, always as many, because the
    share grows with what there is to compare with.

    Args:
        texts: Words of each text, the newest text first.

    Returns:
        None if there are fewer words.
    """
    new: list[Pair] = []
    old: set[Pair] = set()
    words = 0
    for text in texts:
        if words < NEW_WORDS:
            new += pairwise(text)
        elif words < NEEDED_WORDS:
            old |= set(pairwise(text))
        words += len(text)
    if words < NEEDED_WORDS or not new:
        return None
    return sum(pair in old for pair in new) / len(new)


def split_words(text: str) -> list[str]:
    """The first words of a text, in small letters."""
    found = (match.group() for match in WORD.finditer(text.lower()))
    return [word for word, _ in zip(found, range(FIRST_WORDS), strict=False)]


def texts_of(request: str, answers: Sequence[str | None] | None) -> Iterator[str]:
    """What was asked last and what was answered; instructions and earlier turns are left out.

    Args:
        request: JSON as it was sent.
        answers: Of each choice.
    """
    body = json.loads(request)
    messages = body.get("messages")
    asked = messages[-1].get("content") if messages else body.get("prompt")
    parts = asked if isinstance(asked, list) else [{"text": asked}]
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    yield from (text for text in texts if isinstance(text, str))
    yield from filter(None, answers or ())
