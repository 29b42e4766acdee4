"""Rows of some exchanges leave a table, and their bytes leave the disk."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capture.delta import (
    Change,
    DataFile,
    active_files,
    apply,
    new_path,
    open_table,
    store_errors,
    write_file,
)
from capture.schema import TABLES


def without(folder: Path, name: str, files: Sequence[DataFile], ids: pa.Array) -> Change:
    """Write again, without some exchanges, the files that hold any of them."""
    added, removed, num_erased = [], [], 0
    for file in files:
        with store_errors(folder):
            goes = _is_of(folder / file.path, ids)
            if not pc.any(goes).as_py():
                continue
            kept = read_file(folder, file, name).filter(pc.invert(goes))
            if kept.num_rows:
                added.append(write_file(folder, new_path(file.day), file.day, kept))
        removed.append(file)
        num_erased += file.num_rows - kept.num_rows
    return Change(added, removed, num_erased=num_erased)


def withdraw(log: Path, name: str, ids: pa.Array, first_day: str) -> int:
    """Take back rows that should never have been committed; safe to repeat after a crash.

    Only the files that held them go: versions of the table that count one of these cannot be
    read any more, others can.

    Args:
        log: The log, whose lock the caller holds.
        name: Table.
        ids: Exchanges whose rows go.
        first_day: No row of them is older.

    Returns:
        Rows taken back now.
    """
    folder, table = log / name, open_table(log, name)
    if table is None:
        return 0
    files = [file for file in active_files(table) if file.day >= first_day]
    change = without(folder, name, files, ids)
    if change.removed:
        apply(folder, table, Change(change.added, change.removed, num_withdrawn=change.num_erased))
    counting = {*(file.path for file in files), *(file.path for file in change.added)}
    counting -= {file.path for file in change.removed}
    with store_errors(folder):
        for path in folder.glob("day=*/*.parquet"):
            is_replaced = str(path.relative_to(folder)) not in counting
            in_time = path.parent.name >= f"day={first_day}"
            if is_replaced and in_time and pc.any(_is_of(path, ids)).as_py():
                path.unlink()
    return change.num_erased


def read_file(folder: Path, file: DataFile, name: str) -> pa.Table:
    """Read a file's rows; their day is the partition's."""
    schema = TABLES[name]
    columns = schema.remove(schema.get_field_index("day"))
    with store_errors(folder):
        return pq.read_table(folder / file.path, partitioning=None).cast(columns)


def _is_of(path: Path, ids: pa.Array) -> pa.ChunkedArray:
    """Which rows of a file belong to some exchanges."""
    found = pq.read_table(path, columns=["exchange_id"], partitioning=None)
    return pc.is_in(found["exchange_id"].cast(pa.string()), value_set=ids)
