"""The two tables of the log: columns, types, flags, version.

Every list column of one ``logits`` row is aligned: ``topk_size`` and ``tail_logprob`` hold one
value per generated position, ``topk_ids`` and ``topk_logprobs`` hold ``sum(topk_size)`` values,
position after position, most likely first within a position.

A row with source ``score`` belongs to a shadow exchange: what the candidate makes of the answer
that its incumbent gave, token by token. Its ``completion_ids`` are the incumbent's.
"""

from enum import IntFlag

import pyarrow as pa

SCHEMA_VERSION = 1

EXCHANGES = pa.schema(
    [
        ("exchange_id", pa.string()),
        ("day", pa.string()),  # YYYY-MM-DD, UTC; the partition column
        ("started_at", pa.timestamp("us", tz="UTC")),
        ("route", pa.string()),
        ("deployment", pa.string()),
        ("role", pa.string()),  # incumbent | candidate | shadow
        ("model", pa.string()),
        ("model_revision", pa.string()),
        ("tenant", pa.string()),
        ("key_id", pa.string()),
        ("endpoint", pa.string()),
        ("stream", pa.bool_()),
        ("request", pa.string()),  # JSON
        ("response_text", pa.list_(pa.string())),  # one per choice
        ("tool_calls", pa.string()),  # JSON
        ("params", pa.string()),  # JSON
        ("finish_reason", pa.list_(pa.string())),  # one per choice
        ("status", pa.string()),  # completed | aborted | failed | rejected
        ("http_status", pa.int16()),
        ("error_type", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("ttft_ms", pa.float32()),
        ("duration_ms", pa.float32()),
        ("capture", pa.string()),  # tap | wire | import | rollout | off | redacted: not kept
        ("pair_id", pa.string()),  # the exchange whose prompt a shadow or rollout row answers
        ("schema_version", pa.int16()),
    ]
)

LOGITS = pa.schema(
    [
        ("exchange_id", pa.string()),
        ("day", pa.string()),
        ("choice", pa.int16()),
        ("source", pa.string()),  # tap | wire | import | rollout: by the trainer | score
        ("model_revision", pa.string()),
        ("tokenizer_hash", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("topk_size", pa.list_(pa.int16())),
        ("topk_ids", pa.list_(pa.int32())),
        ("topk_logprobs", pa.list_(pa.float32())),  # natural log, temperature 1
        ("tail_logprob", pa.list_(pa.float32())),  # natural log of the mass outside the top k
        ("tail_draws", pa.list_(pa.int32())),
        ("flags", pa.int32()),
        ("k_max", pa.int16()),
        ("mass", pa.float32()),
        ("schema_version", pa.int16()),
    ]
)

TABLES = {"exchanges": EXCHANGES, "logits": LOGITS}


class Flag(IntFlag):
    """Why a ``logits`` row must not be read as the plain distribution of its model."""

    MASKED = 1  # taken after a grammar, allowed_token_ids or bad_words mask
    BIASED = 2  # taken after logit_bias or penalties
    INCOMPLETE = 4  # positions are not exactly 0..n-1
