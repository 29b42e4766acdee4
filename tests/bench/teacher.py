"""Distributions as peaked as a real teacher's, over a vocabulary no small model has.

Shape suffixes: N positions, E ranks whose probability is drawn one by one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capture.adaptive import kept_sizes, tail_logprobs
from capture.config import CaptureConfig
from capture.rows import Ints, LogitRow
from tests.support.log_rows import DAY

Doubles = npt.NDArray[np.float64]
VOCABULARY = 151_936
NUM_RANKS = 256
PROMPT_TOKENS = 40  # mean
COMPLETION_TOKENS = 128  # mean


@dataclass(frozen=True, slots=True)
class Traffic:
    """How sure the teacher is.

    Attributes:
        sure_share: Positions whose likeliest token alone holds 0.99 of the mass.
        flat_share: Positions whose mass is spread over thousands of tokens.
        source: What the figures rest on.
    """

    sure_share: float
    flat_share: float
    source: str


SERVED = Traffic(
    0.88,
    0.007,
    "generated: 88 % of positions need one entry for mass 0.99, 0.005 of the mass lies outside "
    "the top 64 on average, a few positions are flat (as measured on trained teachers' own "
    "answers); Zipfian ids over 151,936 tokens",
)
FLATTER = Traffic(
    0.55,
    0.05,
    "generated as a stress: 55 % of positions need one entry for mass 0.99, about 0.04 of the "
    "mass lies outside the top 64; Zipfian ids over 151,936 tokens",
)


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """One completion with what is lost on its way to the log.

    Attributes:
        row: As the tap hands it to the spool.
        exact_logprobs: Of the kept entries, in float64 and in the row's order.
        exact_tail: Mass outside the kept entries, per position.
        tail_entropy: Entropy of the distribution inside that tail, nats, per position.
        is_sure: Whether one entry holds 0.99 of the mass, per position.
        outside: Mass outside the ``k_max`` likeliest, per position.
    """

    row: LogitRow
    exact_logprobs: Doubles
    exact_tail: Doubles
    tail_entropy: Doubles
    is_sure: npt.NDArray[np.bool_]
    outside: Doubles


def answers(traffic: Traffic, num_tokens: int, seed: int = 0) -> Iterator[Answered]:
    """Yield completions until they hold ``num_tokens`` positions."""
    rng = np.random.default_rng(seed)
    config = CaptureConfig()
    number = 0
    while num_tokens > 0:
        length = min(num_tokens, 1 + int(rng.exponential(COMPLETION_TOKENS)))
        yield _answer(rng, traffic, length, f"x{number:07}", config)
        number += 1
        num_tokens -= length


def _answer(
    rng: np.random.Generator, traffic: Traffic, length: int, name: str, config: CaptureConfig
) -> Answered:
    probs_NE = probabilities(rng, traffic, length)
    candidates_NK = np.log(probs_NE[:, : config.k_max]).astype(np.float32)
    size_N = kept_sizes(candidates_NK, k_min=config.k_min, mass=config.mass)
    is_kept_NE = np.arange(NUM_RANKS) < size_N[:, None]
    ids_NE = token_ids(rng, length)
    sampled_N = np.minimum((probs_NE.cumsum(1) < rng.random((length, 1))).sum(1), NUM_RANKS - 1)
    row = LogitRow(
        exchange_id=name,
        day=DAY,
        choice=0,
        source="tap",
        model_revision="0123456789abcdef",
        tokenizer_hash="fedcba9876543210",
        prompt_ids=_zipfian(rng, (1 + int(rng.exponential(PROMPT_TOKENS)),)),
        completion_ids=ids_NE[np.arange(length), sampled_N],
        topk_size=size_N,
        topk_ids=ids_NE[is_kept_NE],
        topk_logprobs=candidates_NK[is_kept_NE[:, : config.k_max]],
        tail_logprob=tail_logprobs(candidates_NK, size_N),
        tail_draws=np.empty(0, np.int32),
        flags=0,
        k_max=config.k_max,
        mass=config.mass,
    )
    tail_N = 1.0 - np.where(is_kept_NE, probs_NE, 0.0).sum(1)
    return Answered(
        row,
        np.log(probs_NE[is_kept_NE]),
        tail_N,
        _tail_entropy(probs_NE, is_kept_NE, tail_N),
        probs_NE[:, 0] >= 0.99,
        1.0 - probs_NE[:, : config.k_max].sum(1),
    )


def probabilities(rng: np.random.Generator, traffic: Traffic, num_positions: int) -> Doubles:
    """Draw the ``NUM_RANKS`` likeliest tokens' probabilities, likeliest first.

    A power law of the rank with random gaps; what is left lies evenly on the other tokens.
    """
    kind_N = rng.random(num_positions)
    is_sure = kind_N < traffic.sure_share
    is_flat = kind_N > 1.0 - traffic.flat_share
    slope_N = np.where(
        is_flat, rng.uniform(0.9, 1.2, num_positions), rng.uniform(2.0, 4.0, len(kind_N))
    )
    ranks = np.arange(1, NUM_RANKS + 1)
    gaps_NE = rng.exponential(1.0, (num_positions, NUM_RANKS)) * np.log((ranks + 1) / ranks)
    weights_NE = np.exp(-slope_N[:, None] * (gaps_NE.cumsum(1) - gaps_NE[:, :1]))
    growth_N = 1.0 - slope_N
    ratio_N = ((VOCABULARY / NUM_RANKS) ** growth_N - 1.0) / growth_N
    rest_N = weights_NE[:, -1] * NUM_RANKS * ratio_N
    probs_NE: Doubles = weights_NE / (weights_NE.sum(1) + rest_N)[:, None]
    first_N = np.where(is_sure, 1.0 - 10.0 ** -rng.uniform(2.0, 7.0, num_positions), probs_NE[:, 0])
    probs_NE[:, 1:] *= ((1.0 - first_N) / (1.0 - probs_NE[:, 0]))[:, None]
    probs_NE[:, 0] = first_N
    return probs_NE


def token_ids(rng: np.random.Generator, num_positions: int) -> Ints:
    """Draw each position's ids by rank, Zipfian; a repeated one is drawn anew from all."""
    ids_NE = _zipfian(rng, (num_positions, NUM_RANKS))
    while True:
        order_NE = np.argsort(ids_NE, axis=1, kind="stable")
        ordered_NE = np.take_along_axis(ids_NE, order_NE, axis=1)
        line, place = np.nonzero(ordered_NE[:, 1:] == ordered_NE[:, :-1])
        if not len(line):
            return ids_NE
        ids_NE[line, order_NE[line, place + 1]] = rng.integers(0, VOCABULARY, len(line))


def _zipfian(rng: np.random.Generator, shape: tuple[int, ...]) -> Ints:
    ids: Ints = (np.exp(rng.random(shape) * np.log(VOCABULARY)) - 1.0).astype(np.int32)
    return ids


def _tail_entropy(probs_NE: Doubles, is_kept_NE: npt.NDArray[np.bool_], tail_N: Doubles) -> Doubles:
    """Entropy of the tail as a distribution by itself."""
    even_N = np.maximum(1.0 - probs_NE.sum(1), 1e-300)
    surprise_NE = np.where(is_kept_NE, 0.0, -probs_NE * np.log(probs_NE))
    total_N = surprise_NE.sum(1) - even_N * np.log(even_N / (VOCABULARY - NUM_RANKS))
    entropy_N: Doubles = total_N / tail_N + np.log(tail_N)
    return entropy_N
