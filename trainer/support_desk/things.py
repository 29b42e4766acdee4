"""Things that customers have or want: a product, the word for it, how many (pure)."""

import random
from dataclasses import dataclass

from trainer.support_desk.lexicon import FLAT, Lexicon, chance, zipf

PLACEHOLDERS = ("{own}", "{new}", "{many}", "{bare}")
COUNTED = ("{own}", "{new}")


@dataclass(frozen=True, slots=True)
class Thing:
    """One product as a message speaks of it.

    Attributes:
        one: The word for a single one, such as ``mouse``.
        many: Its plural; the same word for things that come in pairs.
        quantity: How many, at least 1.
        count: The number as it is written: ``3``, ``three``, ``a dozen``.
    """

    product: str
    one: str
    many: str
    quantity: int
    count: str

    def written(self, rng: random.Random, placeholder: str) -> str:
        """Return the words that stand for a placeholder in a frame."""
        if placeholder == "{many}":
            return self.many
        if placeholder == "{bare}" or (placeholder == "{own}" and self.quantity == 1):
            return self.one
        if placeholder == "{own}":
            return f"{self.count.removeprefix('a ')} {self.many}"
        return self._wanted(rng)

    def _wanted(self, rng: random.Random) -> str:
        if self.quantity == 1:
            article = "an" if self.one[0] in "aeiou" else "a"
            word = "some" if self.one == self.many else rng.choice([article, article, "one"])
            return f"{word} {self.one}"
        if self.count.isdigit() and chance(rng, 0.3):
            return rng.choice([f"{self.count}x {self.one}", f"{self.many} x{self.count}"])
        return f"{self.count} {self.many}"


def draw_noun(rng: random.Random, lexicon: Lexicon, *, is_rare: bool) -> tuple[str, str, str]:
    """Pick a product and a word for it, as (product, singular, plural)."""
    products = [name for name, words in lexicon.products.items() if is_rare or words.common]
    product = zipf(rng, products, FLAT if is_rare else 1.0)
    one, _, many = lexicon.products[product].draw(rng, is_rare=is_rare).partition("|")
    return product, one, many or f"{one}s"


def draw_count(rng: random.Random, lexicon: Lexicon, *, is_rare: bool) -> tuple[int, str]:
    """Pick a quantity above 1 and how it is written."""
    if is_rare:
        return zipf(rng, lexicon.quantities.rare, FLAT)
    quantity, words = zipf(rng, lexicon.quantities.common)
    return quantity, rng.choice([str(quantity), words])
