"""Small files of the log are joined as it grows, and no row is written again too often.

As many files of about the same size as ``FAN_IN`` are joined, like the levels of a log-structured
merge tree: however many commits a day has, a row is written once per level and a day keeps at most
``FAN_IN`` files of each. A day at rest ends with all that is small in one.

Source:
    O'Neil et al. 1996, "The log-structured merge-tree"; size-tiered as in Apache Cassandra.
"""

import itertools
import math
from collections.abc import Sequence

from capture.config import CaptureConfig
from capture.delta import DataFile, active_files, new_path, open_table, store_errors, vacuum
from capture.forgotten import log_lock
from capture.intent import COMMIT_LOCK, fulfil, intend
from capture.locks import locked
from capture.rewrite import GROUP_BYTES, SMALL_BYTES, join
from capture.schema import TABLES

FAN_IN = 16
REST_SECONDS = 3600.0


def compact_due(config: CaptureConfig, now: float) -> int:
    """Join what is due, at most one group of each table, so that commits go on in between.

    Readers keep what they have opened; the old files stay for a week. Dying anywhere leaves a
    file that no version counts and that the next commit of this spool removes.

    Returns:
        How many files were replaced.

    Raises:
        LogError: If the store fails, or somebody else changes the same files; nothing has
            happened then.
    """
    num_replaced = 0
    for name in TABLES if config.spool.is_dir() else ():
        with store_errors(config.spool), locked(config.spool / COMMIT_LOCK), log_lock(config.log):
            table = open_table(config.log, name)
            group = due(active_files(table), now) if table else []
            if group:
                path = new_path(group[0].day)
                intend(config.spool, name, [path])
                if join(config.log, name, group, path) is not None:
                    fulfil(config.spool, name)
                    num_replaced += len(group)
    return num_replaced


def remove_replaced(config: CaptureConfig) -> None:
    """Remove files that were replaced more than a week ago.

    Raises:
        LogError: If the store fails.
    """
    for name in TABLES:
        with log_lock(config.log):
            table = open_table(config.log, name)
            if table is not None:
                vacuum(config.log / name, table)


def due(files: Sequence[DataFile], now: float) -> list[DataFile]:
    """Choose the files of one day to join next; none if it can wait.

    Args:
        files: Of any days and sizes.
        now: Seconds since the epoch.
    """
    small = sorted(
        (file for file in files if file.num_bytes < SMALL_BYTES),
        key=lambda file: (file.day, file.num_bytes, file.path),
    )
    for _, of_day in itertools.groupby(small, lambda file: file.day):
        candidates = list(of_day)
        for _, of_level in itertools.groupby(candidates, _level):
            alike = list(of_level)
            if len(alike) >= FAN_IN:
                return _fitting(alike)
        newest = max(file.added_at for file in candidates)
        if len(candidates) > 1 and newest < now - REST_SECONDS:
            return _fitting(candidates)
    return []


def _level(file: DataFile) -> int:
    """Files of the same level differ in size by less than the fan-in."""
    return int(math.log(max(file.num_bytes, 1), FAN_IN))


def _fitting(files: Sequence[DataFile]) -> list[DataFile]:
    """The first of some files, by size, that fit into one."""
    sizes = itertools.accumulate(file.num_bytes for file in files)
    return [file for file, size in zip(files, sizes, strict=True) if size <= GROUP_BYTES]
