"""The sentence that says what a customer wants, corrections and refusals included (pure)."""

from dataclasses import dataclass, replace

from trainer.support_desk.draw import Draw
from trainer.support_desk.lexicon import FLAT, chance, expand, zipf
from trainer.support_desk.rarity import COUNTING, NAMING, Rarity
from trainer.support_desk.things import COUNTED, PLACEHOLDERS, Thing, draw_count

QUESTIONS = ("where", "when", "can", "could", "do", "how", "what", "is", "are", "any", "who", "did")


@dataclass(frozen=True, slots=True)
class Request:
    """The main sentence and what it means.

    Attributes:
        frame: The template it was made from.
        quantity: None where no count is stated.
    """

    text: str
    frame: str
    intent: str
    product: str | None
    quantity: int | None


def write_request(draw: Draw) -> Request:
    """Write the main sentence."""
    intent = zipf(draw.rng, list(draw.lexicon.intents), FLAT)
    frame = _frame(draw, intent)
    placeholder = next((name for name in PLACEHOLDERS if name in frame), None)
    if placeholder is None:
        text = _refuse(draw, intent, _ask(draw, frame))
        return Request(text, frame, intent, None, None)
    thing = draw.thing(placeholder)
    text = _ask(draw, frame.replace(placeholder, thing.written(draw.rng, placeholder)))
    text = _change_mind(draw, intent, thing, _refuse(draw, intent, text))
    text, thing = _fix_product(draw, *_fix_count(draw, text, thing))
    if draw.has(Rarity.BYSTANDER):
        other = draw.other_noun(thing)[1]
        text = f"{zipf(draw.rng, draw.lexicon.small_talk.before).format(other=other)} {text}"
    quantity = thing.quantity if placeholder in COUNTED else None
    return Request(text, frame, intent, thing.product, quantity)


def _frame(draw: Draw, intent: str) -> str:
    """Pick a frame that has room for what has to be rare."""
    wanted: tuple[str, ...] = ("",)
    if draw.rarities & COUNTING:
        wanted = COUNTED
    elif draw.rarities & NAMING:
        wanted = PLACEHOLDERS
    while True:
        frame = draw.lexicon.intents[intent].draw(draw.rng, is_rare=draw.has(Rarity.FRAME))
        if any(name in frame for name in wanted):
            return frame


def _ask(draw: Draw, frame: str) -> str:
    text = expand(draw.rng, frame)
    is_question = text.startswith(QUESTIONS)
    return f"{text}?" if is_question and chance(draw.rng, 0.7) else text


def _refuse(draw: Draw, intent: str, text: str) -> str:
    if not draw.has(Rarity.REFUSE_INTENT):
        return text
    refused = [name for name in draw.lexicon.refusals if name in draw.lexicon.intents]
    other = draw.rng.choice([name for name in refused if name != intent])
    return f"{draw.lexicon.refusals[other]} {text}"


def _change_mind(draw: Draw, intent: str, thing: Thing, text: str) -> str:
    if not draw.has(Rarity.FIX_INTENT):
        return text
    other = draw.rng.choice([name for name in draw.lexicon.intents if name != intent])
    frame = draw.lexicon.intents[other].draw(draw.rng, is_rare=False)
    for name in PLACEHOLDERS:
        if name in frame:
            frame = frame.replace(name, thing.written(draw.rng, name))
    mark = zipf(draw.rng, draw.lexicon.corrections.intent)
    return f"{_ask(draw, frame)}{draw.pause()}{mark} {text}"


def _fix_count(draw: Draw, text: str, thing: Thing) -> tuple[str, Thing]:
    if not draw.has(Rarity.FIX_COUNT):
        return text, thing
    quantity = thing.quantity
    count = thing.count
    while quantity == thing.quantity:
        quantity, count = draw_count(draw.rng, draw.lexicon, is_rare=False)
    mark = zipf(draw.rng, draw.lexicon.corrections.quantity)
    wrong = thing.count.removesuffix(" of")
    fixed = f"{text}{draw.pause()}{mark.format(right=count, wrong=wrong)}"
    return fixed, replace(thing, quantity=quantity, count=count)


def _fix_product(draw: Draw, text: str, thing: Thing) -> tuple[str, Thing]:
    if not draw.has(Rarity.FIX_PRODUCT):
        return text, thing
    product, one, many = draw.other_noun(thing)
    is_single = thing.quantity == 1
    right, wrong = (one, thing.one) if is_single else (many, thing.many)
    mark = zipf(draw.rng, draw.lexicon.corrections.product)
    fixed = f"{text}{draw.pause()}{mark.format(right=right, wrong=wrong)}"
    return fixed, replace(thing, product=product, one=one, many=many)
