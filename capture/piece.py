"""From rows in the order of the engine's steps to runs of positions of one completion; pure.

Shape suffixes: R rows, K candidates, n positions of a piece, E kept entries of all n.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from capture.adaptive import kept_sizes, tail_logprobs
from capture.rows import Floats, Ints

Numbers = TypeVar("Numbers", Ints, Floats)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of one or more engine steps on the host, in order of arrival.

    Attributes:
        owner_R: Serial number of the completion that each row belongs to.
        position_R: Which of its tokens the row's distribution is for, from 0.
        ids_RK: Candidates, most likely first.
        logprobs_RK: Their natural-log probabilities; minus infinity fills a row up.
    """

    owner_R: npt.NDArray[np.int64]
    position_R: Ints
    ids_RK: Ints
    logprobs_RK: Floats

    @classmethod
    def joined(cls, steps: Sequence["Rows"]) -> "Rows":
        """Put steps behind each other; those with fewer candidates are filled up."""
        width = max(step.ids_RK.shape[1] for step in steps)
        return cls(
            np.concatenate([step.owner_R for step in steps]),
            np.concatenate([step.position_R for step in steps]),
            np.concatenate([_widened(step.ids_RK, width, 0) for step in steps]),
            np.concatenate([_widened(step.logprobs_RK, width, -np.inf) for step in steps]),
        )


def _widened(array_RK: Numbers, width: int, fill: float) -> Numbers:
    missing = width - array_RK.shape[1]
    return np.pad(array_RK, ((0, 0), (0, missing)), constant_values=fill) if missing else array_RK


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Consecutive positions of one completion, only their kept entries.

    Attributes:
        first: Position of the first.
        size_n: Kept entries per position.
        tail_logprob_n: Log mass outside them.
        ids_E: Kept token ids, position after position, most likely first.
        logprobs_E: Their log-probabilities.
    """

    first: int
    size_n: npt.NDArray[np.int16]
    tail_logprob_n: Floats
    ids_E: Ints
    logprobs_E: Floats

    @property
    def end(self) -> int:
        """Position after the last."""
        return self.first + len(self.size_n)

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return 6 * len(self.size_n) + 8 * len(self.ids_E)

    def before(self, position: int) -> "Piece":
        """The part in front of a position."""
        n = position - self.first
        entries = int(self.size_n[:n].sum())
        return Piece(
            self.first,
            self.size_n[:n],
            self.tail_logprob_n[:n],
            self.ids_E[:entries],
            self.logprobs_E[:entries],
        )


def cut(rows: Rows, *, k_min: int, mass: float) -> Iterator[tuple[int, Piece]]:
    """Yield (owner, piece) for each run of consecutive positions, an owner's runs in order.

    The last row of a position counts: a partly prefilled prompt makes rows whose sample the
    engine discards, and so does a request that is computed again after a preemption.
    """
    if not len(rows.owner_R):
        return
    order = np.lexsort((rows.position_R, rows.owner_R))  # stable: arrivals stay in order
    owner, position = rows.owner_R[order], rows.position_R[order]
    is_last = np.ones(len(order), bool)
    is_last[:-1] = (owner[1:] != owner[:-1]) | (position[1:] != position[:-1])
    order, owner, position = order[is_last], owner[is_last], position[is_last]

    logprobs_RK = rows.logprobs_RK[order]
    size_R = kept_sizes(logprobs_RK, k_min=k_min, mass=mass)
    tail_R = tail_logprobs(logprobs_RK, size_R)
    is_kept_RK = np.arange(logprobs_RK.shape[1]) < size_R[:, None]
    ids_E, logprobs_E = rows.ids_RK[order][is_kept_RK], logprobs_RK[is_kept_RK]
    entry = np.concatenate([[0], np.cumsum(size_R, dtype=np.int64)])

    is_first = np.ones(len(order), bool)
    is_first[1:] = (owner[1:] != owner[:-1]) | (position[1:] != position[:-1] + 1)
    starts = np.flatnonzero(is_first).tolist()
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        entries = slice(int(entry[start]), int(entry[end]))
        yield (
            int(owner[start]),
            Piece(
                int(position[start]),
                size_R[start:end],
                tail_R[start:end],
                ids_E[entries],
                logprobs_E[entries],
            ),
        )
