"""The two tables as Delta keeps them: which Parquet files count, in which version.

A commit that adds rows of the spool records, for every writer, the last segment it holds, so
that the same segment can never be added twice, and how many rows each segment had, so that
``retort log verify`` can tell what should be there.
"""

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction
from obstore.exceptions import BaseError

from capture.errors import ConflictError, LogError
from capture.frames import Span
from capture.locks import sync_folder, sync_versions
from capture.parquet import write_parquet
from capture.schema import TABLES
from capture.store import LogFolder, complaint, delta_options, remove_file

ROWS, DROPPED, SPANS = "retort_rows", "retort_dropped", "retort_spans"
ERASED, WITHDRAWN = "retort_erased", "retort_withdrawn"
REMOVALS = "retort_removals"
ATTEMPTS = 10
T = TypeVar("T")
# Row counts are read from the history; Delta forgets it after 30 days unless told otherwise.
CONFIGURATION: Mapping[str, str | None] = {"delta.logRetentionDuration": "interval 3650 days"}


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of a table.

    Attributes:
        path: Relative to the table's folder.
        day: The partition it belongs to.
        added_at: When, in seconds since the epoch.
    """

    path: str
    day: str
    num_bytes: int
    num_rows: int
    added_at: float


@contextlib.contextmanager
def store_errors(folder: LogFolder) -> Iterator[None]:
    """Turn what Delta, Arrow, the disk and the object store raise into ``LogError``."""
    try:
        yield
    except CommitFailedError as error:
        raise ConflictError(f"{folder}: {error}") from error
    except (DeltaError, BaseError, OSError, pa.ArrowException) as error:
        raise LogError(complaint(folder, error)) from error


def retry_conflicts(change: Callable[[], T]) -> T:
    """Make a change, again if somebody else's came in between.

    Raises:
        ConflictError: If that happens every time.
    """
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(ConflictError):
            return change()
    return change()


def open_table(log: LogFolder, table: str, version: int | None = None) -> DeltaTable | None:
    """Open one version of a table, the newest by default; None if nothing was committed yet.

    Raises:
        LogError: If the version is not there any more, or the store fails.
    """
    folder = log / table
    with store_errors(folder):
        try:
            return DeltaTable(str(folder), version, delta_options(folder))
        except TableNotFoundError:
            return None


def ensure_table(log: LogFolder, table: str) -> DeltaTable:
    """Open a table, made empty if it is missing."""
    found = open_table(log, table)
    if found is not None:
        return found
    folder, options = log / table, delta_options(log)
    with store_errors(folder):
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(CommitFailedError):  # somebody else has made it just now
            DeltaTable.create(
                str(folder),
                TABLES[table],
                mode="ignore",
                partition_by=["day"],
                configuration=CONFIGURATION,
                storage_options=options,
            )
        return DeltaTable(str(folder), storage_options=options)


def new_path(day: str) -> str:
    """A data file's name that no other has, relative to the table's folder."""
    return f"day={day}/part-{uuid.uuid4().hex}.parquet"


def days_of(rows: pa.Table) -> dict[str, pa.Table]:
    """Split rows by day; the column goes, since the partition says it."""
    days = sorted(rows["day"].unique().to_pylist())
    return {day: rows.filter(pc.equal(rows["day"], day)).drop_columns(["day"]) for day in days}


def write_file(folder: LogFolder, path: str, day: str, rows: pa.Table) -> DataFile:
    """Write rows without their day as a data file; it counts only once it is committed.

    It and its folder are on the disk when this returns.
    """
    num_bytes = write_parquet(rows, folder / path)
    if isinstance(folder, Path):
        sync_folder(folder)
    return DataFile(path, day, num_bytes, rows.num_rows, time.time())


def active_files(table: DeltaTable) -> list[DataFile]:
    """Files that count in the version opened."""
    actions = pa.table(table.get_add_actions(flatten=True))
    columns = ("path", "partition.day", "size_bytes", "num_records", "modification_time")
    return [
        DataFile(path, day, num_bytes, num_rows, added_ms / 1000)
        for path, day, num_bytes, num_rows, added_ms in zip(
            *(actions[column].to_pylist() for column in columns), strict=True
        )
    ]


@dataclass(frozen=True, slots=True)
class Change:
    """What one transaction does to a table.

    Attributes:
        added: Files that count from now on.
        removed: Files that do not any more; they stay on the disk until a vacuum.
        segments: Rows of each segment whose rows are added, by writer and sequence.
        dropped: Rows of these segments that are not added, by reason and writer.
        spans: Bytes from and to which those of them were read that are not read whole.
        is_salvage: Whether they had been set aside: later ones of their writer may be in.
        num_erased: Rows that go for good.
        num_withdrawn: Rows that go because they should never have been added.
    """

    added: Sequence[DataFile] = ()
    removed: Sequence[DataFile] = ()
    segments: Mapping[str, Mapping[int, int]] | None = None
    dropped: Mapping[str, Mapping[str, int]] | None = None
    spans: Mapping[str, Mapping[int, Sequence[Span]]] | None = None
    is_salvage: bool = False
    num_erased: int = 0
    num_withdrawn: int = 0


def apply(folder: LogFolder, table: DeltaTable, change: Change) -> None:
    """Make a change in one transaction; when this returns it has reached the disk.

    Raises:
        ConflictError: If somebody else changed the same files or segments, or put up a fence,
            since the table was opened.
        LogError: If the store fails; nothing has happened then, except if it failed after the
            transaction, or while it answered.
    """
    segments = change.segments or {}
    now = int(time.time() * 1000)
    changes_data = bool(segments) or change.num_erased + change.num_withdrawn > 0
    actions: list[AddAction | RemoveAction] = [
        RemoveAction(file.path, changes_data, now, file.num_bytes, {"day": file.day})
        for file in change.removed
    ]
    for file in change.added:
        stats = json.dumps({"numRecords": file.num_rows})
        day = {"day": file.day}
        actions.append(AddAction(file.path, file.num_bytes, day, now, changes_data, stats))
    properties = CommitProperties(
        custom_metadata=_metadata(change), app_transactions=_identity(table, change)
    )
    with store_errors(folder):
        table.create_write_transaction(
            actions, "append", table.schema(), ["day"], commit_properties=properties
        )
        if isinstance(folder, Path):
            sync_versions(folder / "_delta_log", table.version())


def replace(log: LogFolder, name: str, change: Change) -> None:
    """Make a change that removes files, whatever was added to the table meanwhile.

    Raises:
        ConflictError: If one of the files does not count any more; those that should have
            replaced them are gone then.
        LogError: If the store fails.
    """
    try:
        _apply_if_current(log, name, change)
    except ConflictError:
        discard(log, name, [file.path for file in change.added])
        raise


def _apply_if_current(log: LogFolder, name: str, change: Change) -> None:
    table = open_table(log, name)
    if table is None or not set(change.removed) <= set(active_files(table)):
        raise ConflictError(f"{log / name}: its files were replaced meanwhile; try again")
    apply(log / name, table, change)


def discard(log: LogFolder, name: str, paths: Sequence[str]) -> None:
    """Remove files of a change that did not come to its transaction."""
    table = open_table(log, name)
    counting = {file.path for file in active_files(table)} if table else set()
    with store_errors(log / name):
        for path in paths:
            if path not in counting:
                remove_file(log / name / path)


def _identity(table: DeltaTable, change: Change) -> list[Transaction]:
    """What no other transaction may have claimed meanwhile: how far each writer has come.

    A segment that was set aside is on its own: how often something of it has been added. So are
    files that go: Delta lets two transactions remove the same file, and both add its rows again.
    """
    segments = change.segments or {}
    if change.removed:
        return [Transaction(REMOVALS, (table.transaction_version(REMOVALS) or 0) + 1)]
    if not change.is_salvage:
        return [Transaction(writer, max(counts)) for writer, counts in segments.items()]
    return [
        Transaction(f"{writer}-{sequence}", num_salvages(table, writer, sequence) + 1)
        for writer, counts in segments.items()
        for sequence in counts
    ]


def num_salvages(table: DeltaTable, writer: str, sequence: int) -> int:
    """How often something of a segment that was set aside has been added."""
    return table.transaction_version(f"{writer}-{sequence}") or 0


def _metadata(change: Change) -> dict[str, object]:
    """What the history tells of a change, beside its files."""
    told: dict[str, object] = {
        ROWS: _by_name(change.segments or {}),
        DROPPED: change.dropped,
        SPANS: _by_name(change.spans or {}),
        ERASED: change.num_erased,
        WITHDRAWN: change.num_withdrawn,
    }
    return {key: value for key, value in told.items() if value}


def _by_name(values: Mapping[str, Mapping[int, object]]) -> dict[str, dict[str, object]]:
    """Values of segments by writer and sequence, with keys that JSON takes."""
    return {
        writer: {str(sequence): value for sequence, value in of_writer.items()}
        for writer, of_writer in values.items()
    }


def vacuum(folder: LogFolder, table: DeltaTable, *, older_than_hours: int | None = None) -> None:
    """Remove the files that no version counts any more, and those that none ever counted.

    Args:
        folder: The table's.
        table: Its newest version.
        older_than_hours: Only those replaced, or left behind, as long ago, by default a week;
            with 0 no file may be being written.
    """
    with store_errors(folder):
        table.vacuum(
            older_than_hours,
            dry_run=False,
            enforce_retention_duration=older_than_hours is None,
            full=True,
        )
        if isinstance(folder, Path):
            sync_versions(folder / "_delta_log", table.version())
