"""How good a whole run will be, from small ones: a falling curve, fitted and drawn out.

Shape suffixes: P points, G grid places of the curve's three parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FLOORS = np.linspace(0.0, 0.96, 25)  # of the curve, over its value at the largest point
EXPONENTS = np.linspace(0.02, 1.5, 38)
HEIGHTS = np.linspace(-0.4, 0.4, 33)  # log of the curve over the measured value, there
RUN_TO_RUN = 0.03  # no run repeats better than this, relative
SMALLEST = 1e-6  # values below count as this much: a relative error of nothing has no meaning
COVERED = 0.9


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
    it makes the values, whose relative errors are normal with an unknown spread, so few or noisy
    points give a wide interval.

    Args:
        shares: Of the run's steps and prompts, between 0 and 1, at least three, rising.
        values: Not negative, the smaller the better.

    Source:
        Curves of this form describe losses over data: Hestness et al. 2017, arXiv:1712.00409.
    """
    share_P, value_P = np.asarray(shares), np.maximum(values, SMALLEST)
    floor_G, exponent_G, height_G = (
        axis.ravel() for axis in np.meshgrid(FLOORS, EXPONENTS, HEIGHTS, indexing="ij")
    )
    falls_GP = (share_P / share_P[-1]) ** -exponent_G[:, None]
    curve_GP = np.log(floor_G[:, None] + (1 - floor_G[:, None]) * falls_GP) + height_G[:, None]
    missed_GP = curve_GP - np.log(value_P / value_P[-1])
    squares_G = (missed_GP**2).sum(axis=1) + len(value_P) * RUN_TO_RUN**2
    weight_G = squares_G ** (-len(value_P) / 2)
    at_end_G = np.exp(height_G) * (floor_G + (1 - floor_G) * share_P[-1] ** exponent_G)
    order = np.argsort(at_end_G)
    below = np.cumsum(weight_G[order]) / weight_G.sum()
    low, median, high = (
        float(value_P[-1] * at_end_G[order][np.searchsorted(below, quantile)])
        for quantile in ((1 - COVERED) / 2, 0.5, (1 + COVERED) / 2)
    )
    return Prediction(median, low, high)
