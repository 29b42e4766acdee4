"""From rows in the order of the engine's steps to runs of positions of one completion; pure.

Shape suffixes: R rows, K candidates, E kept entries of all rows, n positions of a piece, D draws.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from capture.adaptive import Limits, Sizes, kept_sizes, tail_logprobs
from capture.rows import Floats, Ints


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of one or more engine steps on the host, in order of arrival.

    Attributes:
        owner_R: Serial number of the completion that each row belongs to.
        position_R: Which of its tokens the row's distribution is for, from 0.
        size_R: Kept entries of each row.
        tail_R: Log mass outside them.
        ids_E: Kept token ids, row after row, most likely first.
        logprobs_E: Their natural-log probabilities.
        draws_RD: Token ids drawn from the tail.
    """

    owner_R: npt.NDArray[np.int64]
    position_R: Ints
    size_R: Sizes
    tail_R: Floats
    ids_E: Ints
    logprobs_E: Floats
    draws_RD: Ints

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return 18 * len(self.owner_R) + 8 * len(self.ids_E) + self.draws_RD.nbytes

    @classmethod
    def joined(cls, steps: Sequence["Rows"]) -> "Rows":
        """Put steps behind each other."""
        columns = ([getattr(step, name) for step in steps] for name in cls.__slots__)
        return cls(*(np.concatenate(column) for column in columns))

    @classmethod
    def chosen(
        cls,
        owner_R: npt.NDArray[np.int64],
        position_R: Ints,
        candidates: Sequence[npt.NDArray[Any]],
        limits: Limits,
    ) -> "Rows":
        """Keep of each row's candidates the fewest that reach the mass.

        Args:
            owner_R: As in the result.
            position_R: As in the result.
            candidates: ``ids_RK``, most likely first, ``logprobs_RK`` and ``draws_RD``.
            limits: Of the entries kept.
        """
        ids_RK, logprobs_RK, draws_RD = candidates
        size_R = kept_sizes(logprobs_RK, k_min=limits.k_min, mass=limits.mass)
        is_kept_RK = np.arange(logprobs_RK.shape[1]) < size_R[:, None]
        kept = (ids_RK[is_kept_RK], logprobs_RK[is_kept_RK])
        return cls(owner_R, position_R, size_R, tail_logprobs(logprobs_RK, size_R), *kept, draws_RD)

    def taken(self, row_N: npt.NDArray[np.int64]) -> "Rows":
        """Rows by their numbers, in that order."""
        size_N = self.size_R[row_N]
        first_R = np.cumsum(self.size_R, dtype=np.int64) - self.size_R
        end_N = np.cumsum(size_N, dtype=np.int64)
        shift_N = first_R[row_N] - (end_N - size_N)
        entry_E = np.arange(size_N.sum(dtype=np.int64)) + shift_N.repeat(size_N)
        return Rows(
            self.owner_R[row_N],
            self.position_R[row_N],
            size_N,
            self.tail_R[row_N],
            self.ids_E[entry_E],
            self.logprobs_E[entry_E],
            self.draws_RD[row_N],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Consecutive positions of one completion.

    Attributes:
        first: Position of the first.
        size_n: Kept entries per position.
        tail_logprob_n: Log mass outside them.
        ids_E: Kept token ids, position after position, most likely first.
        logprobs_E: Their log-probabilities.
        draws_nD: Token ids drawn from each position's tail.
    """

    first: int
    size_n: Sizes
    tail_logprob_n: Floats
    ids_E: Ints
    logprobs_E: Floats
    draws_nD: Ints

    @property
    def end(self) -> int:
        """Position after the last."""
        return self.first + len(self.size_n)

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return 6 * len(self.size_n) + 8 * len(self.ids_E) + self.draws_nD.nbytes

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
            self.draws_nD[:n],
        )


def cut(rows: Rows) -> Iterator[tuple[int, Piece]]:
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
    rows = rows.taken(order[is_last])

    owner, position = rows.owner_R, rows.position_R
    is_first = np.ones(len(owner), bool)
    is_first[1:] = (owner[1:] != owner[:-1]) | (position[1:] != position[:-1] + 1)
    starts = np.flatnonzero(is_first).tolist()
    entry = np.concatenate([[0], np.cumsum(rows.size_R, dtype=np.int64)]).tolist()
    for start, end in zip(starts, [*starts[1:], len(owner)], strict=True):
        entries = slice(entry[start], entry[end])
        # Copies: a view would keep the rows of all owners for as long as the slowest of them.
        yield (
            int(owner[start]),
            Piece(
                int(position[start]),
                rows.size_R[start:end].copy(),
                rows.tail_R[start:end].copy(),
                rows.ids_E[entries].copy(),
                rows.logprobs_E[entries].copy(),
                rows.draws_RD[start:end].copy(),
            ),
        )
