"""The adaptive top k of a row of scores on a CPU, compiled: two sweeps, nothing written.

Shape suffixes: R rows, V vocabulary, N blocks, B entries of a block, C chunks, K candidates,
E kept entries of all rows, D draws.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

from capture.adaptive import TAIL_FLOOR, Limits, Sizes
from capture.rows import Floats, Ints

Doubles = npt.NDArray[np.float64]
FEW = 8  # candidates that most distributions need no more than
CHUNK = 64  # entries with one maximum
BLOCK = 256  # entries whose masses are added up in float32
SMALL_TAIL = 1e-2  # below it, what is left of 1 has lost its digits
LOG2_E = np.float32(math.log2(math.e))
LOWEST = np.float32(-126.0)  # 2 ** -126 is the smallest normal number
NOTHING = np.float32(-math.inf)
P = ParamSpec("P")
T = TypeVar("T")
NO_TOKEN = -1  # drawn from a tail without any mass


class Kept(NamedTuple):
    """What is kept of R rows.

    Attributes:
        size_R: Kept entries per row.
        tail_R: Natural log of the mass outside them.
        ids_E: Kept token ids, row after row, most likely first.
        logprobs_E: Their natural-log probabilities at temperature 1.
        draws_RD: Token ids drawn from the tail, with replacement.
    """

    size_R: Sizes
    tail_R: Floats
    ids_E: Ints
    logprobs_E: Floats
    draws_RD: Ints


def compiled(*fastmath: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Compile a function, once for all processes where the result can be kept on disk."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        try:
            made: Callable[P, T] = njit(cache=True, fastmath=set(fastmath))(function)
        except RuntimeError:  # nowhere to write, as in a read-only container
            made = njit(fastmath=set(fastmath))(function)
        return made

    return decorate


@compiled()
def search(
    scores: Floats,
    first_R: npt.NDArray[np.int64],
    vocabulary: int,
    limits: Limits,
    draw_RD: Doubles,
) -> tuple[Sizes, Floats, Ints, Floats, Ints]:
    """Keep the fewest entries of each row that reach the mass.

    Args:
        scores: Rows behind each other, float32; nothing need be finite.
        first_R: Where each row begins, int64.
        vocabulary: Entries of a row.
        limits: Of the entries kept.
        draw_RD: Uniform numbers in ``[0, 1)``, one for each draw from a tail.

    Returns:
        The fields of ``Kept``.
    """
    k_min, k_max, mass = limits
    k_max = min(k_max, vocabulary)
    size_R = np.empty(len(first_R), np.int16)
    tail_R = np.empty(len(first_R), np.float32)
    draws_RD = np.empty(draw_RD.shape, np.int32)
    ids_E = np.empty(len(first_R) * k_max, np.int32)
    logprobs_E = np.empty(len(ids_E), np.float32)
    maxima_C = np.empty((vocabulary + CHUNK - 1) // CHUNK, np.float32)
    peak_N = np.empty((vocabulary + BLOCK - 1) // BLOCK)
    mass_N = np.empty(len(peak_N))
    end = 0
    for row in range(len(first_R)):
        scores_V = scores[first_R[row] : first_R[row] + vocabulary]
        norm = _log_sum(scores_V, maxima_C, peak_N, mass_N)
        ids_K, logprobs_K = ids_E[end : end + k_max], logprobs_E[end : end + k_max]
        few = min(max(FEW, k_min), k_max)
        size, kept = _keep(scores_V, maxima_C, norm, (k_min, few, mass), ids_K, logprobs_K)
        if kept < mass and few < k_max:
            most = (k_min, k_max, mass)
            size, kept = _keep(scores_V, maxima_C, norm, most, ids_K, logprobs_K)
        tail = 1.0 - kept
        if tail < SMALL_TAIL or draw_RD.shape[1]:
            mass_N *= np.exp(peak_N - norm)
            tail = _sum_tail(scores_V, norm, ids_K[:size], mass_N)
            if draw_RD.shape[1]:
                _draw(scores_V, norm, ids_K[:size], mass_N, draw_RD[row], draws_RD[row])
        size_R[row], tail_R[row] = size, math.log(max(tail, TAIL_FLOOR))
        end += size
    return size_R, tail_R, ids_E[:end].copy(), logprobs_E[:end].copy(), draws_RD


@compiled()
def _log_sum(scores_V: Floats, maxima_C: Floats, peak_N: Doubles, mass_N: Doubles) -> float:
    """Return the natural log of the sum of exponentials.

    Notes the maximum of every chunk, and of every block the maximum and the mass relative to it.
    """
    for block in range(len(peak_N)):
        first, chunk = block * BLOCK, block * BLOCK // CHUNK
        block_B = scores_V[first : first + BLOCK]
        peak = NOTHING
        for start in range(0, len(block_B), CHUNK):
            maxima_C[chunk] = _maximum(block_B[start : start + CHUNK])
            peak = max(peak, maxima_C[chunk])
            chunk += 1
        peak_N[block] = peak
        mass_N[block] = _mass(block_B, peak) if peak > NOTHING else 0.0
    top = peak_N.max()
    return top + math.log((mass_N * np.exp(peak_N - top)).sum())


@compiled()
def _keep(
    scores_V: Floats,
    maxima_C: Floats,
    norm: float,
    limits: tuple[int, int, float],
    ids_K: Ints,
    logprobs_K: Floats,
) -> tuple[int, float]:
    """Fill in a row's kept entries among the likeliest few; how many, and their mass."""
    k_min, few, mass = limits
    found, least = 0, NOTHING
    for chunk in range(len(maxima_C)):
        if found == few and not maxima_C[chunk] > least:
            continue
        first = chunk * CHUNK
        for token in range(first, min(first + CHUNK, len(scores_V))):
            if found < few or scores_V[token] > least:
                found = _insert(token, scores_V[token], found, few, ids_K, logprobs_K)
                least = logprobs_K[found - 1]
    size, kept = 0, 0.0
    while size < found and (size < k_min or kept < mass):
        logprob = logprobs_K[size] - norm
        kept += math.exp(logprob)
        logprobs_K[size] = logprob
        size += 1
    return size, kept


@compiled()
def _insert(token: int, score: float, found: int, few: int, ids_K: Ints, scores_K: Floats) -> int:
    """Put an entry in its place among the likeliest few; how many there are."""
    place = min(found, few - 1)
    while place > 0 and scores_K[place - 1] < score:
        scores_K[place], ids_K[place] = scores_K[place - 1], ids_K[place - 1]
        place -= 1
    scores_K[place], ids_K[place] = score, token
    return min(found + 1, few)


@compiled()
def _sum_tail(scores_V: Floats, norm: float, ids_K: Ints, mass_N: Doubles) -> float:
    """Return the mass outside the kept entries, summed up by itself, which keeps its digits.

    Takes the kept entries' share out of the blocks they are in.
    """
    block_B = np.empty(BLOCK, np.float32)
    for token in ids_K:
        block = token // BLOCK
        peak = _tail_block(scores_V, block, ids_K, block_B)
        mass_N[block] = _mass(block_B, peak) * math.exp(peak - norm) if peak > NOTHING else 0.0
    return mass_N.sum()


@compiled()
def _draw(
    scores_V: Floats, norm: float, ids_K: Ints, mass_N: Doubles, draw_D: Doubles, draws_D: Ints
) -> None:
    """Draw from the tail: first a block, then an entry of it."""
    block_B = np.empty(BLOCK, np.float32)
    upto_N = mass_N.cumsum()
    draws_D[:] = NO_TOKEN
    for place in range(len(draws_D) if upto_N[-1] > 0.0 else 0):
        wanted = draw_D[place] * upto_N[-1]
        block = min(np.searchsorted(upto_N, wanted, "right"), len(mass_N) - 1)
        _tail_block(scores_V, block, ids_K, block_B)
        wanted -= upto_N[block] - mass_N[block]
        draws_D[place] = block * BLOCK + _reach(block_B, norm, wanted)


@compiled()
def _tail_block(scores_V: Floats, block: int, ids_K: Ints, block_B: Floats) -> float:
    """Copy a block without the kept entries; its maximum."""
    first = block * BLOCK
    block_B[:] = NOTHING
    part_B = scores_V[first : first + BLOCK]
    block_B[: len(part_B)] = part_B
    for token in ids_K:
        if first <= token < first + BLOCK:
            block_B[token - first] = NOTHING
    return _maximum(block_B)


@compiled()
def _reach(block_B: Floats, norm: float, wanted: float) -> int:
    """Return the entry at which a block's mass passes what is wanted, or its last with any."""
    last, total = 0, 0.0
    for entry in range(len(block_B)):
        if block_B[entry] > NOTHING:
            last = entry
            total += math.exp(block_B[entry] - norm)
            if total > wanted:
                break
    return last


@compiled("nnan", "nsz")
def _maximum(scores_B: Floats) -> float:
    top = NOTHING
    for score in scores_B:
        top = max(top, score)
    return top  # type: ignore[return-value]


@compiled("reassoc", "contract", "nsz")
def _mass(scores_B: Floats, top: float | np.float32) -> float:
    """Return the sum of ``exp(score - top)`` for scores up to ``top``, relative error 3e-7.

    Two to the power of a whole number is a matter of bits, the rest is Taylor's series; the
    compiler computes several entries at once, which it cannot with the library's ``exp``.
    """
    total = np.float32(0.0)
    for score in scores_B:
        power = max((score - top) * LOG2_E, LOWEST)
        whole = np.int32(power - np.float32(0.5))
        part = power - np.float32(whole)
        series = np.float32(1.5403530e-4)
        series = series * part + np.float32(1.3333558e-3)
        series = series * part + np.float32(9.6181291e-3)
        series = series * part + np.float32(5.5504109e-2)
        series = series * part + np.float32(2.4022651e-1)
        series = series * part + np.float32(6.9314718e-1)
        series = series * part + np.float32(1.0)
        total += series * np.int32((whole + 127) << 23).view(np.float32)
    return float(total)
