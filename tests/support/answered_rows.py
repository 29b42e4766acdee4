"""Rows as the log's ``examples`` view gives them, answered by a tiny model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForCausalLM

from capture.adaptive import Limits, kept_sizes, tail_logprobs
from capture.commit import Committer
from capture.config import CaptureConfig
from capture.revision import model_revision, tokenizer_hash
from capture.rows import encode_exchanges
from capture.schema import LOGITS, SCHEMA_VERSION, TABLES
from capture.spool import SegmentWriter
from capture.store import LogFolder
from capture.topk import candidates
from tests.support.log_rows import DAY, exchange_row

COLUMNS = [
    *("exchange_id", "choice", "model_revision", "tokenizer_hash", "prompt_ids"),
    *("completion_ids", "topk_size", "topk_ids", "topk_logprobs", "tail_logprob", "tail_draws"),
]
NUM_DRAWS = 2


@torch.inference_mode()
def answer(teacher: Path, num_rows: int, *, seed: int = 0, tokens: int = 6) -> pa.Table:
    """Ask random prompts of 3 to 8 tokens and keep adaptive top 16 of each sampled answer."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    random = torch.Generator().manual_seed(seed)
    of_draws = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(num_rows):
        length = int(torch.randint(3, 9, (1,), generator=random))
        ids = torch.randint(5, model.config.vocab_size, (1, length), generator=random)
        for _ in range(tokens):
            probs = model(ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probs, 1, generator=random)], dim=1)
        logits = model(ids).logits[0, length - 1 : -1]
        top = candidates(logits, Limits(1, 16, 0.9))
        top_ids, top_logprobs = top.ids_RK.numpy(), top.logprobs_RK.numpy()
        sizes = kept_sizes(top_logprobs, k_min=1, mass=0.9)
        is_kept = np.arange(top_ids.shape[1]) < sizes[:, None]
        rows.append(
            {
                "exchange_id": f"x{number:04}",
                "choice": 0,
                "model_revision": model_revision(teacher),
                "tokenizer_hash": tokenizer_hash(teacher),
                "prompt_ids": ids[0, :length].numpy(),
                "completion_ids": ids[0, length:].numpy(),
                "topk_size": sizes,
                "topk_ids": top_ids[is_kept],
                "topk_logprobs": top_logprobs[is_kept],
                "tail_logprob": tail_logprobs(top_logprobs, sizes),
                "tail_draws": drawn(logits, top_ids, is_kept, of_draws).numpy(),
            }
        )
    fields = [LOGITS.field(name) for name in COLUMNS]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def drawn(
    logits: torch.Tensor, top_ids: np.ndarray, is_kept: np.ndarray, random: torch.Generator
) -> torch.Tensor:
    """Ids from outside the entries of each position, in proportion to their mass."""
    probs = logits.softmax(-1)
    for row, (ids, kept) in enumerate(zip(top_ids, is_kept, strict=True)):
        probs[row, ids[kept]] = 0.0
    return torch.multinomial(probs, NUM_DRAWS, replacement=True, generator=random).flatten().int()


def write_log(
    table: pa.Table,
    log: LogFolder,
    spool: Path,
    flags: Sequence[int] | None = None,
    requests: Sequence[str] | None = None,
) -> None:
    """Put answered rows into a log, each as one exchange of one choice; none flagged by default."""
    exchanges = [exchange_row(row["exchange_id"]) for row in table.to_pylist()]
    if requests is not None:
        pairs = zip(exchanges, requests, strict=True)
        exchanges = [replace(one, request=request) for one, request in pairs]
    logits = table.append_column(LOGITS.field("day"), [pa.array([DAY] * len(table))])
    missing = {"source": "tap", "k_max": 16, "mass": 0.9, "schema_version": SCHEMA_VERSION}
    columns = {name: [value] * len(table) for name, value in missing.items()}
    columns["flags"] = list(flags or [0] * len(table))
    for name, values in columns.items():
        column = pa.array(values, LOGITS.field(name).type)
        logits = logits.append_column(LOGITS.field(name), column)
    batches = {
        "exchanges": encode_exchanges(exchanges),
        "logits": logits.select(LOGITS.names).combine_chunks().to_batches()[0],
    }
    spool.mkdir()
    for name, batch in batches.items():
        writer = SegmentWriter(spool, name, TABLES[name], spool.name)
        writer.append(batch)
        writer.rotate()
    Committer(CaptureConfig(log=log, spool=spool)).commit()
