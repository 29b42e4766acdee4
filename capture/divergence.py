"""How far apart two logged answers to one prompt are, where both have seen the same text."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]
LEAST = 1e-9  # of a rest, of which stored float32 values say no more
PER_POSITION = 1 << 32  # more than any token id


@dataclass(frozen=True, slots=True)
class Side:
    """One logged answer; columns as in the ``logits`` table."""

    prompt_ids: list[int]
    completion_ids: list[int]
    topk_size: list[int]
    topk_ids: list[int]
    topk_logprobs: list[float]


def kl_where_comparable(incumbent: pa.ChunkedArray, candidate: pa.ChunkedArray) -> pa.Array:
    """KL(incumbent || candidate) in nats at each position that can be compared, row by row.

    A position can be compared while both have the same context: up to and with the first token at
    which the two answers part, and nowhere if their prompts differ. What a candidate has scored
    instead of answered has the incumbent's tokens, so all of it can be compared.

    Entries that only one side has kept join the rest of the mass, on both sides; that only ever
    lowers a KL, so this is a lower bound.

    Args:
        incumbent: A struct per row, with the fields of ``Side``; null where nothing was recorded.
        candidate: The same.
    """
    rows = zip(incumbent.to_pylist(), candidate.to_pylist(), strict=True)
    return pa.array([_recorded(*row) for row in rows], pa.list_(pa.float64()))


def _recorded(
    incumbent: dict[str, Any] | None, candidate: dict[str, Any] | None
) -> list[float] | None:
    """One row, None if a side was not recorded."""
    sides = (incumbent, candidate)
    if any(side is None or side["prompt_ids"] is None for side in sides):
        return None
    return token_kl_nats(*(Side(**side) for side in sides if side is not None))


def token_kl_nats(incumbent: Side, candidate: Side) -> list[float]:
    """KL(incumbent || candidate) of one row; see ``kl_where_comparable``."""
    if incumbent.prompt_ids != candidate.prompt_ids:
        return []
    length = _comparable(incumbent.completion_ids, candidate.completion_ids)
    theirs, p = _keyed(incumbent, length)
    ours, q = _keyed(candidate, length)
    shared, at_p, at_q = np.intersect1d(theirs, ours, assume_unique=True, return_indices=True)
    position = shared // PER_POSITION
    p, q = p[at_p], q[at_q]
    total = np.bincount(position, p * np.log(p / q), length)
    left, rest = (np.maximum(1.0 - np.bincount(position, mass, length), LEAST) for mass in (p, q))
    kl: list[float] = np.maximum(total + left * np.log(left / rest), 0.0).tolist()
    return kl


def _comparable(incumbent: list[int], candidate: list[int]) -> int:
    """Positions whose context is the same on both sides."""
    length = min(len(incumbent), len(candidate))
    differs = np.flatnonzero(np.array(incumbent[:length]) != np.array(candidate[:length]))
    return int(differs[0]) + 1 if len(differs) else length


def _keyed(side: Side, length: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Entries of the first positions: a number for each position and token, and probabilities."""
    position = np.repeat(np.arange(length, dtype=np.int64), side.topk_size[:length])
    count = len(position)
    keys = position * PER_POSITION + np.array(side.topk_ids[:count], np.int64)
    return keys, np.exp(np.array(side.topk_logprobs[:count], np.float64))
