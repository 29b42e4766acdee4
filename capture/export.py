"""Examples for other programs, as JSON lines or one Parquet file."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from capture.delta import store_errors
from capture.errors import LogError
from capture.log import Log, Snapshot

ROWS_PER_BATCH = 4096


class Format(StrEnum):
    """File formats that can be written."""

    JSONL = "jsonl"
    PARQUET = "parquet"


def export(
    snapshot: Snapshot, path: Path, file_format: Format, on_rows: Callable[[int], None]
) -> None:
    """Write a snapshot's examples, in no particular order; the file appears when it is whole.

    Args:
        snapshot: What to write.
        path: The file; replaced if it exists.
        file_format: JSON lines, or Parquet; with the columns of ``examples``.
        on_rows: Told the number of rows of each batch written.

    Raises:
        LogError: If the log cannot be read, rows of it were erased meanwhile, or the file cannot
            be written.
    """
    num_rows = 0

    def count(rows: int) -> None:
        nonlocal num_rows
        num_rows += rows
        on_rows(rows)

    temporary = path.with_name(f".{path.name}.tmp")
    sql = f"select * from examples where (\n{snapshot.where}\n)"  # noqa: S608  as snapshotted
    with Log(snapshot.log).connect(snapshot) as connection, store_errors(path):
        reader = connection.sql(sql).to_arrow_reader(ROWS_PER_BATCH)
        try:
            if file_format is Format.JSONL:
                _write_jsonl(temporary, reader, count)
            else:
                _write_parquet(temporary, reader, count)
            if num_rows != snapshot.num_rows:
                raise LogError(
                    f"{snapshot.log}: {num_rows} rows, expected {snapshot.num_rows}: some were "
                    "erased meanwhile; export again"
                )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _write_jsonl(
    path: Path, reader: Iterable[pa.RecordBatch], on_rows: Callable[[int], None]
) -> None:
    with path.open("wb") as file:
        for batch in reader:
            for row in batch.to_pylist():
                file.write(orjson.dumps(row) + b"\n")
            on_rows(batch.num_rows)


def _write_parquet(
    path: Path, reader: pa.RecordBatchReader, on_rows: Callable[[int], None]
) -> None:
    with pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)
            on_rows(batch.num_rows)
