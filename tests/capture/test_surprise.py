import math
from pathlib import Path

import pytest

from capture.distributions import Shown, show
from capture.errors import LogError
from capture.surprise import Position, coloured, positions_of, print_exchange, speller, style_of
from tests.support.log_folders import filled
from tests.support.log_rows import exchange_row, logit_row
from tests.support.tiny_model import make_tiny_model


def test_surprise_is_minus_the_logprob_of_the_token() -> None:
    kept = Position(0, 5, [(4, -0.1), (5, -2.5)], -6.0)
    outside = Position(1, 9, [(4, -0.1)], -2.4)

    assert (kept.is_kept, kept.surprise_nats) == (True, 2.5)
    assert (outside.is_kept, outside.surprise_nats) == (False, 2.4)


@pytest.mark.parametrize(
    ("probability", "style"),
    [
        (0.9, "green"),
        (0.3, "cyan"),
        (0.1, "yellow"),
        (0.02, "red"),
        (0.001, "bold white on red"),
    ],
)
def test_the_less_likely_a_token_the_hotter_its_colour(probability: float, style: str) -> None:
    assert style_of(-math.log(probability)) == style


def test_a_completion_is_coloured_token_by_token() -> None:
    positions = [Position(0, 5, [(5, -0.1)], -2.4), Position(1, 6, [(6, -2.0)], -0.2)]

    text = coloured(positions, lambda token: f"<{token}>")

    assert text.plain == "<5><6>"
    assert [(span.start, span.end, span.style) for span in text.spans] == [
        (0, 3, "green"),
        (3, 6, "yellow"),
    ]


def test_an_exchange_is_printed_with_its_alternatives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = filled(tmp_path, [exchange_row("a")], [logit_row("a")])
    shown = show(config.log, "a")

    print_exchange(shown)

    printed = capsys.readouterr().out
    (choice,) = shown.choices
    assert "nats per token" in printed
    assert " ".join(str(p.token_id) for p in positions_of(choice)) in printed
    assert "> " in printed  # the drawn tokens are not among the kept entries


def test_a_long_completions_table_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"position": 0, "token_id": 1, "topk": [[1, -0.1]], "tail_logprob": -2.4}
    print_exchange(Shown(None, [{"choice": 0, "flags": [], "positions": [found] * 203}]))

    assert "3 more positions" in capsys.readouterr().out


def test_a_tokenizer_spells_tokens(tmp_path: Path) -> None:
    spell = speller(make_tiny_model(tmp_path / "tiny"))

    assert isinstance(spell(40), str)
    with pytest.raises(LogError, match=r"tokenizer\.json: no such file"):
        speller(tmp_path)
