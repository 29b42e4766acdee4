"""What a tap under test wrote, as readers take it."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from capture.recovery import recover
from capture.spool import closed_segments, read_segment

SETTINGS = {"model_revision": "rev", "tokenizer_hash": "tok", "k_max": 8, "mass": 0.9}


def rows(spool: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The longest row of every choice."""
    recover(spool)
    batches = [b for path in closed_segments(spool) for b in read_segment(path).batches]
    found = pa.Table.from_batches(batches).to_pylist()
    found.sort(key=lambda row: len(row["completion_ids"]))
    return {(row["exchange_id"], row["choice"]): row for row in found}


def assert_drawn_from_tail(row: dict[str, Any], *, num_draws: int, vocabulary: int) -> None:
    """Each position has its own draws, none of them an entry that was kept."""
    assert len(row["tail_draws"]) == num_draws * len(row["completion_ids"])
    start = 0
    for position, size in enumerate(row["topk_size"]):
        kept = set(row["topk_ids"][start : start + size])
        start += size
        drawn = row["tail_draws"][position * num_draws : (position + 1) * num_draws]
        assert all(0 <= token < vocabulary and token not in kept for token in drawn)
