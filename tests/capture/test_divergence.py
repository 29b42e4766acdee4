"""KL of two logged answers, where they can be compared."""

import math
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.divergence import Side, kl_where_comparable

VOCABULARY = 12


def kl(incumbent: tuple[object, ...], candidate: tuple[object, ...]) -> list[float]:
    names = [field.name for field in fields(Side)]
    sides = (pa.array([dict(zip(names, s, strict=True))]) for s in (incumbent, candidate))
    (found,) = kl_where_comparable(*sides).to_pylist()
    return list(found)


def side(
    distributions: list[list[float]],
    kept: int,
    completion: list[int],
    prompt: tuple[int, ...] = (1,),
) -> tuple[object, ...]:
    """What is logged of full distributions: the likeliest entries of each position."""
    order = [np.argsort(-np.array(p), kind="stable")[:kept] for p in distributions]
    ids = [int(token) for tokens in order for token in tokens]
    logprobs = [
        math.log(p[token])
        for p, tokens in zip(distributions, order, strict=True)
        for token in tokens
    ]
    return list(prompt), completion, [kept] * len(distributions), ids, logprobs


@st.composite
def distribution(draw: st.DrawFn) -> list[float]:
    weights = draw(st.lists(st.floats(0.01, 1), min_size=VOCABULARY, max_size=VOCABULARY))
    return [weight / sum(weights) for weight in weights]


@given(distribution(), distribution(), st.integers(1, VOCABULARY))
def test_it_lies_between_zero_and_the_full_kl(p: list[float], q: list[float], kept: int) -> None:
    full = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    (found,) = kl(side([p], kept, [1]), side([q], kept, [2]))

    assert 0 <= found <= full + 1e-6
    if kept == VOCABULARY:
        assert found == pytest.approx(full, abs=1e-6)


@given(distribution(), st.integers(1, VOCABULARY))
def test_of_a_model_with_itself_it_is_nothing(p: list[float], kept: int) -> None:
    assert kl(side([p, p], kept, [3, 4]), side([p, p], kept, [3, 4])) == pytest.approx([0, 0])


def test_it_ends_behind_the_token_at_which_the_answers_part() -> None:
    p = [1 / VOCABULARY] * VOCABULARY
    incumbent = side([p] * 4, 2, [7, 8, 9, 1])

    assert len(kl(incumbent, side([p] * 4, 2, [7, 8, 5, 1]))) == 3
    assert len(kl(incumbent, side([p] * 4, 2, [7, 8, 9, 1]))) == 4
    assert len(kl(incumbent, side([p] * 2, 2, [7, 8]))) == 2
    assert kl(incumbent, side([], 2, [])) == []


def test_prompts_that_differ_cannot_be_compared() -> None:
    p = [1 / VOCABULARY] * VOCABULARY

    assert kl(side([p], 2, [7]), side([p], 2, [7], prompt=(1, 2))) == []
