"""A student whose teacher answers where it is unsure: quality against cost (pure).

Thresholds are tried from the strictest on, and the first that is not shown to keep the quality
ends the search, so that the one before it holds at the level of a single test although it was
chosen on the same rows. That needs thresholds which do not depend on the rows: they are fixed.

Source:
    Angelopoulos et al. 2021, "Learn then Test", arXiv:2110.01052, fixed sequence testing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from quant.compare.bootstrap import Floats, Resampled
from quant.compare.confidence import SIGNALS, Signal
from quant.compare.findings import Document, Findings
from quant.compare.verdict import ALPHA, Question

# Nats below certainty; the strictest first.
THRESHOLDS: tuple[float, ...] = (0.0, *(-np.geomspace(1e-6, 20.0, 160)).tolist())
DRAWS = 10_000  # for a bound; there are many thresholds


@dataclass(frozen=True, slots=True)
class Point:
    """What one threshold does.

    Attributes:
        threshold: Answers of less confidence are the teacher's.
        escalated: Share of them.
        quality: Mean of the metric over all rows.
        difference: To the teacher's own.
        low: Lower bound of that, one-sided, at half of ``ALPHA``.
        cost: Time that writing all answers takes, over the teacher's alone; the student's answers
            are written before it is known how sure it was.
    """

    threshold: float
    escalated: float
    quality: float
    difference: float
    low: float
    cost: float


@dataclass(frozen=True, slots=True)
class Rows:
    """Row by row.

    Attributes:
        student_scores: Of the metric.
        teacher_scores: Likewise.
        student_seconds: Of writing an answer, in any unit.
        teacher_seconds: In the same.
    """

    student_scores: Floats
    teacher_scores: Floats
    student_seconds: Floats
    teacher_seconds: Floats


def cascade(findings: Findings, question: Question, decode_ratio: float) -> Document:
    """Draw a curve per signal and choose a threshold on each.

    Args:
        findings: With confidences of the student's answers.
        question: Margin to stay within.
        decode_ratio: The student's tokens per second over the teacher's.
    """
    tokens = [
        np.array([len(answer.token_ids) for answer in side], np.float64)
        for side in zip(*((pair.student, pair.teacher) for pair in findings.pairs), strict=True)
    ]
    scores = (findings.student_scores, findings.teacher_scores)
    rows = Rows(*scores, tokens[0] / decode_ratio, tokens[1])
    found: Document = {}
    for signal in SIGNALS:
        sure = np.array([pair.student.confidence.of(signal) for pair in findings.pairs])
        points = curve(sure, rows, question)
        chosen = choose(points, question.margin)
        found[signal] = {
            "points": [asdict(point) for point in points],
            "chosen": None if chosen is None else asdict(chosen),
            "sentence": sentence(signal, chosen, question.margin),
        }
    return found


def curve(confidences: Floats, rows: Rows, question: Question) -> list[Point]:
    """What each threshold does, the strictest first; of those that do the same the first."""
    points: list[Point] = []
    kept = -1
    for threshold in THRESHOLDS:
        is_kept = confidences >= threshold
        if int(is_kept.sum()) != kept:  # a lower threshold keeps what a higher one does
            kept = int(is_kept.sum())
            points.append(_point(threshold, is_kept, rows, question))
    return points


def choose(points: Sequence[Point], margin: float) -> Point | None:
    """The last threshold before the first that may lose more than the margin.

    Returns:
        None if that leaves the student nothing to answer.
    """
    chosen = None
    for point in points:
        if point.low <= -margin:
            break
        chosen = point
    return chosen if chosen is not None and chosen.escalated < 1 else None


def sentence(signal: Signal, chosen: Point | None, margin: float) -> str:
    """The choice in words."""
    name = SIGNALS[signal]
    if chosen is None:
        return (
            f"By {name}: no threshold that leaves the student anything is shown to "
            f"stay within {margin:.1%} of the teacher."
        )
    return (
        f"By {name}: under {chosen.threshold:.3g} the teacher answers, {chosen.escalated:.1%} of "
        f"the prompts; difference to the teacher alone {chosen.difference:+.1%}, at least "
        f"{chosen.low:+.1%}, margin {margin:.1%}; writing takes {chosen.cost:.2f} of its time."
    )


def _point(
    threshold: float, is_kept: npt.NDArray[np.bool_], rows: Rows, question: Question
) -> Point:
    scores = np.where(is_kept, rows.student_scores, rows.teacher_scores)
    means = Resampled.of(scores - rows.teacher_scores, question.span, question.seed, DRAWS)
    seconds = rows.student_seconds.sum() + rows.teacher_seconds[~is_kept].sum()
    return Point(
        threshold=threshold,
        escalated=float(1 - is_kept.mean()),
        quality=float(scores.mean()),
        difference=means.mean,
        low=means.low(ALPHA / len(SIGNALS)),
        cost=float(np.divide(seconds, max(rows.teacher_seconds.sum(), 1.0))),
    )
