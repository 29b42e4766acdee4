"""One customer's message with its right answer (pure, seeded)."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from trainer.support_desk.draw import Draw
from trainer.support_desk.handwriting import type_plainly, type_unusually
from trainer.support_desk.lexicon import Lexicon, chance, expand, zipf
from trainer.support_desk.rarity import Rarity, draw_rarities
from trainer.support_desk.request import write_request
from trainer.support_desk.ticket import Ticket

Slice = Literal["common", "rare"]
URGENCY_WEIGHTS = {"high": 5, "low": 3, "normal": 2}
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
SEPARATORS = (". ", ". ", ", ", "! ", " ", "; ", " - ", "\n")


@dataclass(frozen=True, slots=True)
class Message:
    """A message as typed.

    Attributes:
        slice: ``rare`` if what it means is put in a way of the long tail.
        form: Its kind, whatever the product and the typing; a few forms are most of the traffic.
    """

    text: str
    ticket: Ticket
    slice: Slice
    form: str


def write_messages(lexicon: Lexicon, seed: str, rare_fraction: float) -> Iterator[Message]:
    """Write messages for ever; equal arguments give equal messages.

    Args:
        lexicon: What customers say.
        seed: Any text; it names the stream.
        rare_fraction: Share of rare ones, in ``[0, 1]``.
    """
    rng = random.Random(seed)  # noqa: S311  made-up messages, not secrets
    while True:
        rarities = draw_rarities(rng) if rng.random() < rare_fraction else frozenset()
        yield write_message(Draw(rng, lexicon, rarities))


def write_message(draw: Draw) -> Message:
    """Write one message with everything in it that has to be rare."""
    rng, rarities = draw.rng, draw.rarities
    request = write_request(draw)
    sentences = [request.text]
    urgency, contact = "normal", "any"
    if rarities & {Rarity.URGENCY, Rarity.FIX_URGENCY} or chance(rng, 0.5):
        urgency, text = _urgency(draw)
        sentences.insert(chance(rng, 0.85), text)
    if rarities & {Rarity.CONTACT, Rarity.REFUSE_CONTACT} or chance(rng, 0.35):
        contact, text = _contact(draw)
        sentences.insert(len(sentences) if chance(rng, 0.85) else 0, text)
    if chance(rng, 0.35):
        sentences.insert(rng.randint(0, len(sentences)), _context(draw))
    text = _typed(draw, _join(draw, sentences))
    ticket = Ticket(request.intent, request.product, request.quantity, urgency, contact)
    form = "+".join([f"{request.intent}: {request.frame}", *sorted(rarities)])
    return Message(text, ticket, "rare" if rarities else "common", form)


def _urgency(draw: Draw) -> tuple[str, str]:
    """Write how soon, as (level, sentence)."""
    levels = draw.lexicon.urgency
    level = draw.rng.choices(list(URGENCY_WEIGHTS), list(URGENCY_WEIGHTS.values()))[0]
    text = draw.phrase(levels[level], Rarity.URGENCY)
    if not draw.has(Rarity.FIX_URGENCY):
        return level, text
    wrong = draw.rng.choice([name for name in levels if name != level])
    first = expand(draw.rng, levels[wrong].draw(draw.rng, is_rare=False))
    mark = zipf(draw.rng, draw.lexicon.corrections.urgency)
    return level, f"{first}{draw.pause()}{mark} {text}"


def _contact(draw: Draw) -> tuple[str, str]:
    """Write how to answer, as (channel, sentence)."""
    channels = draw.lexicon.contact
    channel = zipf(draw.rng, list(channels))
    text = draw.phrase(channels[channel], Rarity.CONTACT)
    if not draw.has(Rarity.REFUSE_CONTACT):
        return channel, text
    refused = draw.rng.choice([name for name in channels if name != channel])
    return channel, f"{draw.lexicon.refusals[refused]} {text}"


def _context(draw: Draw) -> str:
    """Write a sentence that means nothing to the desk; its numbers are no quantities."""
    rng = draw.rng
    return zipf(rng, draw.lexicon.small_talk.contexts).format(
        code=rng.choice(["", "#", "no. "]) + str(rng.randint(1000, 99999)),
        days=rng.randint(2, 9),
        weekday=rng.choice(WEEKDAYS),
    )


def _join(draw: Draw, sentences: list[str]) -> str:
    """Put the sentences together, with or without a greeting and a closing."""
    rng, talk = draw.rng, draw.lexicon.small_talk
    is_foreign = bool(draw.rarities) and chance(rng, 0.15)
    separator = zipf(rng, SEPARATORS)
    text = separator.join(sentences).replace(f"?{separator.rstrip()}", "?")
    if chance(rng, 0.45):
        greeting = zipf(rng, talk.rare_greetings if is_foreign else talk.greetings)
        text = f"{greeting}{zipf(rng, (', ', ' ', '! '))}{text}"
    if chance(rng, 0.4):
        closing = zipf(rng, talk.rare_closings if is_foreign else talk.closings)
        text = f"{text}{zipf(rng, (', ', '. ', ' '))}{closing}"
    return text


def _typed(draw: Draw, text: str) -> str:
    if draw.has(Rarity.HAND):
        return type_unusually(draw.rng, text)
    return type_plainly(draw.rng, text) + draw.rng.choice(["", "", ".", "!"])
