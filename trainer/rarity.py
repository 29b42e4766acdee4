"""How unlike the rest of the log a prompt is (pure)."""

import numpy as np
import numpy.typing as npt

from trainer.dataset import Ragged

Floats = npt.NDArray[np.float64]

PAIR = 2**32  # larger than any token id


def rarity(prompts: Ragged) -> Floats:
    """Return for each prompt how few others share its pairs of neighbouring tokens, in nats.

    The mean over a prompt's distinct pairs of ``-log(share of the prompts that have the pair)``:
    0 if every prompt has all of them, the logarithm of the number of prompts if no other has any.

    Source:
        Spärck Jones 1972, "A statistical interpretation of term specificity".
    """
    lengths = prompts.lengths
    rows = len(lengths)
    ids = prompts.values.astype(np.int64)
    row_of = np.repeat(np.arange(rows), lengths)
    is_pair = row_of[1:] == row_of[:-1]
    keys = (ids[:-1] * PAIR + ids[1:])[is_pair]
    _, keys = np.unique(keys, return_inverse=True)
    width = int(keys.max(initial=0)) + 1
    distinct = np.unique(row_of[1:][is_pair] * width + keys)
    owners, pairs = distinct // width, distinct % width
    having = np.maximum(np.bincount(pairs, minlength=width), 1)
    surprise = np.log(max(rows, 1) / having)
    sums = np.bincount(owners, weights=surprise[pairs], minlength=rows)
    result: Floats = sums / np.maximum(np.bincount(owners, minlength=rows), 1)
    return result
