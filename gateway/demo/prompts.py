"""Prompts of a chat-form JSONL file: what to ask, what is right, and how rare it is."""

import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from capture.prompts import read_chats

Slice = Literal["common", "rare"]
RARE_FRACTION = 0.2
POPULARITY_EXPONENT = 0.4


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request of the demo.

    Attributes:
        messages: Chat messages up to the answer, as (role, content).
        answer: The right answer, where the file has it.
        slice: Whether it is a common or a rare form.
    """

    messages: tuple[tuple[str, str], ...]
    answer: str | None
    slice: Slice

    @property
    def chat(self) -> list[dict[str, str]]:
        """The messages as OpenAI's API takes them."""
        return [{"role": role, "content": content} for role, content in self.messages]


def load_prompts(path: Path) -> list[Prompt]:
    """Read a file; forms that it does not call common or rare are told apart by their words.

    Raises:
        ConfigError: If the file is missing, empty, or a line is not a chat; with its number.
    """
    prompts = read_chats(path, _read)
    return (
        prompts
        if {prompt.slice for prompt in prompts} == {"common", "rare"}
        else by_rarity(prompts)
    )


def _read(line: str) -> Prompt:
    """Take one line; one without a message to answer, or with other content than text, is wrong."""
    row = json.loads(line)
    said = tuple((turn["role"], turn["content"]) for turn in row["messages"])
    answer = said[-1][1] if said and said[-1][0] == "assistant" else None
    asked = said if answer is None else said[:-1]
    if not asked or not all(isinstance(part, str) for turn in said for part in turn):
        raise TypeError
    return Prompt(asked, answer, row.get("slice", "common"))


def by_rarity(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Call the fifth with the most surprising words rare (mean surprisal under all prompts)."""
    words = [re.findall(r"\w+", prompt.messages[-1][1].lower()) for prompt in prompts]
    counts = Counter(word for each in words for word in each)
    total = sum(counts.values())
    surprisal = [
        sum(-math.log(counts[word] / total) for word in each) / max(len(each), 1) for each in words
    ]
    order = sorted(range(len(prompts)), key=surprisal.__getitem__)
    rare = set(order[int(len(prompts) * (1 - RARE_FRACTION)) :])
    return [
        replace(prompt, slice="rare" if index in rare else "common")
        for index, prompt in enumerate(prompts)
    ]


def split_heldout(prompts: Sequence[Prompt], fraction: float) -> tuple[list[Prompt], list[Prompt]]:
    """Split by prompt hash, so equal prompts are on one side; returns (traffic, held out)."""
    heldout = [_position(prompt) < fraction for prompt in prompts]
    pairs = list(zip(prompts, heldout, strict=True))
    return [p for p, held in pairs if not held], [p for p, held in pairs if held]


def _position(prompt: Prompt) -> float:
    digest = hashlib.sha256(json.dumps(prompt.messages).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def popular(prompts: Sequence[Prompt], seed: int) -> Iterator[Prompt]:
    """Draw prompts for ever, some far more often than others (Zipf over a shuffled order)."""
    rng = random.Random(seed)  # noqa: S311  traffic, not secrets
    order = rng.sample(prompts, len(prompts))
    weights = [1 / rank**POPULARITY_EXPONENT for rank in range(1, len(order) + 1)]
    while True:
        yield from rng.choices(order, weights, k=256)
