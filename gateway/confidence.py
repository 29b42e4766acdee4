"""Confidence bounds on a share that stay true however often one looks."""

from functools import lru_cache
from math import lgamma, log, log1p, pi

HALVINGS = 50


@lru_cache(maxsize=4096)
def confidence_sequence(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """Bound the probability behind ``successes`` out of ``trials``, at any time of looking.

    With probability at least ``1 - alpha`` the true probability lies inside the bounds at every
    sample size at once, so one may look after each trial and stop when one likes. A probability is
    kept while the data's likelihood under it, against the mean likelihood over a Beta(1/2, 1/2)
    prior, is more than ``alpha``. That ratio's inverse is a martingale of mean 1, which Ville's
    inequality bounds. Its logarithm is convex in a common scale of both counts and starts at 0:
    more evidence in the same proportion only ever narrows the bounds.

    Args:
        successes: In ``[0, trials]``.
        trials: Independent trials of one probability, 0 or more.
        alpha: Chance of ever being wrong, in ``(0, 1)``.

    Returns:
        The lower and upper bound, ``0 <= low <= successes / trials <= high <= 1``, rounded
        outwards by at most 2**-50.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Robbins 1970, Ann. Math. Statist. 41(5); Howard et al. 2021, arXiv:1810.08240, for the
        beta-binomial mixture. Solved by bisection on the exact likelihood.
    """
    if not 0 <= successes <= trials or not 0 < alpha < 1:
        raise ValueError(f"expected 0 <= {successes} <= {trials} and 0 < {alpha} < 1")
    failures = trials - successes
    return _lowest(successes, failures, alpha), 1.0 - _lowest(failures, successes, alpha)


def _lowest(successes: int, failures: int, alpha: float) -> float:
    """Return the largest known probability below all that the data leave possible."""
    if successes == 0:
        return 0.0
    trials = successes + failures
    mixture = lgamma(successes + 0.5) + lgamma(failures + 0.5) - lgamma(trials + 1.0) - log(pi)
    least = mixture + log(alpha)
    refused, kept = 0.0, successes / trials
    for _ in range(HALVINGS):
        middle = (refused + kept) / 2
        if middle <= 0.0 or _log_likelihood(successes, failures, middle) <= least:
            refused = middle
        else:
            kept = middle
    return refused


def _log_likelihood(successes: int, failures: int, probability: float) -> float:
    """Log-likelihood of the counts in one order; ``probability`` is below 1."""
    return successes * log(probability) + (failures * log1p(-probability) if failures else 0.0)
