"""A student whose teacher answers where it is unsure: quality against cost (pure).

Thresholds are tried from the strictest on, and the first that is not shown to keep the quality
ends the search, so that the one before it holds at the level of a single test although it was
chosen on the same rows. That needs thresholds which do not depend on the rows: they are fixed.

Source:
    Angelopoulos et al. 2021, "Learn then Test", arXiv:2110.01052, fixed sequence testing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from capture.confidence import FIRST_TOKENS, Signal
from quant.compare.bootstrap import Floats, Resampled
from quant.compare.confidence import SIGNALS
from quant.compare.findings import Document, Findings
from quant.compare.verdict import ALPHA, Question

# Nats below certainty, the strictest first: log-probabilities differ by factors, distances do not.
STEPS = (np.geomspace(1e-6, 20.0, 160), np.linspace(0.0, 20.0, 201))
THRESHOLDS: tuple[float, ...] = tuple((0.0 - np.unique(np.concatenate(STEPS))).tolist())
KEYS: dict[Signal, str] = {"mean_logprob": "threshold", "first_tokens": "stream_threshold"}
DRAWS = 10_000  # for a bound; there are many thresholds


@dataclass(frozen=True, slots=True)
class Point:
    """What one threshold does.

    Attributes:
        threshold: Answers of less confidence are the teacher's.
        escalated: Share of them.
        quality: Mean of the metric over all rows.
        difference: To the teacher's own.
        low: Lower bound of that, one-sided, at ``ALPHA`` over the number of signals.
        cost: Time that writing all answers takes, over the teacher's alone; what the student
            writes until it is known how sure it is counts too.
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
        unsure_seconds: Of writing as much of it as is weighed.
        teacher_seconds: Of writing the teacher's.
    """

    student_scores: Floats
    teacher_scores: Floats
    student_seconds: Floats
    unsure_seconds: Floats
    teacher_seconds: Floats


def cascade(
    findings: Findings, distances: Floats | None, question: Question, decode_ratio: float
) -> Document:
    """Draw a curve per signal and choose a threshold on each.

    Args:
        findings: With confidences of the student's answers.
        distances: Of the prompts from what was trained on, if known.
        question: Margin to stay within.
        decode_ratio: The student's tokens per second over the teacher's.
    """
    scores = (findings.student_scores, findings.teacher_scores)
    ours, theirs = (
        np.array([len(answer.token_ids) for answer in side], np.float64)
        for side in zip(*((pair.student, pair.teacher) for pair in findings.pairs), strict=True)
    )
    sure = [pair.student.confidence for pair in findings.pairs]
    signals: dict[Signal, tuple[Floats, Floats]] = {  # and the tokens that are written for it
        "mean_logprob": (np.array([each.mean_logprob for each in sure]), ours),
        "first_tokens": (
            np.array([each.first_tokens for each in sure]),
            np.minimum(ours, FIRST_TOKENS),
        ),
    }
    if distances is not None:
        signals["distance"] = (-distances, np.zeros_like(ours))
    found: Document = {}
    for signal, (confidences, weighed) in signals.items():
        rows = Rows(*scores, ours / decode_ratio, weighed / decode_ratio, theirs)
        points = curve(confidences, rows, question)
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


def config_line(thresholds: Mapping[str, float]) -> str | None:
    """What a route's table has to say to weigh answers; None without a threshold for any.

    Args:
        thresholds: By signal, those that there are.
    """
    keys = [f"{KEYS[signal]} = {thresholds[signal]:.6g}" for signal in KEYS if signal in thresholds]
    return f'cascade = {{ route = "TEACHER", {", ".join(keys)} }}' if keys else None


def config_lines(found: Document, training: Path) -> list[str]:
    """What a route's table may say, one way a line.

    Args:
        found: Every curve.
        training: The file that distances are measured with.
    """
    thresholds = chosen_thresholds(found)
    lines = [config_line(thresholds)]
    if "distance" in thresholds:
        keys = f"distance = {-thresholds['distance']:.6g}, training = {json.dumps(str(training))}"
        lines.append(f'cascade = {{ route = "TEACHER", {keys} }}')
    return [line for line in lines if line is not None]


def chosen_thresholds(found: Document) -> dict[str, float]:
    """Thresholds that were chosen, by signal."""
    chosen = {signal: each["chosen"] for signal, each in found.items()}
    return {signal: each["threshold"] for signal, each in chosen.items() if each is not None}


def _point(
    threshold: float, is_kept: npt.NDArray[np.bool_], rows: Rows, question: Question
) -> Point:
    scores = np.where(is_kept, rows.student_scores, rows.teacher_scores)
    means = Resampled.of(scores - rows.teacher_scores, question.span, question.seed, DRAWS)
    both = rows.unsure_seconds + rows.teacher_seconds
    seconds = np.where(is_kept, rows.student_seconds, both).sum()
    return Point(
        threshold=threshold,
        escalated=float(1 - is_kept.mean()),
        quality=float(scores.mean()),
        difference=means.mean,
        low=means.low(ALPHA / len(SIGNALS)),
        cost=float(np.divide(seconds, max(rows.teacher_seconds.sum(), 1.0))),
    )
