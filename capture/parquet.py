"""Parquet files of the log: what is rounded, how columns are encoded, and that they reach the disk.

Logprobs are rounded to multiples of ``GRID_NATS``, so that byte-stream-split and zstd have
something to work with. This is the only place where a captured number is changed: by at most half
of that, 6.1e-5 nats. Order is kept.
"""

import io
import os
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake.fs import DeltaStorageHandler

from capture.locks import sync_folder
from capture.store import LogFolder, S3Path, delta_options

GRID_NATS = 2.0**-13
ROUNDED = ("topk_logprobs", "tail_logprob")
SPLIT = ("prompt_ids", "completion_ids", "topk_ids", "tail_draws", *ROUNDED)
ROW_GROUP_ROWS = 8192


def round_logprobs(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Round float32 nats to multiples of ``GRID_NATS``, ties to even; infinities and NaN stay."""
    # A power of two: neither scaling loses a bit. Plus zero, because a minus zero compresses worse.
    grid = np.float32(GRID_NATS)
    rounded_values: npt.NDArray[np.float32] = np.rint(values / grid) * grid + np.float32(0)
    return rounded_values


def rounded(table: pa.Table) -> pa.Table:
    """Round the logprob columns that a table has; safe to repeat."""
    for name in ROUNDED:
        if name in table.column_names:
            index = table.column_names.index(name)
            table = table.set_column(index, table.field(index), _round_lists(table[name]))
    return table


def write_parquet(table: pa.Table, path: LogFolder) -> int:
    """Write one file, rounded and encoded, to last; returns its size in bytes.

    Raises:
        OSError: If the disk refuses; from a bucket what ``S3Path`` raises.
    """
    if isinstance(path, S3Path):
        buffer = io.BytesIO()
        _write(table, buffer)
        path.write_bytes(buffer.getvalue())
        return buffer.tell()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        _write(table, file)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return path.stat().st_size


def read_parquet(path: LogFolder, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one file, or some of its columns, without the partition that its folder names.

    Raises:
        OSError: If the file is not there or cannot be read.
    """
    chosen = None if columns is None else list(columns)
    if isinstance(path, S3Path):
        handler = DeltaStorageHandler(str(path.parent), delta_options(path))
        store = pafs.PyFileSystem(handler)
        return pq.read_table(path.name, columns=chosen, partitioning=None, filesystem=store)
    return pq.read_table(path, columns=chosen, partitioning=None)


def _write(table: pa.Table, file: BinaryIO) -> None:
    split = [name for name in table.column_names if name in SPLIT]
    whole = [name for name in table.column_names if name not in SPLIT]
    pq.write_table(
        rounded(table),
        file,
        row_group_size=ROW_GROUP_ROWS,
        compression="zstd",
        compression_level=3,
        use_dictionary=[_leaf(table, name) for name in whole],
        column_encoding={_leaf(table, name): "BYTE_STREAM_SPLIT" for name in split} or None,
    )


def _leaf(table: pa.Table, name: str) -> str:
    """Path of a column's values inside the file."""
    return f"{name}.list.element" if pa.types.is_list(table.field(name).type) else name


def _round_lists(column: pa.ChunkedArray) -> pa.Array:
    lists = column.combine_chunks()
    offsets = np.zeros(len(lists) + 1, np.int32)
    np.cumsum(lists.value_lengths().fill_null(0), out=offsets[1:])
    values = pa.array(round_logprobs(np.asarray(lists.flatten())))
    return pa.ListArray.from_arrays(
        offsets, values, type=lists.type, mask=lists.is_null() if lists.null_count else None
    )
