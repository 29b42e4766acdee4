"""Answers that the log holds more than once, or nearly: traffic repeats itself."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasketch import MinHash, MinHashLSH

from trainer.dataset import Flags, Ragged, heldout_flags

Duplicates = Literal["keep", "drop_exact", "drop_near"]
SHINGLE = 5  # tokens
SIMILARITY = 0.8  # Jaccard, of their sets of shingles
NUM_PERMUTATIONS = 128
MARK_BYTES = 16
PROBED = 1000  # rows


def distinct(table: pa.Table, heldout_fraction: float, duplicates: Duplicates) -> Flags:
    """Say which rows to keep: those held out, and of the others the first of each kind.

    Args:
        table: With ``prompt_ids`` and ``completion_ids``, in order.
        heldout_fraction: As in ``trainer.dataset.split``. What is held out is not to be learned
            by heart either: with ``drop_near`` what is like one of those rows goes too. (Equal
            prompts are on the same side anyway.)
        duplicates: ``drop_exact`` compares prompt and answer token by token, ``drop_near`` their
            shingles of five tokens behind what most prompts begin with: similar from a Jaccard
            index of 0.8 on, as MinHash sees it.

    Source:
        Broder 1997; the figures are those usual for language-model corpora (Lee et al. 2022,
        arXiv:2107.06499).
    """
    prompt_ids, completion_ids = texts_of(table)
    asked = table["prompt_ids"].filter(pa.array(probed(table.num_rows, duplicates)))
    beginning = common_beginning(Ragged.from_column(asked))

    def marks(row: int) -> list[bytes]:
        prompt = behind(beginning, prompt_ids.row(row))
        return marks_of(prompt, completion_ids.row(row), duplicates)

    is_kept = heldout_flags(prompt_ids, heldout_fraction)
    seen = {mark for row in np.flatnonzero(is_kept) for mark in marks(row)}
    for row in unseen(((row, marks(row)) for row in np.flatnonzero(~is_kept)), seen):
        is_kept[row] = True
    return is_kept


def probed(num_rows: int, duplicates: Duplicates) -> Flags:
    """Which rows of a snapshot tell what its prompts begin with: a thousand all over it at most.

    None do for ``drop_exact``, which compares whole prompts.
    """
    flags = np.zeros(num_rows, dtype=bool)
    if duplicates == "drop_near":
        flags[np.linspace(0, num_rows - 1, min(num_rows, PROBED)).astype(np.int64)] = True
    return flags


def common_beginning(prompts: Ragged) -> npt.NDArray[np.generic]:
    """The longest beginning of more than half of some prompts, such as a system prompt.

    It makes long prompts alike, whatever is asked behind it.
    """
    alive = np.arange(len(prompts.lengths))
    found: list[np.generic] = []
    while len(alive):
        alive = alive[prompts.lengths[alive] > len(found)]
        values, of_rows = np.unique(
            prompts.values[prompts.offsets[alive] + len(found)], return_inverse=True
        )
        counts = np.bincount(of_rows, minlength=1)
        if 2 * counts.max() <= len(prompts.lengths):
            break
        found.append(values[counts.argmax()])
        alive = alive[of_rows == counts.argmax()]
    return np.array(found, dtype=prompts.values.dtype)


def behind(
    beginning: npt.NDArray[np.generic], prompt_ids: npt.NDArray[np.generic]
) -> npt.NDArray[np.generic]:
    """What follows in a prompt that begins so; all of any other."""
    size = len(beginning)
    return prompt_ids[size:] if np.array_equal(prompt_ids[:size], beginning) else prompt_ids


def unseen(rows: Iterable[tuple[int, Sequence[bytes]]], seen: set[bytes]) -> Iterator[int]:
    """Rows, of some with their marks, that share none with those seen; from then on they are."""
    for row, marks in rows:
        if seen.isdisjoint(marks):
            seen.update(marks)
            yield row


def texts_of(table: pa.Table) -> tuple[Ragged, Ragged]:
    """Prompts and answers of some rows."""
    return Ragged.from_column(table["prompt_ids"]), Ragged.from_column(table["completion_ids"])


def num_marks(duplicates: Duplicates) -> int:
    """How many marks a row has."""
    return 1 if duplicates == "drop_exact" else len(_bands())


def marks_of(
    prompt_ids: npt.NDArray[np.generic],
    completion_ids: npt.NDArray[np.generic],
    duplicates: Duplicates,
) -> list[bytes]:
    """Digests of which rows of the same kind have one in common, and others none (pure).

    One of all tokens; or one for each band of the MinHash, where similar rows are likely to meet.
    """
    parts = (prompt_ids, [-1], completion_ids)
    tokens, width = np.concatenate(parts).astype("<i4").tobytes(), 4 * SHINGLE
    if duplicates == "drop_exact":
        return [_digest(tokens)]
    starts = range(0, max(1, len(tokens) - width + 4), 4)
    sketch = MinHash(num_perm=NUM_PERMUTATIONS)
    sketch.update_batch({tokens[start : start + width] for start in starts})
    values = sketch.hashvalues.astype("<u4")
    return [_digest(bytes([start]) + values[start:end].tobytes()) for start, end in _bands()]


@functools.cache
def _bands() -> list[tuple[int, int]]:
    """Which hash values datasketch would look up together, for so similar rows."""
    bands: list[tuple[int, int]] = MinHashLSH(SIMILARITY, NUM_PERMUTATIONS).hashranges
    return bands


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:MARK_BYTES]
