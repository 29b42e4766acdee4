"""Examples as other programs get them and give them back: the columns of the ``examples`` view."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from capture.adaptive import TAIL_FLOOR
from capture.schema import EXCHANGES, LOGITS

Row = dict[str, Any]  # one example, column by column

OF_EXCHANGE = ("exchange_id", "day", "route", "role", "model", "request", "params", "started_at")
OF_LOGITS = (
    *("choice", "model_revision", "tokenizer_hash", "prompt_ids", "completion_ids"),
    *("topk_size", "topk_ids", "topk_logprobs", "tail_logprob"),
)
EXAMPLES = pa.schema(
    [
        *(EXCHANGES.field(name) for name in OF_EXCHANGE),
        *(pa.field(name, pa.string()) for name in ("response_text", "finish_reason")),
        *(LOGITS.field(name) for name in OF_LOGITS),
    ]
)
PLAIN = tuple(field.name for field in EXAMPLES if not pa.types.is_list(field.type))
ARRAYS = tuple(name for name in OF_LOGITS if pa.types.is_list(LOGITS.field(name).type))
FILLER_LOGPROB = -80.0  # of entries that only fill up a fixed k; e**-80 is still a float32
ROWS_PER_BATCH = 1024


def positions(row: Row) -> tuple[list[list[int]], list[list[float]]]:
    """Cut an example's flat lists into one list of ids and one of logprobs per position."""
    ends = np.cumsum(row["topk_size"], dtype=np.int64).tolist()
    slices = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [row["topk_ids"][s] for s in slices], [row["topk_logprobs"][s] for s in slices]


def joined(ids: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]) -> Row:
    """Undo ``positions``; each tail is what its entries leave of the mass."""
    return {
        "topk_size": [len(entry) for entry in ids],
        "topk_ids": [token for entry in ids for token in entry],
        "topk_logprobs": [logprob for entry in logprobs for logprob in entry],
        "tail_logprob": [tail_of(entry) for entry in logprobs],
    }


def tail_of(logprobs: Sequence[float]) -> float:
    """Natural log of the mass that entries leave, where nothing better is known of it."""
    left = 1.0 - float(np.exp(np.asarray(logprobs, np.float64)).sum())
    return float(np.log(max(left, TAIL_FLOOR)))


def filled_up(
    ids: Sequence[int], logprobs: Sequence[float], k: int
) -> tuple[list[int], list[float]]:
    """Bring a position to k entries: further ids, each once, at ``FILLER_LOGPROB``."""
    held = set(ids)
    fillers = [token for token in range(k) if token not in held][: k - len(ids)]
    return [*ids, *fillers], [*logprobs, *([FILLER_LOGPROB] * len(fillers))]


def without_fillers(ids: Sequence[int], logprobs: Sequence[float]) -> tuple[list[int], list[float]]:
    """Undo ``filled_up``; the likeliest entry always stays."""
    num_real = max(1, sum(logprob > FILLER_LOGPROB for logprob in logprobs))
    return list(ids[:num_real]), list(logprobs[:num_real])
