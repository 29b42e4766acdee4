"""The tap inside a real vLLM: every position once, in place, equal to what the model computed.

The engine's ``max_num_batched_tokens`` is 64, so longer prompts are prefilled in chunks.
"""

import asyncio
import operator
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from capture.recorder import IDLE_SECONDS
from capture.schema import Flag
from capture.spool import closed_segments, read_segment
from tests.integration.conftest import Tapped

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

Row = dict[str, Any]
TOLERANCE_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.3}
MEAN_TOLERANCE_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.06}  # logits of 8 have steps of 0.03
TIE_NATS = {torch.float32: 1e-5, torch.bfloat16: 0.3}  # two values, each within a rounding step


def recorded(tapped: Tapped) -> dict[str, list[Row]]:
    """Rows of every closed segment, by exchange."""
    batches = [b for path in closed_segments(tapped.spool) for b in read_segment(path).batches]
    rows: dict[str, list[Row]] = {}
    for row in pa.Table.from_batches(batches).to_pylist() if batches else []:
        rows.setdefault(row["exchange_id"], []).append(row)
    return rows


async def rows_of(tapped: Tapped, exchange_id: str, answer: Row | None = None) -> list[Row]:
    """Wait for an exchange's rows; the longest per choice counts, as it does for readers."""
    told = [len(expected_ids(choice)) for choice in answer["choices"]] if answer else [1]
    deadline = time.monotonic() + IDLE_SECONDS + 60
    while time.monotonic() < deadline:
        found = recorded(tapped).get(exchange_id, [])
        longest: dict[int, Row] = {}
        for row in sorted(found, key=lambda row: len(row["completion_ids"])):
            longest[row["choice"]] = row
        rows = [longest[index] for index in sorted(longest)]
        lengths = [len(row["completion_ids"]) for row in rows]
        if len(lengths) == len(told) and all(map(operator.ge, lengths, told)):
            return rows
        await asyncio.sleep(0.05)
    pytest.fail(f"no rows for {exchange_id}")


async def complete(tapped: Tapped, exchange_id: str, prompt: str, **params: object) -> Row:
    """Ask the engine directly, tagged as the gateway tags."""
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": 24,
        "logprobs": 8,
        "temperature": 0,
        "return_token_ids": True,
        "vllm_xargs": {"retort": exchange_id},
        **params,
    }
    async with httpx.AsyncClient(base_url=tapped.url, timeout=300) as client:
        answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    parsed: Row = answer.json()
    return parsed


def teacher_forced(tapped: Tapped, row: Row) -> np.ndarray:
    """Log-probabilities of every generated position, from transformers."""
    model = AutoModelForCausalLM.from_pretrained(tapped.model, dtype=tapped.dtype)
    ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0]
    first = len(row["prompt_ids"]) - 1
    window = logits[first : first + len(row["completion_ids"])]
    result: np.ndarray = window.double().log_softmax(-1).numpy()
    return result


def assert_true(tapped: Tapped, row: Row) -> None:
    """Compare a row with the model itself."""
    expected = teacher_forced(tapped, row)
    sizes = row["topk_size"]
    assert len(sizes) == len(row["tail_logprob"]) == len(row["completion_ids"])
    assert sum(sizes) == len(row["topk_ids"]) == len(row["topk_logprobs"])
    start = 0
    differences = []
    for position, size in enumerate(sizes):
        ids = row["topk_ids"][start : start + size]
        logprobs = np.array(row["topk_logprobs"][start : start + size])
        start += size
        differences.append(np.abs(logprobs - expected[position][ids]).max())
        tail = 1.0 - np.exp(logprobs).sum()
        assert np.exp(row["tail_logprob"][position]) == pytest.approx(tail, abs=1e-5)
        # The likeliest ids, in order; equal but for rounding where two are next to each other.
        likeliest = np.sort(expected[position])[::-1][:size]
        assert np.abs(expected[position][ids] - likeliest).max() < TIE_NATS[tapped.dtype]
    assert max(differences) < TOLERANCE_NATS[tapped.dtype]
    assert np.mean(differences) < MEAN_TOLERANCE_NATS[tapped.dtype]


def expected_ids(choice: Mapping[str, Any]) -> list[int]:
    ids: list[int] = choice["token_ids"]
    return ids


async def test_mixed_lengths_in_one_batch_with_chunked_prefill(tapped: Tapped) -> None:
    tags = {uuid.uuid4().hex: "word " * words for words in (1, 3, 20, 40, 60, 9, 30, 2)}

    answers = await asyncio.gather(*(complete(tapped, tag, text) for tag, text in tags.items()))

    for tag, answer in zip(tags, answers, strict=True):
        (row,) = await rows_of(tapped, tag, answer)
        assert row["completion_ids"] == expected_ids(answer["choices"][0])
        assert row["prompt_ids"] == answer["choices"][0]["prompt_token_ids"]
        assert row["flags"] == 0
        assert_true(tapped, row)


async def test_rows_equal_the_engines_own_logprobs(tapped: Tapped) -> None:
    tag = uuid.uuid4().hex

    answer = await complete(tapped, tag, "compare me", return_tokens_as_token_ids=True)

    (row,) = await rows_of(tapped, tag, answer)
    start = 0
    for size, top in zip(
        row["topk_size"], answer["choices"][0]["logprobs"]["top_logprobs"], strict=True
    ):
        ours = row["topk_logprobs"][start : start + size]
        ids = row["topk_ids"][start : start + size]
        start += size
        theirs = [top[f"token_id:{token}"] for token in ids]
        assert np.abs(np.array(ours) - np.array(theirs)).max() < TOLERANCE_NATS[tapped.dtype]


async def test_a_cached_prefix_leaves_out_no_position(tapped: Tapped) -> None:
    prompt = "the same long beginning again and again and again " * 4
    await complete(tapped, uuid.uuid4().hex, prompt)
    tag = uuid.uuid4().hex

    answer = await complete(tapped, tag, prompt)

    (row,) = await rows_of(tapped, tag, answer)
    assert row["completion_ids"] == expected_ids(answer["choices"][0])
    assert row["prompt_ids"] == answer["choices"][0]["prompt_token_ids"]
    assert_true(tapped, row)


async def test_preempted_requests_keep_every_position(cramped: Tapped) -> None:
    tags = {uuid.uuid4().hex: f"number {n} " * (1 + n % 4) for n in range(24)}
    # Without seeds: vLLM's CPU engine ends when a seeded request is preempted.
    params = {"max_tokens": 120, "ignore_eos": True, "temperature": 1.0}

    answers = await asyncio.gather(
        *(
            complete(cramped, tag, text, n=1 + n % 2, **params)
            for n, (tag, text) in enumerate(tags.items())
        )
    )

    async with httpx.AsyncClient(base_url=cramped.url) as client:
        metrics = (await client.get("/metrics")).text
    (preempted,) = re.findall(r"^vllm:num_preemptions_total\{.*\} (\S+)$", metrics, re.MULTILINE)
    assert float(preempted) > 0
    for tag, answer in zip(tags, answers, strict=True):
        rows = await rows_of(cramped, tag, answer)
        found = sorted(row["completion_ids"] for row in rows)
        assert found == sorted(map(expected_ids, answer["choices"]))
        for row in rows:
            assert row["flags"] == 0
            assert_true(cramped, row)


async def test_max_tokens_of_one_makes_one_position(tapped: Tapped) -> None:
    tag = uuid.uuid4().hex

    answer = await complete(tapped, tag, "just one", max_tokens=1)

    (row,) = await rows_of(tapped, tag, answer)
    assert row["completion_ids"] == expected_ids(answer["choices"][0])
    assert len(row["topk_size"]) == 1


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.5, "top_p": 0.7, "top_k": 20, "seed": 2},
        {"temperature": 0.3, "min_p": 0.1, "seed": 3},
    ],
)
async def test_sampling_does_not_show_in_the_rows(
    tapped: Tapped, params: dict[str, object]
) -> None:
    tag = uuid.uuid4().hex

    answer = await complete(tapped, tag, "sample this", **params)

    (row,) = await rows_of(tapped, tag, answer)
    assert row["completion_ids"] == expected_ids(answer["choices"][0])
    assert row["flags"] == 0
    assert_true(tapped, row)


async def test_siblings_are_kept_apart(tapped: Tapped) -> None:
    tag = uuid.uuid4().hex

    answer = await complete(tapped, tag, "three of them", n=3, temperature=1.0, seed=5)

    rows = await rows_of(tapped, tag, answer)
    assert [row["completion_ids"] for row in rows] == [
        expected_ids(choice) for choice in answer["choices"]
    ]
    for row in rows:
        assert_true(tapped, row)


async def test_a_stop_string_leaves_a_whole_row(tapped: Tapped) -> None:
    free = await complete(tapped, uuid.uuid4().hex, "stop me", max_tokens=20)
    text = free["choices"][0]["text"]
    tag = uuid.uuid4().hex

    answer = await complete(tapped, tag, "stop me", stop=[text[8:11]], max_tokens=20)

    (row,) = await rows_of(tapped, tag, answer)
    told = expected_ids(answer["choices"][0])
    assert len(told) < 20
    assert row["completion_ids"][: len(told)] == told
    assert_true(tapped, row)


async def test_a_stop_token_ends_the_row(tapped: Tapped) -> None:
    free = await complete(tapped, uuid.uuid4().hex, "halt", max_tokens=20)
    last = expected_ids(free["choices"][0])[6]
    tag = uuid.uuid4().hex

    answer = await complete(tapped, tag, "halt", stop_token_ids=[last])

    (row,) = await rows_of(tapped, tag, answer)
    assert row["completion_ids"] == expected_ids(answer["choices"][0])
    assert row["completion_ids"][-1] == last


async def test_a_client_that_leaves_keeps_what_was_generated(tapped: Tapped) -> None:
    tag = uuid.uuid4().hex
    body = {
        "model": "tiny",
        "prompt": "leave",
        "max_tokens": 400,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "vllm_xargs": {"retort": tag},
    }
    async with (
        httpx.AsyncClient(base_url=tapped.url, timeout=300) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        lines = response.aiter_lines()
        for _ in range(10):
            await anext(lines)

    (row,) = await rows_of(tapped, tag)
    assert 0 < len(row["completion_ids"]) < 400
    assert row["flags"] == 0
    assert_true(tapped, row)


@pytest.mark.parametrize(
    ("params", "flag"),
    [
        ({"allowed_token_ids": [20, 21, 22, 23]}, Flag.MASKED),
        ({"bad_words": ["e"]}, Flag.MASKED),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, Flag.MASKED),
        ({"min_tokens": 5}, Flag.MASKED),
        ({"logit_bias": {"30": 5.0}}, Flag.BIASED),
        ({"presence_penalty": 1.0}, Flag.BIASED),
        ({"repetition_penalty": 1.3}, Flag.BIASED),
    ],
)
async def test_altered_logits_are_flagged(
    tapped: Tapped, params: dict[str, object], flag: Flag
) -> None:
    tag = uuid.uuid4().hex

    await complete(tapped, tag, "alter", **params)

    (row,) = await rows_of(tapped, tag)
    assert row["flags"] == flag


async def test_an_untagged_request_leaves_nothing(tapped: Tapped) -> None:
    before = set(recorded(tapped))
    tag = uuid.uuid4().hex

    await complete(tapped, "unused", "plain", vllm_xargs=None)
    await complete(tapped, tag, "tagged")
    await rows_of(tapped, tag)

    assert set(recorded(tapped)) - before == {tag}
