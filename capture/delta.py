"""The two tables as Delta keeps them: which Parquet files count, in which version.

A commit that adds rows of the spool records, for every writer, the last segment it holds, so
that the same segment can never be added twice, and how many rows each segment had, so that
``retort log verify`` can tell what should be there.
"""

import contextlib
import itertools
import json
import os
import time
import uuid
from collections import Counter
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
from capture.locks import sync_folder
from capture.parquet import write_parquet
from capture.schema import TABLES
from capture.store import LogFolder, complaint, delta_options, remove_file

ROWS, DROPPED = "retort_rows", "retort_dropped"
ERASED, WITHDRAWN = "retort_erased", "retort_withdrawn"
FENCE = "retort.fence"
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
    """

    path: str
    day: str
    num_bytes: int
    num_rows: int


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
    """Write rows without their day as a data file; it counts only once it is committed."""
    return DataFile(path, day, write_parquet(rows, folder / path), rows.num_rows)


def active_files(table: DeltaTable) -> list[DataFile]:
    """Files that count in the version opened."""
    actions = pa.table(table.get_add_actions(flatten=True))
    columns = ("path", "partition.day", "size_bytes", "num_records")
    return [
        DataFile(*values) for values in zip(*(actions[c].to_pylist() for c in columns), strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Change:
    """What one transaction does to a table.

    Attributes:
        added: Files that count from now on.
        removed: Files that do not any more; they stay on the disk until a vacuum.
        segments: Rows of each segment whose rows are added, by writer and sequence.
        dropped: Rows of these segments that are not added, by reason and writer.
        num_erased: Rows that go for good.
        num_withdrawn: Rows that go because they should never have been added.
    """

    added: Sequence[DataFile] = ()
    removed: Sequence[DataFile] = ()
    segments: Mapping[str, Mapping[int, int]] | None = None
    dropped: Mapping[str, Mapping[str, int]] | None = None
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
        custom_metadata=_metadata(change),
        app_transactions=[Transaction(writer, max(counts)) for writer, counts in segments.items()],
    )
    with store_errors(folder):
        table.create_write_transaction(
            actions, "append", table.schema(), ["day"], commit_properties=properties
        )
        if isinstance(folder, Path):
            _sync_since(folder / "_delta_log", table.version())


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


def fence(log: LogFolder, name: str) -> None:
    """Refuse every transaction whose table was opened before this.

    On a log without a lock it stands between a look at the lists of ``capture.forgotten`` and the
    transaction that follows from it: a table is opened first, then the list is read. Whoever adds
    to a list puts up a fence next; what he then sees in the table is all that can come of the
    list as it was. Delta refuses a transaction if the table's metadata has changed meanwhile.

    Raises:
        ConflictError: If another fence came in between.
        LogError: If the store fails.
    """
    table = open_table(log, name)
    if table is not None:
        with store_errors(log / name):
            table.alter.set_table_properties({FENCE: uuid.uuid4().hex}, raise_if_not_exists=False)


def _metadata(change: Change) -> dict[str, object]:
    """What the history tells of a change, beside its files."""
    rows = {
        writer: {str(sequence): count for sequence, count in counts.items()}
        for writer, counts in (change.segments or {}).items()
    }
    told: dict[str, object] = {
        ROWS: rows,
        DROPPED: change.dropped,
        ERASED: change.num_erased,
        WITHDRAWN: change.num_withdrawn,
    }
    return {key: value for key, value in told.items() if value}


def committed_rows(table: DeltaTable) -> dict[str, int]:
    """Rows ever added, by writer, as the history tells it."""
    totals: dict[str, int] = {}
    for entry in table.history():
        for writer, counts in entry.get(ROWS, {}).items():
            totals[writer] = totals.get(writer, 0) + sum(counts.values())
    return totals


def dropped_rows(table: DeltaTable) -> dict[str, Counter[str]]:
    """Rows that a commit kept out of the table, by writer and reason, as the history tells it."""
    totals: dict[str, Counter[str]] = {}
    for entry in table.history():
        for reason, counts in entry.get(DROPPED, {}).items():
            for writer, rows in counts.items():
                totals.setdefault(writer, Counter())[reason] += rows
    return totals


def erased_rows(table: DeltaTable) -> int:
    """Rows ever erased, as the history tells it."""
    return sum(int(entry.get(ERASED, 0)) for entry in table.history())


def withdrawn_rows(table: DeltaTable) -> int:
    """Rows taken back because they should never have been added, as the history tells it."""
    return sum(int(entry.get(WITHDRAWN, 0)) for entry in table.history())


def _sync_since(log: Path, version: int) -> None:
    """Bring the transactions after a version onto the disk; Delta itself leaves that to chance."""
    for later in itertools.count(version + 1):
        path = log / f"{later:020d}.json"
        if not path.exists():
            break
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(log)
