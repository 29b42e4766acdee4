"""Rows as traffic leaves them: prompts that are asked again, with the same answer or nearly."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from capture.commit import Committer
from capture.config import CaptureConfig
from capture.revision import tokenizer_hash
from capture.rows import LogitRow
from capture.schema import LOGITS, Flag
from tests.support.log_folders import spool_exchanges, spool_logits
from tests.support.log_rows import exchange_row, logit_row

TEXT = ("prompt_ids", "completion_ids")
NUM_FILES = 4
SYSTEM = np.arange(60, 220, dtype=np.int32)  # what most prompts of the log begin with


def repeated(num_rows: int, seed: int = 0) -> pa.Table:
    """Prompts and answers, each one of a few texts, as it is or with some tokens changed."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(5, 250, (2, rng.integers(30, 80))) for _ in range(1 + num_rows // 4)]
    rows = []
    for text in rng.integers(0, len(texts), num_rows):
        ids = texts[text].copy()
        for _ in range(rng.integers(0, 3)):
            ids[tuple(rng.integers(0, ids.shape))] += 1
        rows.append(dict(zip(TEXT, ids, strict=True)))
    return pa.Table.from_pylist(rows, schema=pa.schema([LOGITS.field(name) for name in TEXT]))


def write_repeated_log(config: CaptureConfig, teacher: Path, num_rows: int) -> None:
    """Make a log of them, two choices of each exchange, in several files.

    All prompts but every seventh begin with ``SYSTEM``. Every eleventh row is flagged. Of every
    fortieth the first file also has a shorter row, which therefore does not count; and of the one
    five behind it the last file has the same once more.
    """
    hashed, table = tokenizer_hash(teacher), repeated(num_rows)
    texts = [[np.array(ids, np.int32) for ids in table[name].to_pylist()] for name in TEXT]
    texts[0] = [
        np.concatenate([SYSTEM, ids]) if number % 7 else ids for number, ids in enumerate(texts[0])
    ]
    rows = [
        replace(_row(number, prompt, answer), tokenizer_hash=hashed)
        for number, (prompt, answer) in enumerate(zip(*texts, strict=True))
    ]
    short = [
        replace(_row(number, row.prompt_ids, row.completion_ids[:9]), tokenizer_hash=hashed)
        for number, row in enumerate(rows)
        if number % 40 == 0
    ]
    for file in range(NUM_FILES):
        chosen = rows[file::NUM_FILES]
        twice = {0: short, NUM_FILES - 1: rows[5::40]}.get(file, [])
        exchanges = (row.exchange_id for row in chosen if row.choice == 0)
        spool_exchanges(config, *(exchange_row(name, texts=("a", "b")) for name in exchanges))
        spool_logits(config, *twice, *chosen)
        Committer(config).commit()


def _row(number: int, prompt_ids: np.ndarray, completion_ids: np.ndarray) -> LogitRow:
    name, flags = hashlib.sha256(bytes([number // 512, number // 2 % 256])).hexdigest(), 0
    if number % 11 == 0:
        flags = Flag.MASKED
    row = logit_row(
        name[:32],
        choice=number % 2,
        sizes=(1,) * len(completion_ids),
        flags=flags,
        seed=number,
    )
    return replace(row, prompt_ids=prompt_ids, completion_ids=completion_ids)
