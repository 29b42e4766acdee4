"""Rows of the two tables as dataclasses, and their encoding for the spool."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from capture.frames import ROWS_MARK, Rows
from capture.schema import LOGITS, SCHEMA_VERSION

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ExchangeRow:
    """One request and its answer; columns as in ``capture.schema.EXCHANGES``."""

    exchange_id: str
    day: str
    started_at: datetime
    route: str
    deployment: str
    role: str
    model: str
    model_revision: str | None
    tenant: str | None
    key_id: str | None
    endpoint: str
    stream: bool
    request: str
    response_text: list[str]
    tool_calls: str | None
    params: str
    finish_reason: list[str | None]
    status: str
    http_status: int | None
    error_type: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    ttft_ms: float | None
    duration_ms: float
    capture: str
    pair_id: str | None
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class LogitRow:
    """One choice's distributions over n positions; columns as in ``capture.schema.LOGITS``."""

    exchange_id: str
    day: str
    choice: int
    source: str
    model_revision: str
    tokenizer_hash: str
    prompt_ids: Ints
    completion_ids: Ints
    topk_size: npt.NDArray[np.int16]
    topk_ids: Ints
    topk_logprobs: Floats
    tail_logprob: Floats
    tail_draws: Ints
    flags: int
    k_max: int
    mass: float
    schema_version: int = SCHEMA_VERSION

    @property
    def num_bytes(self) -> int:
        """Rough size in memory, for the spool's bound."""
        return 256 + sum(int(getattr(self, name).nbytes) for name in _ARRAYS)


_ARRAYS = tuple(f.name for f in fields(LogitRow) if pa.types.is_list(LOGITS.field(f.name).type))


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def encode_exchanges(rows: Sequence[ExchangeRow]) -> Rows:
    """Return the rows as JSON: the gateway writes them one by one, the committer reads many."""
    body = orjson.dumps(rows, default=_microseconds, option=orjson.OPT_PASSTHROUGH_DATETIME)
    return Rows(ROWS_MARK + body, len(rows))


def _microseconds(moment: object) -> int:
    """A moment as Arrow's timestamps count it."""
    if not isinstance(moment, datetime):
        raise TypeError(f"{type(moment).__name__} is no column's type")
    return (moment - EPOCH) // MICROSECOND


def encode_logits(rows: Sequence[LogitRow]) -> pa.RecordBatch:
    """Return one record batch with a row per choice, without a Python object per token."""
    arrays = [_column(rows, field) for field in LOGITS]
    return pa.record_batch(arrays, schema=LOGITS)


def _column(rows: Sequence[LogitRow], field: pa.Field) -> pa.Array:
    values = [getattr(row, field.name) for row in rows]
    if not pa.types.is_list(field.type):
        return pa.array(values, field.type)
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    flat = np.concatenate(values).astype(field.type.value_type.to_pandas_dtype(), copy=False)
    return pa.ListArray.from_arrays(offsets, pa.array(flat), type=field.type)
