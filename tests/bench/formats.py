"""The same captured tokens in other programs' layouts: how many bytes each takes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from capture.rows import LogitRow


@dataclass(frozen=True, slots=True)
class DistillKitLayout:
    """One of DistillKit's published configurations; fixed k, nothing kept of the tail."""

    k: int
    exact: int
    terms: int

    def bytes_per_token(self, vocabulary: int) -> int:
        """Bit-packed ids, exact bfloat16 logprobs, float32 coefficients of a polynomial.

        Source:
            arcee-ai/DistillKit, ``distillkit/compression``, ``total_bits()``; list overhead and
            ``input_ids`` not counted.
        """
        id_bits = math.ceil(math.log2(vocabulary))
        return math.ceil(self.k * id_bits / 8) + 2 * self.exact + 4 * self.terms


RECOMMENDED = DistillKitLayout(k=128, exact=16, terms=6)
BUDGET = DistillKitLayout(k=50, exact=1, terms=3)


def json_bytes(rows: Sequence[LogitRow]) -> tuple[int, int]:
    """Size of one OpenAI chat ``logprobs`` object per line: plain, and under zstd."""
    plain = 0
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as compressed:
        for row in rows:
            line = orjson.dumps({"logprobs": {"content": list(_content(row))}}) + b"\n"
            plain += len(line)
            compressed.write(line)
    return plain, sink.getvalue().size


def _content(row: LogitRow) -> Iterator[dict[str, object]]:
    ends = np.cumsum(row.topk_size, dtype=np.int64).tolist()
    ids, logprobs = row.topk_ids.tolist(), row.topk_logprobs.tolist()
    for token, start, end in zip(row.completion_ids.tolist(), [0, *ends[:-1]], ends, strict=True):
        top = [_entry(*pair) for pair in zip(ids[start:end], logprobs[start:end], strict=True)]
        yield {**_entry(token, logprobs[start]), "top_logprobs": top}


def _entry(token: int, logprob: float) -> dict[str, object]:
    return {"token": f"token_id:{token}", "logprob": logprob, "bytes": None}


def nested_bytes(rows: Sequence[LogitRow], path: Path) -> int:
    """Size of lists of lists in a Parquet file with pyarrow's default settings."""
    table = pa.table(
        {
            "prompt_ids": pa.array([row.prompt_ids for row in rows]),
            "completion_ids": pa.array([row.completion_ids for row in rows]),
            "topk_ids": _nested([row.topk_ids for row in rows], rows),
            "topk_logprobs": _nested([row.topk_logprobs for row in rows], rows),
            "tail_logprob": pa.array([row.tail_logprob for row in rows]),
        }
    )
    pq.write_table(table, path)
    return path.stat().st_size


def _nested(values: Sequence[np.ndarray], rows: Sequence[LogitRow]) -> pa.ListArray:
    sizes = np.concatenate([row.topk_size for row in rows])
    lengths = [len(row.topk_size) for row in rows]
    entry = np.append(0, np.cumsum(sizes, dtype=np.int64)).astype(np.int32)
    line = np.append(0, np.cumsum(lengths)).astype(np.int32)
    inner = pa.ListArray.from_arrays(entry, np.concatenate(values))
    return pa.ListArray.from_arrays(line, inner)
