"""Whether a student is as good as its teacher within a margin, or how many rows are missing (pure).

Overall it is one question, answered at ``ALPHA`` each way. Over slices it is two. *As good in
every slice* takes the lower bound of each slice at ``ALPHA`` as it is: to say so wrongly, the very
slice that is bad has to look good. *Worse in some slice* could go wrong in every one of them, so
each upper bound is taken at half of ``ALPHA`` over the number of slices (Bonferroni), which makes
it the end of the interval that holds for all slices at once.

Source:
    Berger 1982, "Multiparameter hypothesis testing and acceptance sampling", for the first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from quant.compare.bootstrap import Resampled, Span, rows_to_clear

ALPHA = 0.05
ANYTHING = Span()

Floats = npt.NDArray[np.float64]
Word = Literal["non-inferior", "inferior", "not enough data"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One slice's rows.

    Attributes:
        differences: Student minus teacher, row by row.
        means: Of the same rows, resampled.
    """

    differences: Floats
    means: Resampled


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every slice.

    Attributes:
        margin: How much worse a student may be, above 0.
        span: Between what a row's difference can lie.
        seed: Of resampling.
    """

    margin: float
    span: Span = ANYTHING
    seed: int = 0

    def evidence(self, differences: Floats) -> Evidence:
        """Resample a slice's rows."""
        return Evidence(differences, Resampled.of(differences, self.span, self.seed))

    def word(self, means: Resampled, alpha: float, alpha_worse: float) -> Word:
        """Say what bounds at these levels say."""
        if means.low(alpha) > -self.margin:
            return "non-inferior"
        return "inferior" if means.high(alpha_worse) < -self.margin else "not enough data"

    def more_rows(self, evidence: Evidence, alpha: float) -> int | None:
        """How many more rows like these would decide; None if hardly any number would."""
        found = rows_to_clear(evidence.differences, -self.margin, self.span, alpha, self.seed)
        return None if found is None else max(1, found - len(evidence.differences))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer.

    Attributes:
        word: In one or three words.
        slice: Which slice decides: the one with the lowest bound; None for all rows.
        rows: It has.
        difference: Mean over its rows, student minus teacher.
        low: Lower bound of that, one-sided.
        high: Upper bound, one-sided.
        more_rows: About how many more rows, of all traffic, would decide; 0 where it is decided,
            None where no reasonable number would.
    """

    word: Word
    slice: str | None
    rows: int
    difference: float
    low: float
    high: float
    more_rows: int | None


def level(num_slices: int) -> float:
    """What each end of an interval may be wrong by, so that all of them hold together."""
    return ALPHA / 2 / num_slices


def overall(evidence: Evidence, question: Question) -> Verdict:
    """Judge all rows together."""
    word = question.word(evidence.means, ALPHA, ALPHA)
    more = question.more_rows(evidence, ALPHA) if word == "not enough data" else 0
    return _verdict(word, None, evidence, ALPHA, more)


def worst_slice(
    slices: Mapping[str, Evidence], num_rows: int, question: Question
) -> Verdict | None:
    """Judge the slice that is worst; None if there is none.

    Args:
        slices: At least those that anyone may look at.
        num_rows: Of all of them together, to tell how much traffic a slice's rows take.
        question: Of each.
    """
    if not slices:
        return None
    alpha_worse = level(len(slices))
    words = {n: question.word(each.means, ALPHA, alpha_worse) for n, each in slices.items()}
    bad = [name for name, word in words.items() if word == "inferior"]
    if bad:
        name = min(bad, key=lambda each: slices[each].means.high(alpha_worse))
        return _verdict("inferior", name, slices[name], alpha_worse, 0)
    open_ = [name for name, word in words.items() if word == "not enough data"]
    name = min(open_ or slices, key=lambda each: slices[each].means.low(ALPHA))
    if not open_:
        return _verdict("non-inferior", name, slices[name], alpha_worse, 0)
    more = _more_traffic({each: slices[each] for each in open_}, num_rows, alpha_worse, question)
    return _verdict("not enough data", name, slices[name], alpha_worse, more)


def _more_traffic(
    slices: Mapping[str, Evidence], num_rows: int, alpha_worse: float, question: Question
) -> int | None:
    """Rows of all traffic: until one slice turns out worse, or else until all have enough."""
    worse: list[int | None] = []
    good: list[int | None] = []
    for evidence in slices.values():
        is_worse = evidence.means.mean <= -question.margin
        found = question.more_rows(evidence, alpha_worse if is_worse else ALPHA)
        share = len(evidence.differences) / num_rows
        (worse if is_worse else good).append(None if found is None else round(found / share))
    if worse:
        return min((each for each in worse if each is not None), default=None)
    known = [each for each in good if each is not None]
    return max(known) if len(known) == len(good) else None


def _verdict(
    word: Word, name: str | None, evidence: Evidence, alpha_worse: float, more: int | None
) -> Verdict:
    means = evidence.means
    return Verdict(
        word=word,
        slice=name,
        rows=means.rows,
        difference=means.mean,
        low=means.low(ALPHA),
        high=means.high(alpha_worse),
        more_rows=more,
    )


def sentence(verdict: Verdict, margin: float) -> str:
    """The same in words."""
    where = "Overall" if verdict.slice is None else f"In the worst slice ({verdict.slice})"
    figures = (
        f"difference {verdict.difference:+.1%} over {verdict.rows} rows, at least "
        f"{verdict.low:+.1%}, at most {verdict.high:+.1%}, margin {margin:.1%}"
    )
    if verdict.word != "not enough data":
        return f"{where}: {verdict.word}; {figures}."
    more = (
        "the difference is so near the margin that hardly any number of rows would decide"
        if verdict.more_rows is None
        else f"about {verdict.more_rows:,} more rows needed"
    )
    return f"{where}: not enough data, {more}; {figures}."
