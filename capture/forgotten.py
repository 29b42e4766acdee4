"""Exchanges that must not come into the log any more, whatever segment still brings them.

Two lists of exchange ids beside the tables: ``redacted``, whose distributions are not kept, and
``erased``, of which nothing is. They only grow; an id says nothing about its exchange. Whoever
changes the log holds ``log_lock``, so that no list grows between a look at it and a transaction.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa

from capture.errors import LogError
from capture.locks import locked, make_folder, sync_folder

FOLDER, LOCK = "forgotten", ".lock"
Reason = Literal["redacted", "erased"]
# Which lists concern the rows of a table.
REASONS: dict[str, tuple[Reason, ...]] = {
    "exchanges": ("erased",),
    "logits": ("erased", "redacted"),
}


@contextlib.contextmanager
def log_lock(log: Path) -> Iterator[None]:
    """Wait until nobody else changes the log; not to be taken twice.

    Raises:
        LogError: If the log's folder cannot be made or written.
    """
    try:
        make_folder(log)
        lock = contextlib.ExitStack()
        lock.enter_context(locked(log / LOCK))
    except OSError as error:
        raise LogError(f"{log}: {error}") from error
    with lock:
        yield


def forget(log: Path, reason: Reason, ids: Sequence[str]) -> None:
    """Add exchanges to a list; it is on the disk when this returns."""
    if not ids:
        return
    folder = log / FOLDER
    folder.mkdir(exist_ok=True)
    with (folder / f"{reason}.ids").open("a", encoding="utf-8") as file:
        # A line cut short by a crash ends here; its exchange's row is still to come, and adds it.
        file.write("\n".join(["", *ids, ""]))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)
    sync_folder(log)


def forgotten(log: Path, reason: Reason) -> pa.Array:
    """The exchanges of a list."""
    path = log / FOLDER / f"{reason}.ids"
    lines = path.read_text(encoding="utf-8").split() if path.exists() else []
    return pa.array(lines, pa.string())
