"""What the writing of one message draws from: randomness, phrases, and what has to be rare."""

import random
from dataclasses import dataclass

from trainer.support_desk.lexicon import Lexicon, Phrases, expand, zipf
from trainer.support_desk.rarity import COUNTING, Rarity
from trainer.support_desk.things import Thing, draw_count, draw_noun

SINGLE_FRACTION = {"{new}": 0.45}
OWN_SINGLE_FRACTION = 0.72
PAUSES = (". ", ", ", "... ", " - ", " ")


@dataclass(frozen=True, slots=True)
class Draw:
    """One message's draws; a rarity is rare wherever its phrase is drawn."""

    rng: random.Random
    lexicon: Lexicon
    rarities: frozenset[Rarity]

    def has(self, rarity: Rarity) -> bool:
        """Whether this has to be rare."""
        return rarity in self.rarities

    def phrase(self, phrases: Phrases, rarity: Rarity) -> str:
        """Pick a common or a rare phrase."""
        return expand(self.rng, phrases.draw(self.rng, is_rare=self.has(rarity)))

    def thing(self, placeholder: str) -> Thing:
        """Pick a product, a word for it and a quantity."""
        product, one, many = draw_noun(self.rng, self.lexicon, is_rare=self.has(Rarity.NOUN))
        single = SINGLE_FRACTION.get(placeholder, OWN_SINGLE_FRACTION)
        if self.rng.random() < single and not self.rarities & COUNTING:
            return Thing(product, one, many, 1, "1")
        quantity, count = draw_count(self.rng, self.lexicon, is_rare=self.has(Rarity.COUNT))
        if one == many and "pair" in count:  # "a pair of headphones" is one
            count = str(quantity)
        return Thing(product, one, many, quantity, count)

    def other_noun(self, thing: Thing) -> tuple[str, str, str]:
        """Pick a popular word for another product, as (product, singular, plural)."""
        while True:
            noun = draw_noun(self.rng, self.lexicon, is_rare=False)
            if noun[0] != thing.product:
                return noun

    def pause(self) -> str:
        """Pick what stands between a sentence and its correction."""
        return zipf(self.rng, PAUSES)
