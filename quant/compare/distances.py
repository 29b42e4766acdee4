"""How far the prompts of a comparison are from those that training may have seen."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa

from capture.familiarity import Familiarity, prompt_text
from capture.log import Log, Snapshot, query
from quant.compare.rows import Rows
from quant.compare.slices import Floats

FILE = "training.npz"
MOST = 100_000  # prompts of training that are read; their ids are chance, so they are too


def measure_distances(log: Log, rows: Rows, out: Path) -> Floats | None:
    """Measure the compared prompts, and leave what they were measured against.

    Args:
        log: Where the texts are.
        rows: The compared ones, and which may have been trained on.
        out: Folder for ``training.npz``, which a route's cascade reads.

    Returns:
        In nats, by row; None if everything was held out.

    Raises:
        LogError: If the log cannot be read.
    """
    if not rows.training_ids:
        return None
    training = Familiarity.of(_texts(log, rows.snapshot, rows.training_ids[:MOST]))
    training.save(out / FILE)
    texts = _texts(log, rows.snapshot, rows.exchange_ids)
    return np.array([training.distance(text) for text in texts])


def _texts(log: Log, snapshot: Snapshot, ids: Sequence[str]) -> Iterator[str]:
    """Words of the requests, as the gateway would read them, in the order of their exchanges."""
    wanted = pa.table({"wanted": list(dict.fromkeys(ids))})
    sql = "select exchange_id, request from exchanges join wanted on exchange_id = wanted"
    with log.connect(snapshot) as connection:
        connection.register("wanted", wanted)
        found = query(connection, sql)
    request_of = dict(zip(*(found[name].to_pylist() for name in found.column_names), strict=True))
    return (prompt_text(orjson.loads(request_of[each]) or {}) for each in ids)
