"""Which rows belong together: by where they came from, how long, rare, unsure they are (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quant.heldout import MIN_SLICE_ROWS
from trainer.dataset import Dataset, Ints

Floats = npt.NDArray[np.float64]

MOST_GROUPS = 10
LENGTH_GROUPS = 4


@dataclass(frozen=True, slots=True)
class Slice:
    """Some of the rows.

    Attributes:
        kind: What they are sorted by.
        name: Which of that kind.
        rows: Their numbers.
    """

    kind: str
    name: str
    rows: Ints

    @property
    def label(self) -> str:
        """Both in one."""
        return f"{self.kind} {self.name}"


def by_label(kind: str, labels: Sequence[str | None]) -> list[Slice]:
    """A slice per label that enough rows have, largest first; none if all rows have the same."""
    names = np.array(["" if label is None else label for label in labels])
    found, counts = np.unique(names, return_counts=True)
    order = np.lexsort((found, -counts))
    return [
        Slice(kind, str(found[place]) or "none", np.flatnonzero(names == found[place]))
        for place in order
        if MIN_SLICE_ROWS <= counts[place] < len(names)
    ]


def by_quantile(
    kind: str, values: Floats, most_groups: int = MOST_GROUPS, unit: str = ""
) -> list[Slice]:
    """Groups of about as many rows each, lowest values first; equal values stay together.

    Args:
        kind: What the values are.
        values: A finite one per row.
        most_groups: Fewer where there are not ``MIN_SLICE_ROWS`` for each.
        unit: Behind the values in names.
    """
    groups = min(most_groups, len(values) // MIN_SLICE_ROWS)
    if groups < 2:  # noqa: PLR2004 - one group is all rows
        return []
    inner = np.unique(np.quantile(values, np.arange(1, groups) / groups, method="higher"))
    group = np.searchsorted(inner, values, side="right")
    members = [np.flatnonzero(group == number) for number in range(len(inner) + 1)]
    kept = [rows for rows in members if MIN_SLICE_ROWS <= len(rows) < len(values)]
    return [
        Slice(kind, f"{number} of {len(kept)}: {_range(values[rows], unit)}", rows)
        for number, rows in enumerate(kept, start=1)
    ]


def entropies(dataset: Dataset) -> Floats:
    """Mean entropy of the teacher over each answer's positions, in nats, the tail as one class."""
    size_N = dataset.topk_size.values.astype(np.int64)
    position_E = np.repeat(np.arange(len(size_N)), size_N)
    logprobs_E = dataset.topk_logprobs.values.astype(np.float64)
    tail_N = dataset.tail_logprob.values.astype(np.float64)
    own_N = np.bincount(position_E, _surprise(logprobs_E), len(size_N)) + _surprise(tail_N)
    lengths = dataset.completion_ids.lengths
    row_N = np.repeat(np.arange(len(lengths)), lengths)
    result: Floats = np.bincount(row_N, own_N, len(lengths)) / lengths
    return result


def _surprise(logprobs: Floats) -> Floats:
    """``-p log p``, 0 where there is no mass."""
    held = np.where(np.isfinite(logprobs), logprobs, 0.0)
    result: Floats = -np.exp(logprobs) * held
    return result


def _range(values: Floats, unit: str) -> str:
    form = ",.0f" if np.array_equal(values, np.round(values)) else ".3g"
    low, high = (f"{value:{form}}" for value in (values.min(), values.max()))
    name = low if low == high else f"{low} to {high}"
    return f"{name} {unit}".strip()
