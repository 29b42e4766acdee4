from collections.abc import Callable

import numpy as np
import pytest

from quant.compare.bootstrap import Resampled, Span
from quant.compare.verdict import ALPHA, Evidence, Question, level, overall, sentence, worst_slice

QUESTION = Question(0.05, Span(best=0.0))
RUNS = 400
Draw = Callable[[], np.ndarray]
SLACK = 2.6 * np.sqrt(ALPHA * (1 - ALPHA) / RUNS)  # chance of these runs alone, 1 in 200


def wrong(misses: int, rows: int) -> np.ndarray:
    return -(np.arange(rows) < misses).astype(np.float64)


def quick(differences: np.ndarray, seed: int) -> Evidence:
    return Evidence(differences, Resampled.of(differences, QUESTION.span, seed, draws=1000))


@pytest.mark.parametrize(
    ("misses", "rows", "word"),
    [
        (0, 100, "non-inferior"),
        (4, 400, "non-inferior"),
        (0, 40, "not enough data"),
        (3, 152, "not enough data"),  # one row is missing
        (20, 400, "not enough data"),
        (60, 400, "inferior"),
        (10, 10, "inferior"),
    ],
)
def test_known_cases(misses: int, rows: int, word: str) -> None:
    verdict = overall(QUESTION.evidence(wrong(misses, rows)), QUESTION)

    assert verdict.word == word
    assert verdict.slice is None
    assert verdict.difference == pytest.approx(-misses / rows)
    assert (verdict.more_rows == 0) == (word != "not enough data")


@pytest.mark.parametrize("rows", [60, 200])
@pytest.mark.parametrize("kind", ["right or wrong", "either way", "graded"])
def test_a_student_at_the_margin_is_hardly_ever_passed(rows: int, kind: str) -> None:
    random = np.random.default_rng(rows)
    question = QUESTION if kind == "right or wrong" else Question(0.05)
    draws: dict[str, Draw] = {
        "right or wrong": lambda: -(random.random(rows) < 0.05).astype(float),
        "either way": lambda: random.choice([-1.0, 0.0, 1.0], rows, p=[0.15, 0.75, 0.1]),
        "graded": lambda: random.uniform(-0.35, 0.25, rows),
    }

    words = [
        question.word(Resampled.of(draws[kind](), question.span, run, draws=1000), ALPHA, ALPHA)
        for run in range(RUNS)
    ]

    assert words.count("non-inferior") / RUNS <= ALPHA + SLACK
    assert words.count("inferior") / RUNS <= ALPHA + SLACK


def test_a_good_student_passes_and_a_bad_one_fails() -> None:
    random = np.random.default_rng(0)

    def words(share: float) -> list[str]:
        runs = (quick(-(random.random(400) < share).astype(float), run) for run in range(100))
        return [QUESTION.word(each.means, ALPHA, ALPHA) for each in runs]

    assert words(0.01).count("non-inferior") > 90
    assert words(0.12).count("inferior") > 90


def test_one_bad_slice_among_good_ones_is_hardly_ever_passed() -> None:
    random = np.random.default_rng(1)
    wordings = []
    for run in range(RUNS):
        slices = {
            f"good {n}": quick(-(random.random(200) < 0.001).astype(float), run) for n in range(4)
        }
        slices["bad"] = quick(-(random.random(200) < 0.05).astype(float), run)
        words = {n: QUESTION.word(e.means, ALPHA, level(5)) for n, e in slices.items()}
        wordings.append(set(words.values()) == {"non-inferior"})

    assert np.mean(wordings) <= ALPHA + SLACK


def test_many_slices_at_the_margin_are_hardly_ever_called_worse() -> None:
    random = np.random.default_rng(2)
    num_slices, found = 30, []
    for run in range(200):
        slices = [quick(-(random.random(60) < 0.05).astype(float), run) for _ in range(num_slices)]
        words = [QUESTION.word(each.means, ALPHA, level(num_slices)) for each in slices]
        found.append("inferior" in words)

    assert np.mean(found) <= ALPHA + 2.6 * np.sqrt(ALPHA * (1 - ALPHA) / 200)


def test_the_worst_slice_decides() -> None:
    slices = {"common": QUESTION.evidence(wrong(0, 300)), "rare": QUESTION.evidence(wrong(20, 60))}

    verdict = worst_slice(slices, 360, QUESTION)

    assert verdict is not None
    assert (verdict.word, verdict.slice, verdict.rows) == ("inferior", "rare", 60)
    assert "In the worst slice (rare): inferior" in sentence(verdict, 0.05)


def test_every_slice_has_to_be_good_enough() -> None:
    good = {"a": QUESTION.evidence(wrong(0, 100)), "b": QUESTION.evidence(wrong(1, 200))}
    small = good | {"c": QUESTION.evidence(wrong(0, 30))}

    passed, held = (worst_slice(each, 300, QUESTION) for each in (good, small))

    assert passed is not None
    assert held is not None
    assert passed.word == "non-inferior"
    assert (held.word, held.slice) == ("not enough data", "c")
    # 59 rows of the slice, a tenth of the traffic.
    assert held.more_rows == pytest.approx((59 - 30) * 10, rel=0.25)
    assert f"about {held.more_rows:,} more rows needed" in sentence(held, 0.05)


def test_the_rows_that_would_show_a_slice_to_be_worse_are_counted() -> None:
    slices = {"a": QUESTION.evidence(wrong(0, 10)), "b": QUESTION.evidence(wrong(5, 40))}

    verdict = worst_slice(slices, 100, QUESTION)

    assert verdict is not None
    assert verdict.word == "not enough data"
    assert verdict.slice == "a"
    assert verdict.more_rows is not None
    more = verdict.more_rows * 0.4
    grown = wrong(round((40 + more) * 0.125), round(40 + more))
    assert QUESTION.evidence(grown).means.high(level(2)) < -0.035


def test_at_the_margin_itself_no_rows_are_promised() -> None:
    verdict = overall(QUESTION.evidence(wrong(5, 100)), QUESTION)

    assert verdict.more_rows is None
    assert "hardly any number of rows" in sentence(verdict, 0.05)


def test_without_slices_there_is_no_worst_one() -> None:
    assert worst_slice({}, 100, QUESTION) is None
