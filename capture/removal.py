"""Rows of some exchanges leave a table, and their bytes leave the disk."""

import contextlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from capture.delta import (
    Change,
    DataFile,
    active_files,
    new_path,
    open_table,
    replace,
    store_errors,
    write_file,
)
from capture.parquet import read_parquet
from capture.schema import TABLES
from capture.store import LogFolder, data_files, remove_file


def without(folder: LogFolder, name: str, files: Sequence[DataFile], ids: pa.Array) -> Change:
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


def withdraw(log: LogFolder, name: str, ids: pa.Array, first_day: str) -> int:
    """Take back rows that should never have been committed; safe to repeat after a crash.

    Only the files that held them go: versions of the table that count one of these cannot be
    read any more, others can.

    Args:
        log: The log, whose lock the caller holds, and where they are on a list.
        name: Table.
        ids: Exchanges whose rows go.
        first_day: No row of them is older.

    Returns:
        Rows taken back now.
    """
    table = open_table(log, name)
    if table is None:
        return 0
    files = [file for file in active_files(table) if file.day >= first_day]
    change = without(log / name, name, files, ids)
    if change.removed:
        replace(log, name, Change(change.added, change.removed, num_withdrawn=change.num_erased))
    purge(log, name, ids, first_day)
    return change.num_erased


def purge(log: LogFolder, name: str, ids: pa.Array, first_day: str = "") -> None:
    """Remove files that no version counts, or only older ones, and that hold some exchanges.

    On a log without a lock such a file may be on its way into the table; if the exchanges are on
    a list, its transaction will be refused.
    """
    table = open_table(log, name)
    counting = {file.path for file in active_files(table)} if table else set()
    with store_errors(log / name):
        for file in data_files(log / name):
            if file.day >= first_day and file.path not in counting:
                path = log / name / file.path
                with contextlib.suppress(FileNotFoundError):  # removed by somebody else
                    if pc.any(_is_of(path, ids)).as_py():
                        remove_file(path)


def read_file(folder: LogFolder, file: DataFile, name: str) -> pa.Table:
    """Read a file's rows; their day is the partition's."""
    schema = TABLES[name]
    columns = schema.remove(schema.get_field_index("day"))
    with store_errors(folder):
        return read_parquet(folder / file.path).cast(columns)


def _is_of(path: LogFolder, ids: pa.Array) -> pa.ChunkedArray:
    """Which rows of a file belong to some exchanges."""
    found = read_parquet(path, ["exchange_id"])
    return pc.is_in(found["exchange_id"].cast(pa.string()), value_set=ids)
