"""Rows of the log for tests."""

import json
from datetime import UTC, datetime

import numpy as np

from capture.rows import ExchangeRow, LogitRow

DAY = "2026-11-24"


def logit_row(
    exchange_id: str = "x",
    *,
    choice: int = 0,
    sizes: tuple[int, ...] = (2, 1, 3),
    flags: int = 0,
    day: str = DAY,
    seed: int = 0,
) -> LogitRow:
    """A choice with ``sizes[i]`` entries at position i and values drawn by ``seed``."""
    random = np.random.default_rng(seed)
    total = sum(sizes)
    return LogitRow(
        exchange_id=exchange_id,
        day=day,
        choice=choice,
        source="tap",
        model_revision="rev",
        tokenizer_hash="tok",
        prompt_ids=np.arange(1, 4, dtype=np.int32),
        completion_ids=random.integers(0, 150_000, len(sizes), dtype=np.int32),
        topk_size=np.array(sizes, np.int16),
        topk_ids=random.integers(0, 150_000, total, dtype=np.int32),
        topk_logprobs=-random.exponential(2.0, total).astype(np.float32),
        tail_logprob=-random.exponential(5.0, len(sizes)).astype(np.float32),
        tail_draws=np.empty(0, np.int32),
        flags=flags,
        k_max=64,
        mass=0.995,
    )


def exchange_row(
    exchange_id: str = "x",
    *,
    day: str = DAY,
    status: str = "completed",
    texts: tuple[str, ...] = ("hello",),
    completion_tokens: int | None = 3,
    tenant: str | None = None,
) -> ExchangeRow:
    """An exchange with one answer per text."""
    return ExchangeRow(
        exchange_id=exchange_id,
        day=day,
        started_at=datetime.fromisoformat(f"{day}T12:00:00+00:00").astimezone(UTC),
        route="support",
        deployment="teacher",
        role="incumbent",
        model="teacher",
        model_revision="rev",
        tenant=tenant,
        key_id=None,
        endpoint="/v1/chat/completions",
        stream=False,
        request=json.dumps({"model": "support"}),
        response_text=list(texts),
        tool_calls=None,
        params="{}",
        finish_reason=["stop" for _ in texts],
        status=status,
        http_status=200,
        error_type=None,
        prompt_tokens=3,
        completion_tokens=completion_tokens,
        ttft_ms=1.5,
        duration_ms=20.0,
        capture="tap",
        pair_id=None,
    )
