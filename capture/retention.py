"""Retention: whole days of the log leave the disk once they are old enough."""

import logging
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from capture.config import CaptureConfig
from capture.delta import Change, active_files, apply, open_table, store_errors
from capture.forgotten import log_lock
from capture.schema import TABLES
from capture.spool import BAD

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


def expire(config: CaptureConfig, today: date) -> Expired:
    """Erase every day that is more than ``retention_days`` before today, both in UTC.

    Its files go from every version: a snapshot that held one of these days cannot be read any
    more, others can. Safe to repeat after a crash, and while writers and committers go on.

    Raises:
        LogError: If the store fails; the next call goes on from there.
    """
    done = Expired()
    if config.retention_days is None or not config.log.is_dir():
        return done
    first_kept = today - timedelta(days=config.retention_days)
    with log_lock(config.log):
        for name in TABLES:
            done.rows[name] = _expire_from(config.log, name, first_kept.isoformat())
    with store_errors(config.spool):
        began = datetime.combine(first_kept, time(), UTC).timestamp()
        for path in config.spool.glob(f"*{BAD}"):
            if path.stat().st_mtime < began:
                path.unlink()
                done.damaged += 1
    if any(done.rows.values()) or done.damaged:
        logger.info("older than %s, erased: %s", first_kept, done)
    return done


def _expire_from(log: Path, name: str, first_kept: str) -> int:
    """Take days out of a table, then every file of theirs off the disk."""
    table = open_table(log, name)
    if table is None:
        return 0
    files = [file for file in active_files(table) if file.day < first_kept]
    num_rows = sum(file.num_rows for file in files)
    if files:
        apply(log / name, table, Change(removed=files, num_erased=num_rows))
    with store_errors(log):
        for folder in (log / name).glob("day=*"):
            if folder.name < f"day={first_kept}":
                for path in folder.glob("*.parquet"):
                    path.unlink()
                folder.rmdir()
    return num_rows
