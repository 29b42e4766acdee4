"""Changes to rows already committed: fewer, larger files; and rows that must go for good."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from capture.commit import COMMIT_LOCK, Committer
from capture.config import CaptureConfig
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
from capture.errors import LogError
from capture.locks import locked
from capture.log import Log, query
from capture.schema import TABLES

SMALL_BYTES = 128 * 1024 * 1024
GROUP_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What was changed.

    Attributes:
        rows: Rows erased, or rows moved into larger files, by table.
        files_before: Files that were replaced.
        files_after: Files that replace them.
    """

    rows: dict[str, int]
    files_before: int
    files_after: int


def compact(log: Path) -> Rewritten:
    """Join each day's small files.

    The old files stay for a week, so that snapshots taken before can still be read.

    Raises:
        LogError: If the store fails, or somebody else changes the same files meanwhile.
    """
    rows, before, after = dict.fromkeys(TABLES, 0), 0, 0
    for name in TABLES:
        table = open_table(log, name)
        for group in _small_groups(active_files(table)) if table else ():
            delta = _opened(log, name)
            joined = pa.concat_tables(_read(log / name, file, name) for file in group)
            with store_errors(log):
                file = write_file(log / name, new_path(group[0].day), group[0].day, joined)
            apply(log / name, delta, Change([file], group))
            rows[name] += file.num_rows
            before, after = before + len(group), after + 1
        if table:
            with store_errors(log):
                _opened(log, name).vacuum(dry_run=False)
    return Rewritten(rows, before, after)


def erase(config: CaptureConfig, where: str) -> Rewritten:
    """Erase exchanges, their shadows and their distributions; their bytes leave the disk.

    Older versions of the tables cannot be read afterwards. Rows in segments that are still open
    are not reached.

    Args:
        config: Names the log, and the spool, whose closed segments are committed first.
        where: SQL filter over ``exchanges``.

    Raises:
        LogError: If the filter is not valid SQL, or the store fails; then run it again.
    """
    Committer(config).commit()
    with locked(config.spool / COMMIT_LOCK):
        ids = _selected(config.log, where)
        rows, before, after = dict.fromkeys(TABLES, 0), 0, 0
        for name in ("logits", "exchanges"):  # in this order: the filter still finds what is left
            delta = open_table(config.log, name)
            if delta is None:
                continue
            change = _without(config.log / name, name, active_files(delta), ids)
            if change.removed:
                apply(config.log / name, delta, change)
            with store_errors(config.log):
                _opened(config.log, name).vacuum(0, dry_run=False, enforce_retention_duration=False)
            rows[name] = change.num_erased
            before, after = before + len(change.removed), after + len(change.added)
    return Rewritten(rows, before, after)


def _selected(log: Path, where: str) -> pa.Array:
    """Ids of the exchanges that a filter selects, and of those that mirror them."""
    sql = f"""
        with selected as (select exchange_id from exchanges where (\n{where}\n))
        select exchange_id from selected
        union select e.exchange_id from exchanges e join selected s on e.pair_id = s.exchange_id
    """  # noqa: S608  the filter is the command
    with Log(log).connect() as connection:
        try:
            return query(connection, sql)["exchange_id"].combine_chunks()
        except LogError as error:
            raise LogError(f"exchanges where {where!r}: {error}") from error


def _without(folder: Path, name: str, files: Sequence[DataFile], ids: pa.Array) -> Change:
    """Write again, without some exchanges, the files that hold any of them."""
    added, removed, num_erased = [], [], 0
    for file in files:
        with store_errors(folder):
            found = pq.read_table(folder / file.path, columns=["exchange_id"], partitioning=None)
            goes = pc.is_in(found["exchange_id"], value_set=ids)
            if not pc.any(goes).as_py():
                continue
            kept = _read(folder, file, name).filter(pc.invert(goes))
            if kept.num_rows:
                added.append(write_file(folder, new_path(file.day), file.day, kept))
        removed.append(file)
        num_erased += file.num_rows - kept.num_rows
    return Change(added, removed, num_erased=num_erased)


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


def _read(folder: Path, file: DataFile, name: str) -> pa.Table:
    """Read a file's rows; their day is the partition's."""
    schema = TABLES[name]
    columns = schema.remove(schema.get_field_index("day"))
    with store_errors(folder):
        return pq.read_table(folder / file.path, partitioning=None).cast(columns)


def _opened(log: Path, name: str) -> DeltaTable:
    table = open_table(log, name)
    if table is None:
        raise LogError(f"{log / name}: the table is gone; was the folder removed?")
    return table
