"""How good a whole run will be, from small ones: a falling curve, fitted and drawn out.

Shape suffixes: P points, G grid places of the curve's three parameters, N drawn outcomes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FLOORS = np.linspace(0.0, 0.96, 25)  # of the curve, over its value at the largest point
EXPONENTS = np.linspace(0.02, 1.0, 30)
HEIGHTS = np.linspace(-0.6, 0.6, 41)  # log of the curve over the measured value, there
SPREAD, SPREAD_POINTS = 0.1, 4  # of runs around their curve, as if seen at so many points before
STRAYS = 1.0  # how much farther a point strays from the curve, per doubling below the largest
DRIFTS = 0.3  # the same of the whole run, per doubling above it
SMALLEST = 1e-6  # values below count as this much: a relative error of nothing has no meaning
COVERED = 0.9
NUM_DRAWN = 20_000


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a value will be.

    Attributes:
        median: Half of what is likely lies below it.
        low: A twentieth of what is likely lies below it.
        high: A twentieth of what is likely lies above it.
    """

    median: float
    low: float
    high: float


def predict(shares: Sequence[float], values: Sequence[float]) -> Prediction:
    """Say what falls from ``values`` at ``shares`` of a run will be at the whole of it.

    The curve is ``floor + scale * share ** -exponent``. Every one on a grid counts by how likely
    it makes the values, whose relative errors are normal with an unknown spread. No curve holds
    everywhere, so that spread grows with the doublings between a point, or the whole run, and the
    largest of the short runs. What the whole run reaches strays from its curve as they do.

    Args:
        shares: Of the run's steps and prompts, between 0 and 1, at least three, rising.
        values: Not negative, the smaller the better.

    Source:
        Curves of this form describe losses over data: Hestness et al. 2017, arXiv:1712.00409. The
        spread and how it grows were chosen on runs of ``python -m tests.bench.pilots``.
    """
    share_P, value_P = np.asarray(shares), np.maximum(values, SMALLEST)
    floor_G, exponent_G, height_G = (
        axis.ravel() for axis in np.meshgrid(FLOORS, EXPONENTS, HEIGHTS, indexing="ij")
    )
    falls_GP = (share_P / share_P[-1]) ** -exponent_G[:, None]
    curve_GP = np.log(floor_G[:, None] + (1 - floor_G[:, None]) * falls_GP) + height_G[:, None]
    stray_P = 1 + STRAYS * np.log2(share_P[-1] / share_P)
    missed_GP = (curve_GP - np.log(value_P / value_P[-1])) / stray_P
    squares_G = (missed_GP**2).sum(axis=1) + SPREAD_POINTS * SPREAD**2
    points = len(value_P) + SPREAD_POINTS
    weight_G = squares_G ** (-points / 2)
    at_end_G = height_G + np.log(floor_G + (1 - floor_G) * share_P[-1] ** exponent_G)
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(weight_G), NUM_DRAWN, p=weight_G / weight_G.sum())
    spread_N = np.sqrt(squares_G[drawn] / points) * (1 - DRIFTS * np.log2(share_P[-1]))
    log_end_N = at_end_G[drawn] + spread_N * rng.standard_t(points, NUM_DRAWN)
    tail = (1 - COVERED) / 2
    low, median, high = value_P[-1] * np.exp(np.quantile(log_end_N, [tail, 0.5, 1 - tail]))
    return Prediction(float(median), float(low), float(high))
