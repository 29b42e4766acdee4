"""Retention: whole days of the log leave the disk once they are old enough."""

import logging
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from pathlib import Path

from capture.config import CaptureConfig
from capture.delta import Change, active_files, open_table, replace, retry_conflicts, store_errors
from capture.forgotten import log_lock
from capture.schema import TABLES
from capture.spool import BAD
from capture.store import LogFolder, data_files, left_behind, remove_file

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Expired:
    """What was too old.

    Attributes:
        rows: Rows erased, by table.
        damaged: Segments set aside that were removed.
    """

    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))
    damaged: int = 0


def today_utc() -> date:
    """The day, as rows name it."""
    return datetime.now(UTC).date()


def expire(config: CaptureConfig, today: date) -> Expired:
    """Erase every day that is more than ``retention_days`` before today, both in UTC.

    Its files go from every version: a snapshot that held one of these days cannot be read any
    more, others can. Safe to repeat after a crash, and while writers and committers go on.

    Raises:
        LogError: If the store fails; the next call goes on from there.
    """
    done = Expired()
    if config.retention_days is None or not _is_there(config.log):
        return done
    first_kept = today - timedelta(days=config.retention_days)
    with log_lock(config.log):
        for name in TABLES:
            change = partial(_expire_from, config.log, name, first_kept.isoformat())
            done.rows[name] = retry_conflicts(change)
    with store_errors(config.spool):
        began = datetime.combine(first_kept, time(), UTC).timestamp()
        for path in config.spool.glob(f"*{BAD}"):
            if path.stat().st_mtime < began:
                path.unlink()
                done.damaged += 1
    if any(done.rows.values()) or done.damaged:
        logger.info("older than %s, erased: %s", first_kept, done)
    return done


def _is_there(log: LogFolder) -> bool:
    with store_errors(log):
        return log.is_dir()


def _expire_from(log: LogFolder, name: str, first_kept: str) -> int:
    """Take days out of a table, then every file of theirs off the disk."""
    table = open_table(log, name)
    if table is None:
        return 0
    files = [file for file in active_files(table) if file.day < first_kept]
    num_rows = sum(file.num_rows for file in files)
    if files:
        replace(log, name, Change(removed=files, num_erased=num_rows))
    with store_errors(log / name):
        if isinstance(log, Path):
            _remove_days(log / name, first_kept)
        else:
            _remove_objects(log, name, first_kept)
    return num_rows


def _remove_days(folder: Path, first_kept: str) -> None:
    """Remove all files of some days; nobody is writing any."""
    for day in folder.glob("day=*"):
        if day.name < f"day={first_kept}":
            for path in day.glob("*.parquet"):
                path.unlink()
            day.rmdir()


def _remove_objects(log: LogFolder, name: str, first_kept: str) -> None:
    """Remove files of some days, but for those that may be on their way into the table."""
    table = open_table(log, name)
    if table is None:
        return
    counting = {file.path for file in active_files(table)}
    old = {file.path for file in data_files(log / name) if file.day < first_kept} - counting
    replaced = old & set(table.vacuum(0, enforce_retention_duration=False))
    for path in replaced | left_behind(log / name, old, datetime.now(UTC).timestamp()):
        remove_file(log / name / path)
