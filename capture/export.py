"""Examples for other programs; each format's module says what it loses."""

import shutil
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from capture.axolotl import write_axolotl
from capture.chat import write_chat
from capture.delta import store_errors
from capture.distillkit import write_distillkit
from capture.errors import LogError
from capture.examples import ROWS_PER_BATCH, Row
from capture.lines import write_lines
from capture.log import Log, Snapshot, query

OnRows = Callable[[int], None]
BOUNDS = """
select coalesce(max(list_max(topk_size)), 1) as k,
    coalesce(max(list_max(topk_ids)), 0) + 1 as vocabulary
"""


class Format(StrEnum):
    """File formats that can be written and read; the first two lose nothing of an example."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    CHAT = "jsonl-chat"
    AXOLOTL = "axolotl"
    DISTILLKIT = "distillkit"


def export(snapshot: Snapshot, path: Path, file_format: Format, on_rows: OnRows) -> None:
    """Write a snapshot's examples by exchange and choice; the file appears when it is whole.

    Args:
        snapshot: What to write.
        path: The file, replaced if it exists; DistillKit's format makes a folder instead, which
            must not exist.
        file_format: See the modules ``capture.lines``, ``chat``, ``axolotl`` and ``distillkit``;
            Parquet has the columns of ``examples``.
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
    with Log(snapshot.log).connect(snapshot) as connection, store_errors(path):
        try:
            _write(temporary, file_format, _Source(connection, snapshot.where, count))
            if num_rows != snapshot.num_rows:
                raise LogError(
                    f"{snapshot.log}: {num_rows} rows, expected {snapshot.num_rows}: some were "
                    "erased meanwhile; export again"
                )
            temporary.replace(path)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            temporary.unlink(missing_ok=True)


class _Source:
    """The examples that a filter selects, batch by batch or one by one."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, where: str, on_rows: OnRows) -> None:
        self._connection = connection
        self._from = f"from examples where (\n{where}\n)"
        self._on_rows = on_rows

    def reader(self) -> pa.RecordBatchReader:
        """All columns, as Arrow."""
        sql = f"select * {self._from} order by exchange_id, choice"
        return self._connection.sql(sql).to_arrow_reader(ROWS_PER_BATCH)

    def batches(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        """Batches, each counted when the next is asked for."""
        for batch in reader:
            yield batch
            self._on_rows(batch.num_rows)

    def rows(self) -> Iterator[Row]:
        """One example at a time."""
        for batch in self.batches(self.reader()):
            yield from batch.to_pylist()

    def bounds(self) -> tuple[int, int]:
        """Entries of the widest position, and the largest id and one."""
        (found,) = query(self._connection, f"{BOUNDS} {self._from}").to_pylist()
        return int(found["k"]), max(int(found["k"]), int(found["vocabulary"]))


def _write(path: Path, file_format: Format, source: _Source) -> None:
    if file_format is Format.PARQUET:
        reader = source.reader()
        with pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
            for batch in source.batches(reader):
                writer.write_batch(batch)
    elif file_format is Format.DISTILLKIT:
        write_distillkit(path, source.rows(), *source.bounds())
    else:
        lines = {Format.JSONL: write_lines, Format.CHAT: write_chat, Format.AXOLOTL: write_axolotl}
        lines[file_format](path, source.rows())
