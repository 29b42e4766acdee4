"""The phrases of ``phrases.toml``, and how they are drawn: popular ones far more often."""

import random
import re
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import accumulate
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Item = TypeVar("Item")
FLAT = 0.5  # exponent where even the last item must not starve
ALTERNATIVES = re.compile(r"\(([^()]*)\)")


class Phrases(BaseModel):
    """Ways to say one thing, most popular first; ``rare`` ones are the long tail."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    common: tuple[str, ...]
    rare: Annotated[tuple[str, ...], Field(min_length=1)]

    def draw(self, rng: random.Random, *, is_rare: bool) -> str:
        """Pick a phrase, its alternatives still in it."""
        return zipf(rng, self.rare, FLAT) if is_rare else zipf(rng, self.common)


class Quantities(BaseModel):
    """Counts as (digits, words)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    common: tuple[tuple[int, str], ...]
    rare: tuple[tuple[int, str], ...]


class SmallTalk(BaseModel):
    """What surrounds a request and says nothing about it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    greetings: tuple[str, ...]
    closings: tuple[str, ...]
    contexts: tuple[str, ...]
    rare_greetings: tuple[str, ...]
    rare_closings: tuple[str, ...]
    before: tuple[str, ...]


class Corrections(BaseModel):
    """How people take back what they have just written, by what they take back."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    quantity: tuple[str, ...]
    product: tuple[str, ...]
    intent: tuple[str, ...]
    urgency: tuple[str, ...]


class Lexicon(BaseModel):
    """Everything customers say; tables are in order of popularity."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    intents: dict[str, Phrases]
    products: dict[str, Phrases]
    quantities: Quantities
    urgency: dict[str, Phrases]
    contact: dict[str, Phrases]
    small_talk: SmallTalk
    corrections: Corrections
    refusals: dict[str, str]

    @classmethod
    def load(cls) -> "Lexicon":
        """Read the phrases shipped with this package."""
        text = resources.files(__package__).joinpath("phrases.toml").read_text(encoding="utf-8")
        return cls.model_validate(tomllib.loads(text))


def chance(rng: random.Random, probability: float) -> bool:
    """Say yes with a probability."""
    return rng.random() < probability


def zipf(rng: random.Random, items: Sequence[Item], exponent: float = 1.0) -> Item:
    """Pick one of the items, the n-th with a weight of ``1 / n**exponent``."""
    return rng.choices(items, cum_weights=_cumulative(len(items), exponent))[0]


@cache
def _cumulative(count: int, exponent: float) -> list[float]:
    return list(accumulate(1 / rank**exponent for rank in range(1, count + 1)))


def expand(rng: random.Random, phrase: str) -> str:
    """Replace every ``(a|b)`` by one of its alternatives, the first ones more often."""
    picked = ALTERNATIVES.sub(lambda match: zipf(rng, match[1].split("|")), phrase)
    return " ".join(picked.split())
