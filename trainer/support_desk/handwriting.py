"""How people type: case, dropped apostrophes, abbreviations, slips of the finger (pure)."""

import random
import re
from collections.abc import Callable, Mapping

from trainer.support_desk.lexicon import chance, zipf

ABBREVIATIONS = {
    "please": "pls", "you": "u", "your": "ur", "thanks": "thx", "are": "r",
    "tomorrow": "tmrw", "because": "bc", "because of": "bc", "people": "ppl",
    "weeks": "wks", "days": "d", "message": "msg", "and": "&", "order": "ordr", "today": "2day",
    "question": "q", "information": "info", "something": "smth", "someone": "sb", "with": "w/",
}  # fmt: skip
# These look like a count, so few people's typing has them.
DIGITS = {"for": "4", "to": "2", "too": "2", "before": "b4"}
NEIGHBOURS = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wqreytiuopsaddgfjhklxzvcnbm", strict=False))
LEET = str.maketrans({"e": "3", "a": "4", "o": "0", "i": "1"})
WORD = re.compile(r"[a-z]{5,}")


def slip(rng: random.Random, word: str) -> str:
    """Return a word with one typing error in its inside."""
    at = rng.randrange(1, len(word) - 1)
    return rng.choice(
        [
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + NEIGHBOURS.get(word[at], word[at]) + word[at + 1 :],
        ]
    )


def misspell(rng: random.Random, text: str, *, errors: int) -> str:
    """Put an error into up to ``errors`` different words of five letters or more."""
    places = list(WORD.finditer(text))
    for match in sorted(rng.sample(places, min(errors, len(places))), key=lambda m: -m.start()):
        text = text[: match.start()] + slip(rng, match[0]) + text[match.end() :]
    return text


def _abbreviate(text: str, abbreviations: Mapping[str, str]) -> str:
    return " ".join(abbreviations.get(word, word) for word in text.split(" "))


def _shout(rng: random.Random, text: str) -> str:
    return text.upper() + rng.choice(["", "!", "!!", "!!!", "!!?"])


def _drop_vowels(rng: random.Random, text: str) -> str:
    def shorten(match: re.Match[str]) -> str:
        word = match[0]
        return word if chance(rng, 0.4) else word[0] + re.sub("[aeiou]", "", word[1:])

    return WORD.sub(shorten, text)


def _leet(rng: random.Random, text: str) -> str:
    return WORD.sub(lambda m: m[0].translate(LEET) if chance(rng, 0.5) else m[0], text)


def _text_speak(_: random.Random, text: str) -> str:
    return _abbreviate(text, ABBREVIATIONS | DIGITS)


def _all_thumbs(rng: random.Random, text: str) -> str:
    return misspell(rng, text, errors=rng.randint(3, 5))


def _drawl(rng: random.Random, text: str) -> str:
    def stretch(match: re.Match[str]) -> str:
        return re.sub("[aeiou]", lambda v: v[0] * rng.randint(2, 4), match[0], count=1)

    return WORD.sub(lambda m: stretch(m) if chance(rng, 0.4) else m[0], text)


RARE_HANDS: tuple[Callable[[random.Random, str], str], ...] = (
    _shout, _all_thumbs, _drop_vowels, _drawl, _leet, _text_speak,
)  # fmt: skip


def type_unusually(rng: random.Random, text: str) -> str:
    """Return the text as few people type it; always another text."""
    typed = text
    while typed == text:
        typed = zipf(rng, RARE_HANDS)(rng, text)
    return typed


def type_plainly(rng: random.Random, text: str) -> str:
    """Return the text as most people type it: mostly right, sometimes short or with a slip."""
    if chance(rng, 0.3):
        text = text.replace("'", "")
    if chance(rng, 0.12):
        text = _abbreviate(text, ABBREVIATIONS)
    text = misspell(rng, text, errors=rng.choices([0, 1, 2], [88, 10, 2])[0])
    if chance(rng, 0.5):
        text = re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)
        text = re.sub(r"\bi\b", "I", text)
    return text
