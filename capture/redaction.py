"""Redaction: what must not reach the disk is replaced by ``[redacted:NAME]`` before it does.

Texts are looked through between the placeholders already in them, until nothing is found any
more: redacting again changes nothing. Light and pure: the gateway calls it on the request path.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Finder = Callable[[str], Iterable[tuple[int, int]]]

NAME = re.compile(r"[a-z][a-z0-9_]*")
DIGIT_RUN = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,}")
IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]){11,30}")
CARD_DIGITS, IBAN_LENGTHS = range(19, 12, -1), range(34, 14, -1)


def has_luhn_digit(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it.

    Source:
        ISO/IEC 7812-1, annex B.
    """
    doubled = (int(digit) * 2 for digit in digits[-2::-2])
    total = sum(map(int, digits[::-2])) + sum(value - 9 * (value > 9) for value in doubled)  # noqa: PLR2004
    return total % 10 == 0


def has_iban_digits(iban: str) -> bool:
    """Whether the two check digits are those of the account.

    Source:
        ISO 13616-1: the first four characters moved to the end, letters as 10 to 35, modulo 97.
    """
    return int("".join(str(int(letter, 36)) for letter in iban[4:] + iban[:4])) % 97 == 1


def find_cards(text: str) -> Iterable[tuple[int, int]]:
    """Spans of 13 to 19 digits, perhaps in groups, that pass the Luhn check."""
    for run in DIGIT_RUN.finditer(text):
        places = [
            place for place in range(*run.span()) if text[place].isascii() and text[place].isdigit()
        ]
        yield from _first_checked(text, places, CARD_DIGITS, _is_card)


def find_ibans(text: str) -> Iterable[tuple[int, int]]:
    """Spans of bank account numbers that pass their check."""
    for run in IBAN_START.finditer(text):
        places = [place for place in range(*run.span()) if text[place] != " "]
        yield from _first_checked(text, places, IBAN_LENGTHS, has_iban_digits)


def _is_card(digits: str) -> bool:
    return digits[0] in "23456" and has_luhn_digit(digits)


def _first_checked(
    text: str, places: list[int], lengths: range, is_valid: Callable[[str], bool]
) -> Iterable[tuple[int, int]]:
    """Spans of checked numbers that begin and end where a group of characters does."""
    start = 0
    while start < len(places):
        is_begin = not start or places[start] - places[start - 1] > 1
        for length in lengths if is_begin else ():
            end = start + length
            if end > len(places) or (end < len(places) and places[end] - places[end - 1] == 1):
                continue
            if is_valid("".join(text[place] for place in places[start:end])):
                yield places[start], places[end - 1] + 1
                start = end - 1
                break
        start += 1


def _matches(pattern: re.Pattern[str]) -> Finder:
    return lambda text: (found.span() for found in pattern.finditer(text) if found[0])


# Each begins where no longer run of the same characters could have begun: one look at each place.
BUILT_IN: Mapping[str, Finder] = {
    "private_key": _matches(
        re.compile(
            r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?s:.*?)"
            r"(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)"
        )
    ),
    "jwt": _matches(re.compile(r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*")),
    "bearer": _matches(re.compile(r"(?i)(?<![\w-])bearer\s{1,8}(?=[\w.~+/=-]*\d)[\w.~+/=-]{8,}")),
    "api_key": _matches(
        re.compile(
            r"(?<![A-Za-z0-9])(?:sk-(?=[\w-]*\d)[\w-]{8,}|gh[pousr]_\w{16,}|github_pat_\w{16,}"
            r"|glpat-[\w-]{16,}|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])|xox[abeprs]-[\w-]{10,}"
            r"|AIza[\w-]{30,}|hf_[A-Za-z0-9]{20,}|[rsp]k_(?:live|test)_\w{10,})"
        )
    ),
    "email": _matches(re.compile(r"(?<![\w.%+-])[\w.%+-]++@[\w-]+(?:\.[\w-]+)+")),
    "iban": find_ibans,
    "card": find_cards,
    "phone": _matches(
        re.compile(
            r"(?<![\w+])(?:\+|00)[1-9](?:[ ()./-]{0,2}\d){6,14}(?!\w)"
            r"|(?<!\w)(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?!\w)"
            r"|(?<!\w)(?=0(?:[ /-]?\d){8,12}(?![ /-]?\d))0\d{1,4}(?:[ /-]\d{2,8}){1,4}(?!\w)"
        )
    ),
}
BuiltIn = Literal["private_key", "jwt", "bearer", "api_key", "email", "iban", "card", "phone"]


class RedactConfig(BaseModel):
    """What is redacted before anything is written.

    Attributes:
        enabled: Built-in patterns in use.
        patterns: Further regular expressions by name, always in use.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: tuple[BuiltIn, ...] = ()
    patterns: dict[str, str] = Field(default_factory=dict)

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: dict[str, str]) -> dict[str, str]:
        for name, pattern in patterns.items():
            if not NAME.fullmatch(name) or name in BUILT_IN:
                raise ValueError(
                    f"{name!r} is no name for a pattern; expected lower-case letters, digits and "
                    "'_', and none of the built-in names"
                )
            try:
                matches_nothing = re.compile(pattern).fullmatch("")
            except re.error as error:
                raise ValueError(f"{name} is not a regular expression: {error}") from error
            if matches_nothing:
                raise ValueError(f"{name} matches the empty text; expected at least one character")
        return patterns


class Redactor:
    """Replaces what a configuration names; thread-safe.

    Attributes:
        is_active: Whether anything is looked for at all.
    """

    def __init__(self, config: RedactConfig) -> None:
        own = {name: _matches(re.compile(pattern)) for name, pattern in config.patterns.items()}
        built_in: dict[str, Finder] = {
            name: find for name, find in BUILT_IN.items() if name in config.enabled
        }
        self._finders = {**own, **built_in}
        names = "|".join(sorted({*BUILT_IN, *own}))
        self._placeholder = re.compile(rf"(\[redacted:(?:{names})\])")
        self.is_active = bool(self._finders)

    def text(self, text: str) -> str:
        """The text with a placeholder for everything found."""
        while self._finders:
            parts = self._placeholder.split(text)  # every second one is a placeholder
            parts[::2] = map(self._first_found, parts[::2])
            redacted = "".join(parts)
            if redacted == text:
                break
            text = redacted  # shorter by at least a character outside placeholders
        return text

    def value(self, value: object) -> object:
        """A JSON value with every string in it redacted, keys and long numbers included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, int) and not isinstance(value, bool):
            digits = str(value)
            redacted = self.text(digits)
            return value if redacted == digits else redacted
        return value

    def _first_found(self, text: str) -> str:
        """Replace everything that the first finder with anything to say finds."""
        for name, find in self._finders.items() if text else ():
            parts, end = [], 0
            for begin, stop in find(text):
                parts += [text[end:begin], f"[redacted:{name}]"]
                end = stop
            if parts:
                return "".join([*parts, text[end:]])
        return text
