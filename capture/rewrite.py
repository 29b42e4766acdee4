"""Rows already committed come into fewer, larger files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import pyarrow as pa
from deltalake import DeltaTable

from capture.delta import (
    Change,
    DataFile,
    active_files,
    new_path,
    open_table,
    replace,
    retry_conflicts,
    store_errors,
    vacuum,
    write_file,
)
from capture.errors import ConflictError, LogError
from capture.forgotten import log_lock
from capture.removal import read_file
from capture.schema import TABLES
from capture.store import LogFolder

SMALL_BYTES = 128 * 1024 * 1024
GROUP_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What was changed.

    Attributes:
        rows: Rows moved into larger files, by table.
        files_before: Files that were replaced.
        files_after: Files that replace them.
    """

    rows: dict[str, int]
    files_before: int
    files_after: int


def compact(log: LogFolder) -> Rewritten:
    """Join each day's small files.

    The old files stay for a week, so that snapshots taken before can still be read.

    Raises:
        LogError: If the store fails, or somebody else changes the same files meanwhile.
    """
    rows, before, after = dict.fromkeys(TABLES, 0), 0, 0
    for name in TABLES:
        table = open_table(log, name)
        for group in _small_groups(active_files(table)) if table else ():
            with log_lock(log):
                file = join(log, name, group, new_path(group[0].day))
            if file is not None:
                rows[name] += file.num_rows
                before, after = before + len(group), after + 1
        if table:
            with log_lock(log):
                retry_conflicts(partial(_vacuum, log, name))
    return Rewritten(rows, before, after)


def join(log: LogFolder, name: str, group: Sequence[DataFile], path: str) -> DataFile | None:
    """Make one file of several of a day; None if one of them has been replaced meanwhile."""
    delta = _opened(log, name)
    if not set(group) <= set(active_files(delta)):
        return None
    joined = pa.concat_tables(read_file(log / name, file, name) for file in group)
    with store_errors(log):
        file = write_file(log / name, path, group[0].day, joined)
    try:
        replace(log, name, Change([file], group))
    except ConflictError:
        return None
    return file


def _vacuum(log: LogFolder, name: str) -> None:
    """Remove what was replaced, or left behind by a crash, more than a week ago."""
    vacuum(log / name, _opened(log, name))


def _small_groups(files: Sequence[DataFile]) -> Iterator[list[DataFile]]:
    """Small files of the same day, to be joined; at least two at a time."""
    small = sorted(
        (file for file in files if file.num_bytes < SMALL_BYTES), key=lambda file: file.day
    )
    for _, of_day in groupby(small, lambda file: file.day):
        group: list[DataFile] = []
        for file in of_day:
            group.append(file)
            if sum(one.num_bytes for one in group) > GROUP_BYTES - SMALL_BYTES:
                yield group
                group = []
        if len(group) > 1:
            yield group


def _opened(log: LogFolder, name: str) -> DeltaTable:
    table = open_table(log, name)
    if table is None:
        raise LogError(f"{log / name}: the table is gone; was the folder removed?")
    return table
