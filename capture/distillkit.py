"""Examples for DistillKit: a folder with Parquet files and the compression settings they need.

Each position has k entries at exact float32 (``exact_k`` = k, no polynomial), ids packed at
``ceil(log2 d)`` bits. Entry i belongs to token i + 1, so a sequence has one fewer than tokens.

Lost to DistillKit: the tail (it takes what the entries leave), the adaptive k (positions are
filled up with entries of probability e**-80), and where the prompt ends: positions of the prompt
say that its own next token was certain. The file ``.retort.parquet`` beside the data, which its
loader does not look at, keeps what an import needs to be whole but the tail, which comes back as
what the entries leave. Without it every token but the first counts as the completion.

Source:
    arcee-ai/DistillKit, ``distillkit/compression`` and ``distillkit/sample_common.py``.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from capture.errors import LogError
from capture.examples import EXAMPLES, PLAIN, Row, filled_up, joined, positions, without_fillers

SETTINGS, IDENTITY = "compression_config.yaml", ".retort.parquet"
ROWS_PER_FILE = 4096
BYTES = pa.list_(pa.list_(pa.uint8()))
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.uint64())),
        ("compressed_logprobs", BYTES),
        ("bytepacked_indices", BYTES),
    ]
)
IDENTITIES = pa.schema(
    [*(EXAMPLES.field(name) for name in PLAIN), pa.field("prompt_tokens", pa.int32())]
)


def write_distillkit(folder: Path, rows: Iterable[Row], k: int, vocabulary: int) -> None:
    """Write a folder of its own.

    Args:
        folder: Must not exist.
        rows: The examples.
        k: Entries per position, at least those of the widest.
        vocabulary: Larger than every id.
    """
    folder.mkdir()
    settings = {"d": vocabulary, "k": k, "exact_k": k, "exact_dtype": "float32"}
    settings |= {"polynomial_terms": None, "residual_bins": [], "delta_encoding": False}
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in settings.items())
    (folder / SETTINGS).write_text(text, encoding="utf-8")
    bits = _bits(vocabulary)
    remaining = (row for row in rows if row["prompt_ids"])  # the first token has no position
    with pq.ParquetWriter(folder / IDENTITY, IDENTITIES) as identities:
        for number in itertools.count():
            part = list(itertools.islice(remaining, ROWS_PER_FILE))
            if not part and number:
                break
            table = pa.Table.from_pylist([_encoded(row, k, bits) for row in part], SCHEMA)
            pq.write_table(table, folder / f"data_{number}.parquet", compression="zstd")
            named = [{**row, "prompt_tokens": len(row["prompt_ids"])} for row in part]
            identities.write_table(pa.Table.from_pylist(named, IDENTITIES))


def read_distillkit(folder: Path) -> Iterator[Row]:
    """Read a folder that DistillKit or ``write_distillkit`` wrote.

    Raises:
        LogError: If its settings are missing, or lose more than ours.
    """
    k, bits = _settings(folder / SETTINGS)
    known: Iterator[Row] = iter(())
    if (folder / IDENTITY).exists():
        known = iter(pq.read_table(folder / IDENTITY).to_pylist())
    files = sorted(folder.glob("data_*.parquet"), key=lambda path: int(path.stem.split("_")[1]))
    number = 0
    for path in files:
        for row in pq.read_table(path, columns=SCHEMA.names).to_pylist():
            identity = next(known, {"exchange_id": f"{folder.name}-{number}", "prompt_tokens": 1})
            yield _decoded(row, identity, k, bits)
            number += 1


def _encoded(row: Row, k: int, bits: int) -> Row:
    ids = [*row["prompt_ids"], *row["completion_ids"]]
    certain = [([token], [0.0]) for token in row["prompt_ids"][1:]]
    entries = [filled_up(*entry, k) for entry in (*certain, *zip(*positions(row), strict=True))]
    logprobs = np.array([values for _, values in entries], "<f4").reshape(-1, k)
    return {
        "input_ids": ids,
        "compressed_logprobs": logprobs.view(np.uint8).tolist(),
        "bytepacked_indices": packed([tokens for tokens, _ in entries], bits).tolist(),
    }


def _decoded(row: Row, identity: Row, k: int, bits: int) -> Row:
    num_prompt = int(identity.pop("prompt_tokens"))
    tokens = row["input_ids"]
    logprobs = np.array(row["compressed_logprobs"], np.uint8).view("<f4").tolist()
    ids = unpacked(row["bytepacked_indices"], bits, k).tolist()
    pairs = zip(ids[num_prompt - 1 :], logprobs[num_prompt - 1 :], strict=True)
    entries = [without_fillers(*pair) for pair in pairs]
    found = joined([top for top, _ in entries], [values for _, values in entries])
    completion = tokens[num_prompt : num_prompt + len(entries)]
    return {**found, "prompt_ids": tokens[:num_prompt], "completion_ids": completion, **identity}


def packed(ids: Sequence[Sequence[int]], bits: int) -> npt.NDArray[np.uint8]:
    """Pack rows of ids, most significant bit first, each row filled up to whole bytes."""
    shifts = np.arange(bits - 1, -1, -1)
    array = np.asarray(ids, np.int64).reshape(len(ids), -1)
    spread = ((array[:, :, None] >> shifts) & 1).astype(np.uint8)
    return np.packbits(spread.reshape(len(ids), -1), axis=1)


def unpacked(rows: Sequence[Sequence[int]], bits: int, k: int) -> npt.NDArray[np.int64]:
    """Undo ``packed``."""
    spread = np.unpackbits(np.array(rows, np.uint8), axis=1, count=k * bits)
    ids: npt.NDArray[np.int64] = spread.reshape(-1, k, bits) @ (1 << np.arange(bits - 1, -1, -1))
    return ids


def _bits(vocabulary: int) -> int:
    return max(1, (vocabulary - 1).bit_length())


def _settings(path: Path) -> tuple[int, int]:
    """Entries per position and bits per id, from the flat lines of a YAML file."""
    found: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        found[name.strip()] = value.strip(" '\"")
    is_exact = found.get("k") == found.get("exact_k") and found.get("delta_encoding") == "false"
    if not is_exact or found.get("exact_dtype") != "float32":
        raise LogError(
            f"{path}: only exact float32 entries can be imported (exact_k = k, exact_dtype = "
            "float32, delta_encoding = false); a fitted polynomial is no teacher's distribution"
        )
    return int(found["k"]), _bits(int(found["d"]))
