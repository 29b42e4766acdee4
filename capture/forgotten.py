"""Exchanges that must not come into the log any more, whatever segment still brings them.

Two lists of exchange ids beside the tables: ``redacted``, whose distributions are not kept, and
``erased``, of which nothing is. They only grow; an id says nothing about its exchange.

No list may grow between a look at it and the transaction that follows from it. In a folder
whoever changes the log holds ``log_lock``. In a bucket nobody waits: there a list is many small
objects, and who adds one puts up a fence that the transaction runs into.
"""

import contextlib
import functools
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Literal

import pyarrow as pa

from capture.delta import open_table, retry_conflicts, store_errors
from capture.errors import ConflictError, LogError
from capture.locks import locked, make_folder, sync_folder
from capture.store import LogFolder, S3Path

FOLDER, LOCK = "forgotten", ".lock"
FENCE = "retort.fence"
MAX_PARTS = 16
Reason = Literal["redacted", "erased"]
# Which lists concern the rows of a table.
REASONS: dict[str, tuple[Reason, ...]] = {
    "exchanges": ("erased",),
    "logits": ("erased", "redacted"),
}


@contextlib.contextmanager
def log_lock(log: LogFolder) -> Iterator[None]:
    """Wait until nobody else changes the log; not to be taken twice. In a bucket nobody waits.

    Raises:
        LogError: If the log's folder cannot be made or written.
    """
    if isinstance(log, S3Path):
        yield
        return
    try:
        make_folder(log)
        lock = contextlib.ExitStack()
        lock.enter_context(locked(log / LOCK))
    except OSError as error:
        raise LogError(f"{log}: {error}") from error
    with lock:
        yield


def forget(log: LogFolder, reason: Reason, ids: Sequence[str]) -> None:
    """Add exchanges to a list; it is on the disk when this returns.

    Transactions begun before can bring in no more of them then.
    """
    if not ids:
        return
    if isinstance(log, S3Path):
        with store_errors(log / FOLDER):
            retry_conflicts(lambda: _add_part(log / FOLDER, reason, ids))
        for table in (name for name, reasons in REASONS.items() if reason in reasons):
            retry_conflicts(functools.partial(_put_up_fence, log, table))
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


def forgotten(log: LogFolder, reason: Reason) -> pa.Array:
    """The exchanges of a list."""
    if isinstance(log, S3Path):
        folder = log / FOLDER
        ids = retry_conflicts(lambda: _read_parts(folder, _parts(folder, reason)))
        return pa.array(ids, pa.string())
    path = log / FOLDER / f"{reason}.ids"
    lines = path.read_text(encoding="utf-8").split() if path.exists() else []
    return pa.array(lines, pa.string())


def _add_part(folder: S3Path, reason: Reason, ids: Sequence[str]) -> None:
    """Write a part of a list; once there are many, one with all they hold, and remove them."""
    joined = _parts(folder, reason)
    if len(joined) < MAX_PARTS:
        joined = []
    held = {*_read_parts(folder, joined), *ids}
    (folder / f"{reason}-{uuid.uuid4().hex}.ids").write_bytes("\n".join(sorted(held)).encode())
    for name in joined:
        (folder / name).delete()


def _parts(folder: S3Path, reason: Reason) -> list[str]:
    return [name for name, _ in folder.objects() if name.startswith(f"{reason}-")]


def _read_parts(folder: S3Path, names: Sequence[str]) -> list[str]:
    with store_errors(folder):
        try:
            return [
                line for name in names for line in (folder / name).read_bytes().decode().split()
            ]
        except FileNotFoundError as error:
            raise ConflictError(f"{folder}: its parts were joined meanwhile; try again") from error


def _put_up_fence(log: S3Path, name: str) -> None:
    """Refuse every transaction whose table was opened before this.

    Delta does that if the table's metadata has changed meanwhile. Whoever adds rows opens the
    table, then reads the list; whoever adds to the list puts up the fence next, then looks for
    rows. So the rows are seen there, or their transaction is refused.
    """
    table = open_table(log, name)
    if table is not None:
        with store_errors(log / name):
            table.alter.set_table_properties({FENCE: uuid.uuid4().hex}, raise_if_not_exists=False)
