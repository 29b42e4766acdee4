"""What the differences of some rows say of the mean over all traffic, by resampling (pure).

The rows are weighted at random, as if other rows had been drawn, and one row that nobody has seen,
the worst or the best that is possible, is weighted with them. Without it twenty equal rows would
look like certainty.

Source:
    Rubin 1981, "The Bayesian bootstrap", for the weights; Gaffke 2005, "Three test statistics for
    a nonparametric one-sided hypothesis on the mean of a nonnegative variable", for the unseen row.
    Where a row has one of two values the bounds are those of Clopper and Pearson 1934, which hold
    for any number of rows; that they hold for all bounded values is a conjecture of Learned-Miller
    and Thomas 2019, arXiv:1905.06208.

Shape suffixes: D draws, U distinct values and the unseen one.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DRAWS = 40_000
CELLS = 4_000_000  # weights held at a time
PLANNING_DRAWS = 4_000
PLANNING_VALUES = 64  # distinct ones, enough to know how many rows are needed
MOST_ROWS_FACTOR = 2.0**16


@dataclass(frozen=True, slots=True)
class Span:
    """Between what a row's difference can lie."""

    worst: float = -1.0
    best: float = 1.0


@dataclass(frozen=True, slots=True)
class Resampled:
    """Means of differences under random weights, sorted.

    Attributes:
        rows: How many rows there were.
        mean: Of them as they are.
        low_D: Means with the unseen row at its worst.
        high_D: With it at its best.
    """

    rows: int
    mean: float
    low_D: Floats
    high_D: Floats

    @classmethod
    def of(cls, differences: npt.ArrayLike, span: Span, seed: int, draws: int = DRAWS) -> Self:
        """Resample the differences of some rows, at least one; the same seed gives the same."""
        values = np.asarray(differences, np.float64)
        distinct, counts = np.unique(values, return_counts=True)
        low_D, high_D = _means(distinct, counts.astype(np.float64), span, seed, draws)
        return cls(len(values), float(values.mean()), np.sort(low_D), np.sort(high_D))

    def low(self, alpha: float) -> float:
        """What the true mean is below in at most a share ``alpha`` of all cases."""
        return float(self.low_D[int(alpha * len(self.low_D))])

    def high(self, alpha: float) -> float:
        """What it is above in at most that share."""
        return float(self.high_D[-1 - int(alpha * len(self.high_D))])


def rows_to_clear(
    differences: npt.ArrayLike, limit: float, span: Span, alpha: float, seed: int
) -> int | None:
    """Return with how many rows like these a bound would come to lie beyond a limit.

    Args:
        differences: Of the rows that there are.
        limit: The lower bound has to exceed it if the mean does, or else the upper one has to fall
            below it.
        span: Of a difference.
        alpha: Of the bound.
        seed: Of the draws.

    Returns:
        Rows in all, at least as many as there are; None if the mean is so near the limit that
        ``MOST_ROWS_FACTOR`` times as many would not do.
    """
    values = np.asarray(differences, np.float64)
    distinct, counts = _coarse(values)
    is_above = values.mean() > limit

    def clears(factor: float) -> bool:
        low_D, high_D = _means(distinct, counts * factor, span, seed, PLANNING_DRAWS)
        if is_above:
            return bool(np.quantile(low_D, alpha) > limit)
        return bool(np.quantile(high_D, 1 - alpha) < limit)

    enough = 1.0
    while not clears(enough):
        enough *= 2
        if enough > MOST_ROWS_FACTOR:
            return None
    short = enough / 2 if enough > 1 else 1.0
    while enough / short > 1.01:  # noqa: PLR2004 - as exact as a guess need be
        middle = (enough * short) ** 0.5
        short, enough = (short, middle) if clears(middle) else (middle, enough)
    return int(np.ceil(len(values) * enough))


def _means(
    distinct: Floats, counts: Floats, span: Span, seed: int, draws: int
) -> tuple[Floats, Floats]:
    """Means with the unseen row at its worst, and at its best, under the same weights."""
    random = np.random.default_rng(seed)
    shapes_U = np.append(counts, 1.0)
    low, high = [], []
    step = max(1, CELLS // len(shapes_U))
    for start in range(0, draws, step):
        # Equal rows share one weight: the sum of theirs.
        weights_DU = random.standard_gamma(shapes_U, (min(step, draws - start), len(shapes_U)))
        sums_D = weights_DU.sum(axis=1)
        seen_D = weights_DU[:, :-1] @ distinct
        low.append((seen_D + weights_DU[:, -1] * span.worst) / sums_D)
        high.append((seen_D + weights_DU[:, -1] * span.best) / sums_D)
    return np.concatenate(low), np.concatenate(high)


def _coarse(values: Floats) -> tuple[Floats, Floats]:
    """Distinct values with their counts, neighbours taken together where there are many."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= PLANNING_VALUES:
        return distinct, counts.astype(np.float64)
    parts = np.array_split(np.sort(values), PLANNING_VALUES)
    return np.array([part.mean() for part in parts]), np.array([float(len(p)) for p in parts])
