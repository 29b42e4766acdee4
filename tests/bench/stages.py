"""Where the tap's time goes: each of its stages alone, on one thread."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from capture.choice import Choice, TapConfig
from capture.piece import Rows, cut
from capture.rows import LogitRow, encode_logits
from capture.schema import LOGITS, Flag
from capture.search import search
from capture.spool import SegmentWriter

CONFIG = TapConfig(spool=Path("unused"), model_revision="r", tokenizer_hash="t")
STEPS, FEW_STEPS = 32, 4  # tokens per request
LARGE = 4_000_000  # scores in a step from which few steps will do


def stages(vocabulary: int, batch: int, *, is_sharp: bool) -> dict[str, float]:
    """Microseconds per token of selecting, copying, cutting, encoding and writing.

    Beside them ``argmax`` alone, which is what greedy sampling does with the same scores.

    Args:
        vocabulary: Its size.
        batch: Requests in one engine step.
        is_sharp: Whether one token has nearly all the mass, as in a trained model's answers; else
            the distribution is that of random weights.
    """
    torch.set_num_threads(1)
    steps = STEPS if vocabulary * batch < LARGE else FEW_STEPS
    random = torch.Generator().manual_seed(0)
    logits = [torch.randn(batch, vocabulary, generator=random) for _ in range(steps)]
    if is_sharp:
        for scores in logits:
            scores[:, 0] = 20.0
    steps_rows = select(logits)
    joined = Rows.joined(steps_rows)
    rows = assemble(joined, batch)
    encoded = encode_logits(rows)
    with tempfile.TemporaryDirectory() as folder:
        writer = SegmentWriter(Path(folder), "logits", LOGITS, "bench")
        seconds = {
            "argmax": timed(lambda: [scores.argmax(-1) for scores in logits]),
            "select": timed(lambda: select(logits)),
            "copy": timed(lambda: Rows.joined(steps_rows)),
            "cut": timed(lambda: assemble(joined, batch)),
            "encode": timed(lambda: encode_logits(rows)),
            "write": timed(lambda: write(writer, encoded)),
        }
    return {name: value / (batch * steps) * 1e6 for name, value in seconds.items()}


def select(logits: Sequence[torch.Tensor]) -> list[Rows]:
    """What the engine's thread does in each step."""
    num_rows, vocabulary = logits[0].shape
    first_R = vocabulary * np.arange(num_rows)
    no_draws = np.empty((num_rows, 0))
    kept = [
        search(scores.numpy().ravel(), first_R, vocabulary, CONFIG.limits, no_draws)
        for scores in logits
    ]
    owner_R = np.arange(num_rows)
    return [
        Rows(owner_R, np.full(num_rows, step, np.int32), *of_step)
        for step, of_step in enumerate(kept)
    ]


def write(writer: SegmentWriter, batch: pa.RecordBatch) -> None:
    """Append and sync."""
    writer.append(batch)
    if writer.current is not None:
        writer.current.sync()


def assemble(rows: Rows, batch: int) -> list[LogitRow]:
    """What the tap's thread makes of the steps of one batch of requests."""
    steps = len(rows.owner_R) // batch
    choices = [
        Choice(str(n), 0, [1], [5] * steps, frozenset(), steps, Flag(0), touched_at=0.0)
        for n in range(batch)
    ]
    for owner, piece in cut(rows):
        choices[owner].extend(piece)
    return [choice.to_row(CONFIG, "2026-01-01") for choice in choices]


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call, the second."""
    function()
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
