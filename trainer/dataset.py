"""Training examples from rows of the log: arrays, lineage checks, the held-out split."""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from capture.revision import tokenizer_hash
from trainer.errors import DatasetError

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

COLUMNS = (
    "exchange_id",
    "choice",
    "model_revision",
    "tokenizer_hash",
    "prompt_ids",
    "completion_ids",
    "topk_size",
    "topk_ids",
    "topk_logprobs",
    "tail_logprob",
    "tail_draws",
)


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different lengths in one array.

    Attributes:
        values: All rows, one after the other.
        offsets: Where each row starts in ``values``, and the end: one more than there are rows.
    """

    values: npt.NDArray[np.generic]
    offsets: Ints

    @classmethod
    def from_column(cls, column: pa.ChunkedArray) -> Self:
        """Take a list column without null rows.

        Chunk by chunk: one array of Arrow's has 32 bits for where its lists begin.
        """
        empty = pa.array([], column.type)  # a column may have no chunk
        chunks = [empty, *column.chunks]
        values = np.concatenate([chunk.flatten() for chunk in chunks])
        lengths = np.concatenate([[0], *(chunk.value_lengths() for chunk in chunks)])
        return cls(values, np.cumsum(lengths, dtype=np.int64))

    @property
    def lengths(self) -> Ints:
        """Number of values in each row."""
        return np.diff(self.offsets)

    def row(self, index: int) -> npt.NDArray[np.generic]:
        """Return a view of one row."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples of one teacher; every row is one answered prompt.

    Attributes:
        model_revision: The teacher that answered all of them.
        prompt_ids: Token ids of each prompt.
        completion_ids: Token ids of each answer, at least one.
        topk_size: Entries kept at each position of each answer.
        topk_ids: Those entries, position after position, likeliest first.
        topk_logprobs: Their natural-log probabilities, aligned with ``topk_ids``.
        tail_logprob: Natural log of the mass outside the entries, one per position.
        tail_draws: Ids drawn from outside them, equally many per position or none at all; -1 where
            there was nothing to draw from.
    """

    model_revision: str
    prompt_ids: Ragged
    completion_ids: Ragged
    topk_size: Ragged
    topk_ids: Ragged
    topk_logprobs: Ragged
    tail_logprob: Ragged
    tail_draws: Ragged

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.prompt_ids.offsets) - 1

    @property
    def num_bytes(self) -> int:
        """Of all columns in memory."""
        columns = (getattr(self, field.name) for field in fields(self)[1:])
        return sum(column.values.nbytes + column.offsets.nbytes for column in columns)

    @property
    def lengths(self) -> Ints:
        """Tokens of prompt and answer together, per example."""
        return self.prompt_ids.lengths + self.completion_ids.lengths


def from_table(table: pa.Table, teacher: Path) -> Dataset:
    """Take rows of the log's ``examples`` view, all answered by the given teacher.

    Raises:
        DatasetError: If there is no row, rows of several teachers or tokenizers are mixed, or
            the tokenizer is not the teacher folder's.
    """
    table = answered(table)
    revision = check_teacher(table, teacher)
    lists = COLUMNS[COLUMNS.index("prompt_ids") :]
    return Dataset(revision, *(Ragged.from_column(table[name]) for name in lists))


def check_teacher(table: pa.Table, teacher: Path) -> str:
    """Return the revision of the only teacher, whose folder is given, that answered some rows.

    Raises:
        DatasetError: As ``from_table`` does.
    """
    if table.num_rows == 0:
        raise DatasetError(
            "no example in the snapshot: widen `where`, or capture more traffic first"
        )
    revision = _only_value(table, "model_revision")
    logged, expected = _only_value(table, "tokenizer_hash"), tokenizer_hash(teacher)
    if logged != expected:
        raise DatasetError(
            f"the log was written with tokenizer {logged}, but {teacher} has {expected}: "
            "give the folder of the teacher that answered, or filter with `where`"
        )
    return revision


def answered(table: pa.Table) -> pa.Table:
    """The rows with an answer of at least one token."""
    lengths = pa.compute.list_value_length(table["completion_ids"])
    return table.filter(pa.compute.greater(lengths, 0))


def is_heldout(prompt_ids: npt.ArrayLike, fraction: float) -> bool:
    """Say whether a prompt belongs to the held-out share, by the SHA-256 of its token ids.

    Equal prompts always land on the same side, whatever the run, the seed or the rest of the log.
    """
    return lot(prompt_ids) < fraction


def lot(prompt_ids: npt.ArrayLike, purpose: bytes = b"") -> float:
    """A number from 0 to 1 that falls to a prompt by its hash; another one for every purpose."""
    text = np.asarray(prompt_ids, dtype="<i4").tobytes()
    return int.from_bytes(hashlib.sha256(purpose + text).digest()[:8], "big") / 2**64


def heldout_flags(prompt_ids: Ragged, fraction: float) -> Flags:
    """Say of each prompt whether it belongs to the held-out share."""
    rows = range(len(prompt_ids.offsets) - 1)
    return np.array([is_heldout(prompt_ids.row(row), fraction) for row in rows], dtype=bool)


def split(dataset: Dataset, fraction: float, duplicates: str = "keep") -> tuple[Ints, Ints]:
    """Return the row numbers to train on and those held out.

    Args:
        dataset: All rows that are left.
        fraction: Held out.
        duplicates: What was done about them before, to be told where too few rows are left.

    Raises:
        DatasetError: If either side is empty.
    """
    flags = heldout_flags(dataset.prompt_ids, fraction)
    train, heldout = np.flatnonzero(~flags), np.flatnonzero(flags)
    if not len(train) or not len(heldout):
        why = "" if duplicates == "keep" else f', or duplicates ("{duplicates}")'
        raise DatasetError(
            f"{len(dataset)} examples split into {len(train)} to train on and {len(heldout)} held "
            f"out, expected some of each: capture more prompts or change heldout_fraction "
            f"({fraction}){why}"
        )
    return train, heldout


def _only_value(table: pa.Table, column: str) -> str:
    values = sorted(str(value) for value in table[column].unique().to_pylist())
    if len(values) > 1:
        raise DatasetError(
            f"the snapshot mixes {len(values)} values of {column} ({', '.join(values)}): "
            f"choose one with `where`, such as where = \"{column} = '{values[0]}'\""
        )
    return values[0]
