"""Which differences between means of answers are more than chance."""

from math import sqrt
from typing import NamedTuple

SURE = 2.0  # standard errors


class Mean(NamedTuple):
    """A mean of numbers from 0 to 1.

    Attributes:
        value: The mean.
        rows: How many numbers.
    """

    value: float
    rows: int

    @property
    def variance(self) -> float:
        """Of the mean, at most; two more of either kind keep it from being 0.

        Source:
            Agresti and Coull 1998, doi:10.1080/00031305.1998.10480550.
        """
        share = (self.value * self.rows + 2) / (self.rows + 4)
        return share * (1 - share) / self.rows

    def is_surely_below(self, other: "Mean") -> bool:
        """Whether it is less by more than ``SURE`` standard errors of the difference."""
        return other.value - self.value > SURE * sqrt(self.variance + other.variance)
