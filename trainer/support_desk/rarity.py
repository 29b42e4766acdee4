"""What can be rare about a message: the long tail of forms, by name."""

import random
from enum import StrEnum


class Rarity(StrEnum):
    """One reason to call a message rare."""

    FRAME = "frame"  # an unusual way to put the request
    NOUN = "noun"  # a rare product, or slang for a popular one
    COUNT = "count"  # a dozen, a pair, zwei
    URGENCY = "urgency"
    CONTACT = "contact"
    HAND = "hand"  # shouting, dropped vowels, many slips
    BYSTANDER = "bystander"  # another product is named first
    FIX_COUNT = "fix_count"  # not two, three
    FIX_PRODUCT = "fix_product"
    FIX_INTENT = "fix_intent"  # cancel it; actually no, where is it
    FIX_URGENCY = "fix_urgency"
    REFUSE_INTENT = "refuse_intent"  # I don't want a refund, I want another one
    REFUSE_CONTACT = "refuse_contact"


WEIGHTS = {
    Rarity.FRAME: 28, Rarity.NOUN: 18, Rarity.COUNT: 10, Rarity.URGENCY: 9, Rarity.CONTACT: 8,
    Rarity.HAND: 14, Rarity.BYSTANDER: 4, Rarity.FIX_COUNT: 5, Rarity.FIX_PRODUCT: 5,
    Rarity.FIX_INTENT: 6, Rarity.FIX_URGENCY: 4, Rarity.REFUSE_INTENT: 4, Rarity.REFUSE_CONTACT: 4,
}  # fmt: skip
COUNTING = frozenset({Rarity.COUNT, Rarity.FIX_COUNT})
NAMING = frozenset({Rarity.NOUN, Rarity.BYSTANDER, Rarity.FIX_PRODUCT, Rarity.FIX_INTENT})
EXCLUSIVE = frozenset(
    {Rarity.FIX_COUNT, Rarity.FIX_PRODUCT, Rarity.FIX_INTENT, Rarity.REFUSE_INTENT}
)
SECOND_FRACTION = 0.3


def draw_rarities(rng: random.Random) -> frozenset[Rarity]:
    """Pick one or two reasons; never two corrections of the same sentence."""
    drawn = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=2)
    if rng.random() > SECOND_FRACTION or EXCLUSIVE.issuperset(drawn):
        drawn = drawn[:1]
    return frozenset(drawn)
