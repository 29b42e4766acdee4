"""Answers that the log holds more than once, or nearly: traffic repeats itself."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from datasketch import MinHash, MinHashLSH

from trainer.dataset import Dataset, Ints

Duplicates = Literal["keep", "drop_exact", "drop_near"]
SHINGLE = 5  # tokens
SIMILARITY = 0.8  # Jaccard, of their sets of shingles
NUM_PERMUTATIONS = 128


def distinct(dataset: Dataset, rows: Ints, heldout_rows: Ints, duplicates: Duplicates) -> Ints:
    """Return the rows to train on without those that add nothing; the first of each kind stays.

    Args:
        dataset: Of the run.
        rows: To train on, in order.
        heldout_rows: Not to be learned by heart either: with ``drop_near`` what is like one of
            them goes too. (Equal prompts are on the same side of the split anyway.)
        duplicates: ``drop_exact`` compares prompt and answer token by token, ``drop_near`` their
            shingles of five tokens: similar from a Jaccard index of 0.8 on, as MinHash sees it.

    Source:
        Broder 1997; the figures are those usual for language-model corpora (Lee et al. 2022,
        arXiv:2107.06499).
    """
    if duplicates == "keep":
        return rows
    if duplicates == "drop_exact":
        return np.array(list(_first_of_each(dataset, rows)), dtype=np.int64)
    index = MinHashLSH(threshold=SIMILARITY, num_perm=NUM_PERMUTATIONS)
    for row in heldout_rows:
        index.insert(int(row), _sketch(dataset, int(row)))
    return np.array(list(_unlike(dataset, rows, index)), dtype=np.int64)


def _tokens(dataset: Dataset, row: int) -> bytes:
    """Prompt, a mark, answer."""
    parts = (dataset.prompt_ids.row(row), [-1], dataset.completion_ids.row(row))
    return np.concatenate(parts).astype("<i4").tobytes()


def _first_of_each(dataset: Dataset, rows: Iterable[int]) -> Iterator[int]:
    seen: set[bytes] = set()
    for row in rows:
        digest = hashlib.sha256(_tokens(dataset, row)).digest()
        if digest not in seen:
            seen.add(digest)
            yield row


def _unlike(dataset: Dataset, rows: Iterable[int], index: MinHashLSH) -> Iterator[int]:
    for row in rows:
        sketch = _sketch(dataset, row)
        if not index.query(sketch):
            index.insert(int(row), sketch)
            yield row


def _sketch(dataset: Dataset, row: int) -> MinHash:
    tokens, width = _tokens(dataset, row), 4 * SHINGLE
    starts = range(0, max(1, len(tokens) - width + 4), 4)
    sketch = MinHash(num_perm=NUM_PERMUTATIONS)
    sketch.update_batch({tokens[start : start + width] for start in starts})
    return sketch
