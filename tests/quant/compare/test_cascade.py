"""The teacher as a student's safety net: the curve, and that its choice holds."""

import tomllib
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest

from capture.confidence import FIRST_TOKENS
from gateway.cascade import CascadeConfig
from quant.compare.bootstrap import Span
from quant.compare.cascade import (
    THRESHOLDS,
    Rows,
    cascade,
    choose,
    config_lines,
    curve,
)
from quant.compare.confidence import UNSURE, Confidence, confidence_of
from quant.compare.findings import Findings
from quant.compare.report import write_page
from quant.compare.verdict import Question
from tests.quant.compare.test_findings import content, findings

MARGIN = 0.05
QUESTION = Question(MARGIN, Span(best=0.0))


def rows_of(is_right: np.ndarray) -> Rows:
    """A student five times as fast as its teacher."""
    ones = np.ones(len(is_right))
    return Rows(is_right.astype(np.float64), ones, ones / 5, ones / 5, ones)


def test_a_student_that_knows_when_it_is_wrong_hands_over_just_that() -> None:
    is_right = np.arange(400) >= 100
    sure = np.where(is_right, -0.001, -1.0)

    points = curve(sure, rows_of(is_right), QUESTION)
    chosen = choose(points, MARGIN)

    assert chosen is not None
    assert -1.0 < chosen.threshold <= -0.001
    assert (chosen.escalated, chosen.quality, chosen.difference) == (0.25, 1.0, 0.0)
    assert chosen.cost == pytest.approx(0.2 + 0.25)
    assert [point.escalated for point in points] == [1.0, 0.25, 0.0]
    assert points[-1].difference == -0.25


def test_a_student_that_does_not_know_may_answer_nothing() -> None:
    is_right = np.random.default_rng(0).random(400) < 0.7
    sure = -np.random.default_rng(1).random(400)  # says nothing of being right

    points = curve(sure, rows_of(is_right), QUESTION)

    chosen = choose(points, MARGIN)
    assert chosen is None or chosen.escalated > 0.7
    assert points[-1].escalated == 0.0


def test_few_rows_show_nothing() -> None:
    is_right = np.ones(40, np.bool_)

    points = curve(np.full(40, -0.001), rows_of(is_right), QUESTION)

    assert choose(points, MARGIN) is None
    assert choose(curve(np.full(100, -0.001), rows_of(np.ones(100)), QUESTION), MARGIN) is not None


def test_the_search_ends_at_the_first_threshold_that_may_lose_too_much() -> None:
    # The surest answers are wrong: all below them look good, but none is reached.
    is_right = np.arange(1000) >= 100
    sure = np.where(is_right, -1.0, -0.001)

    points = curve(sure, rows_of(is_right), QUESTION)

    assert choose(points, MARGIN) is None


@pytest.mark.parametrize(
    "wrong",
    [
        (0.0, 0.0, 0.0, 0.303, 0.0, 0.0),  # from the fourth on 5.05 % are lost
        (0.0, 0.06, 0.12, 0.18, 0.24, 0.3),  # the less sure, the more often wrong
    ],
)
def test_the_chosen_threshold_loses_too_much_as_rarely_as_it_says(wrong: tuple[float, ...]) -> None:
    random = np.random.default_rng(0)
    levels, share_wrong = -np.geomspace(0.001, 4.0, 6), np.array(wrong)
    missed = chosen_at_all = 0
    for _ in range(80):
        level = random.integers(6, size=600)
        is_right = random.random(600) >= share_wrong[level]
        chosen = choose(curve(levels[level], rows_of(is_right), QUESTION), MARGIN)
        if chosen is not None:
            chosen_at_all += 1
            lost = share_wrong[levels >= chosen.threshold].sum() / 6
            missed += int(lost > MARGIN)
    assert chosen_at_all > 70
    assert missed <= 7  # where 2 are expected at most: more by chance once in 1,000


def test_every_signal_is_drawn_and_an_answer_that_is_not_there_is_handed_over() -> None:
    one = findings()
    right = one.student_scores > 0
    sure = [Confidence(-0.01, -0.1) if ok else Confidence(-2.0, -1.5) for ok in right]
    sure[-1] = UNSURE
    pairs = [
        replace(pair, student=replace(pair.student, confidence=each))
        for pair, each in zip(one.pairs, sure, strict=True)
    ]
    with_confidence = Findings(
        *(pairs, one.student_scores, one.teacher_scores),
        *(one.student_forced, one.teacher_forced, one.slices),
    )

    distances = np.where(right, 1.0, 3.0)
    distances[-1] = 40.0  # farther than any threshold reaches

    found = cascade(with_confidence, distances, QUESTION, decode_ratio=4.0)

    assert set(found) == {"mean_logprob", "first_tokens", "distance"}
    for each in found.values():
        assert each["chosen"]["escalated"] == pytest.approx(0.15)
        assert "the teacher answers, 15.0% of the prompts" in each["sentence"]
        assert each["points"][-1]["escalated"] == pytest.approx(1 / 200)
    # 170 answers as long as the teacher's and 30 of 40 tokens, a quarter of the time each.
    student, teacher = (170 * 8 + 30 * 40) / 4, 200 * 8
    cost = (student + 30 * 8) / teacher
    assert found["mean_logprob"]["chosen"]["cost"] == pytest.approx(cost)
    # Of a stream that is handed over no more is written than is weighed.
    cost = ((170 * 8 + 30 * FIRST_TOKENS) / 4 + 30 * 8) / teacher
    assert found["first_tokens"]["chosen"]["cost"] == pytest.approx(cost)
    # And of one that is not even begun nothing.
    cost = (170 * 8 / 4 + 30 * 8) / teacher
    assert found["distance"]["chosen"]["cost"] == pytest.approx(cost)
    assert -3.0 < found["distance"]["chosen"]["threshold"] <= -1.0


def test_the_page_shows_both_curves(tmp_path: Path) -> None:
    curves = cascade(findings(), None, QUESTION, 4.0)  # of answers that nobody asked about

    write_page(
        content() | {"cascade": curves, "cascade_config": ["threshold = -0.0125"]},
        tmp_path / "compare.html",
    )

    page = (tmp_path / "compare.html").read_text()
    assert page.count("<svg") == 4
    assert "The teacher as safety net" in page
    assert "threshold = -0.0125" in page
    assert "no threshold that leaves the student anything" in page


def test_thresholds_go_from_the_strictest_on() -> None:
    assert list(THRESHOLDS) == sorted(THRESHOLDS, reverse=True)


def test_confidence_is_of_all_tokens_and_of_the_first() -> None:
    found = confidence_of([-1.0] * FIRST_TOKENS + [-4.0] * FIRST_TOKENS)

    assert found == Confidence(mean_logprob=-2.5, first_tokens=-1.0)
    assert confidence_of([-1.0, -2.0]) == Confidence(-1.5, -1.5)
    assert confidence_of([]) == UNSURE
    assert UNSURE.first_tokens == -inf


def test_a_route_is_told_the_thresholds_that_were_found() -> None:
    def curves(**values: float | None) -> dict[str, object]:
        return {k: {"chosen": None if v is None else {"threshold": v}} for k, v in values.items()}

    file = Path("/a place/training.npz")
    answers, prompts = config_lines(
        curves(mean_logprob=-0.02, first_tokens=-0.0301, distance=-3.5), file
    )
    expected = 'cascade = { route = "TEACHER", threshold = -0.02, stream_threshold = -0.0301 }'
    assert answers == expected
    config = CascadeConfig(**tomllib.loads(prompts)["cascade"])
    assert (config.distance, config.training, config.threshold) == (3.5, file, None)
    only = config_lines(curves(mean_logprob=None, first_tokens=-0.03, distance=None), file)
    assert only == ['cascade = { route = "TEACHER", stream_threshold = -0.03 }']
    assert config_lines(curves(mean_logprob=None, first_tokens=None), file) == []
