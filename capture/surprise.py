"""One exchange for a person to read: a completion coloured by how unexpected each token was.

A token's surprise is minus its logprob, in nats. One outside the kept entries is at least as
surprising as the whole tail.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from capture.distributions import Shown
from capture.errors import LogError
from capture.rendering import print_fields

MAX_POSITIONS = 200
MAX_ENTRIES = 8
# Surprise from which a colour counts: probabilities 1/2, 1/5, 1/20, 1/100.
COLOURS = (
    (math.log(100), "bold white on red"),
    (math.log(20), "red"),
    (math.log(5), "yellow"),
    (math.log(2), "cyan"),
    (0.0, "green"),
)
LEGEND = ("p >= 1/2", "1/5", "1/20", "1/100", "less")
Spell = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Position:
    """One generated token and what else was likely.

    Attributes:
        topk: Ids with their logprobs, likeliest first.
        tail_logprob: Natural log of the mass outside them.
    """

    position: int
    token_id: int
    topk: list[tuple[int, float]]
    tail_logprob: float

    @property
    def is_kept(self) -> bool:
        """Whether the token is among the kept entries."""
        return any(token == self.token_id for token, _ in self.topk)

    @property
    def surprise_nats(self) -> float:
        """Minus the token's logprob; of one that is not kept, the least it can be."""
        logprob = next((p for token, p in self.topk if token == self.token_id), self.tail_logprob)
        return max(0.0, -logprob)


def print_exchange(shown: Shown, spell: Spell | None = None) -> None:
    """Show an exchange and, per choice, its coloured completion and each position's entries.

    Args:
        shown: What the log holds of it.
        spell: Text of a token; without it ids are shown.
    """
    console = Console(highlight=False)
    if shown.exchange:
        print_fields(shown.exchange)
    for choice in shown.choices:
        positions = positions_of(choice)
        spelled = spell or (lambda token: f"{token} ")
        surprise = sum(position.surprise_nats for position in positions)
        mean = surprise / len(positions) if positions else 0.0
        flags = choice["flags"] or "none"
        console.print(f"\nchoice {choice['choice']}, flags {flags}, {mean:.3f} nats per token")
        console.print(coloured(positions, spelled))
        console.print(_legend())
        console.print(_table(positions[:MAX_POSITIONS], spell))
        if len(positions) > MAX_POSITIONS:
            console.print(f"{len(positions) - MAX_POSITIONS} more positions; --json prints all")


def positions_of(choice: dict[str, Any]) -> list[Position]:
    """The positions of a decoded choice."""
    return [
        Position(**{**found, "topk": [(token, p) for token, p in found["topk"]]})
        for found in choice["positions"]
    ]


def coloured(positions: list[Position], spell: Spell) -> Text:
    """The completion, token behind token, each in the colour of its surprise."""
    text = Text()
    for position in positions:
        text.append(spell(position.token_id), style_of(position.surprise_nats))
    return text


def style_of(surprise_nats: float) -> str:
    """Colour of a surprise."""
    return next(style for least, style in COLOURS if surprise_nats >= least)


def speller(folder: Path) -> Spell:
    """Text of each token by the tokenizer of a model's folder.

    Raises:
        LogError: If there is none that can be read.
    """
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415  optional, and only for this
    except ImportError as error:
        raise LogError(
            "--tokenizer needs the package tokenizers: pip install tokenizers"
        ) from error
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise LogError(f"{path}: no such file; give the folder of the model that answered")
    tokenizer = Tokenizer.from_file(str(path))
    return lambda token: str(tokenizer.decode([token], skip_special_tokens=False))


def _legend() -> Text:
    text = Text("probability: ")
    for name, (_, style) in zip(LEGEND, reversed(COLOURS), strict=True):
        text.append(name, style).append("  ")
    return text


def _table(positions: list[Position], spell: Spell | None) -> Table:
    table = Table("position", "token", "surprise", "outside", "likeliest (probability)")
    for position in positions:
        entries = "  ".join(
            f"{_name(token, spell)}: {math.exp(logprob):.4f}"
            for token, logprob in position.topk[:MAX_ENTRIES]
        )
        sign = "" if position.is_kept else "> "
        style = style_of(position.surprise_nats)
        table.add_row(
            str(position.position),
            Text(_name(position.token_id, spell), style),
            Text(f"{sign}{position.surprise_nats:.3f}", style),
            f"{math.exp(position.tail_logprob):.4f}",
            escape(entries),
        )
    return table


def _name(token: int, spell: Spell | None) -> str:
    return f"{token} {spell(token)!r}" if spell else str(token)
