"""Names of the data files that a transaction under way is writing, put down before they are begun.

Whoever comes after one that died removes those that no version counts. There is one at a time: it
holds ``COMMIT_LOCK`` in the spool.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from capture.delta import discard
from capture.store import LogFolder

COMMIT_LOCK, SUFFIX = "committer.lock", ".intent"


def intend(spool: Path, table: str, paths: Sequence[str]) -> None:
    """Put names down, relative to the table's folder."""
    _path(spool, table).write_text(json.dumps(paths), encoding="utf-8")


def intended_files(spool: Path, table: str) -> list[str]:
    """Files of the transaction under way, or of one that died."""
    try:
        paths: list[str] = json.loads(_path(spool, table).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # half-written: no file was begun
        return []
    return paths


def fulfil(spool: Path, table: str) -> None:
    """Forget the names: the transaction is on the disk."""
    _path(spool, table).unlink()


def clear_interrupted(spool: Path, log: LogFolder, table: str) -> None:
    """Remove the files of a transaction that was never made."""
    intended = intended_files(spool, table)
    if intended:
        discard(log, table, intended)
    _path(spool, table).unlink(missing_ok=True)


def _path(spool: Path, table: str) -> Path:
    return spool / f"{table}{SUFFIX}"
