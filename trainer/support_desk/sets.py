"""The three sets of messages: the lessons that the teacher learns, the traffic, the held-out test.

A message's set follows from the hash of its text, so no text is ever in two of them, and each
set is drawn from a stream of its own.
"""

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum

from trainer.support_desk.lexicon import Lexicon
from trainer.support_desk.message import Message, Slice, write_messages

SYSTEM_PROMPT = "support"
TEST_FRACTION = 0.1
TRAFFIC_FRACTION = 0.2


class Set(StrEnum):
    """What a message is for."""

    LESSONS = "lessons"
    TRAFFIC = "traffic"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many distinct messages of each slice a set holds."""

    common: int
    rare: int


def set_of(text: str) -> Set:
    """Say which set a message belongs to; most to the lessons."""
    position = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    if position < TEST_FRACTION:
        return Set.TEST
    return Set.TRAFFIC if position < TEST_FRACTION + TRAFFIC_FRACTION else Set.LESSONS


def draw_set(lexicon: Lexicon, name: Set, sizes: Sizes, seed: int) -> list[Message]:
    """Draw distinct messages of one set, both slices mixed in the order they were written."""
    wanted: dict[Slice, int] = {"common": sizes.common, "rare": sizes.rare}
    seen: set[str] = set()
    drawn: list[Message] = []
    for message in write_messages(
        lexicon, f"{seed}/{name}", sizes.rare / (sizes.common + sizes.rare)
    ):
        if wanted[message.slice] and message.text not in seen and set_of(message.text) == name:
            seen.add(message.text)
            wanted[message.slice] -= 1
            drawn.append(message)
        if not any(wanted.values()):
            return drawn
    return drawn


def row(message: Message) -> str:
    """Return a message as one line of chat-form JSONL."""
    turns = {
        "system": SYSTEM_PROMPT,
        "user": message.text,
        "assistant": message.ticket.to_json(),
    }
    messages = [{"role": role, "content": content} for role, content in turns.items()]
    return json.dumps({"messages": messages, "slice": message.slice}, ensure_ascii=False)
