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
from capture.spool import SegmentWriter
from capture.tap_v1 import DEFERRED_VOCABULARY
from capture.tapping import start_copy
from capture.topk import Candidates, candidates

CONFIG = TapConfig(spool=Path("unused"), model_revision="r", tokenizer_hash="t")
STEPS, FEW_STEPS = 32, 4  # tokens per request
LARGE = 4_000_000  # scores in a step from which few steps will do


def stages(vocabulary: int, batch: int, *, is_sharp: bool) -> dict[str, float]:
    """Microseconds per token of selecting, copying, cutting, encoding and writing.

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
    tops = select(logits)
    rows = assemble(tops)
    encoded = encode_logits(rows)
    with tempfile.TemporaryDirectory() as folder:
        writer = SegmentWriter(Path(folder), "logits", LOGITS, "bench")
        seconds = {
            "select": timed(lambda: select(logits)),
            "copy": timed(lambda: [start_copy(top)() for top in tops]),
            "cut": timed(lambda: assemble(tops)),
            "encode": timed(lambda: encode_logits(rows)),
            "write": timed(lambda: write(writer, encoded)),
        }
    return {name: value / (batch * steps) * 1e6 for name, value in seconds.items()}


def select(logits: Sequence[torch.Tensor]) -> list[Candidates]:
    """Step by step where the vocabulary is large, all steps at once where it is small."""
    is_deferred = logits[0].shape[1] <= DEFERRED_VOCABULARY
    calls = [torch.cat(list(logits))] if is_deferred else logits
    tops = [
        candidates(scores, k_min=CONFIG.k_min, k_max=CONFIG.k_max, mass=CONFIG.mass)
        for scores in calls
    ]
    if not is_deferred:
        return tops
    parts = zip(*(torch.split(part, len(logits[0])) for part in tops[0]), strict=True)
    return [Candidates(*part) for part in parts]


def write(writer: SegmentWriter, batch: pa.RecordBatch) -> None:
    """Append and sync."""
    writer.append(batch)
    if writer.current is not None:
        writer.current.sync()


def assemble(tops: Sequence[Candidates]) -> list[LogitRow]:
    """What the tap's thread makes of the steps of one batch of requests."""
    batch = len(tops[0].ids_RK)
    choices = [
        Choice(str(n), 0, [1], [5] * len(tops), frozenset(), len(tops), Flag(0), touched_at=0.0)
        for n in range(batch)
    ]
    owner_R = np.array([choice.serial for choice in choices])
    rows = [
        Rows(owner_R, np.full(batch, n, np.int32), *start_copy(top)()) for n, top in enumerate(tops)
    ]
    by_serial = {choice.serial: choice for choice in choices}
    for serial, piece in cut(Rows.joined(rows), k_min=CONFIG.k_min, mass=CONFIG.mass):
        by_serial[serial].extend(piece)
    return [choice.to_row(CONFIG, "2026-01-01") for choice in choices]


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call, the second."""
    function()
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
