"""Files that are locked while somebody lives, and folders whose entries must reach the disk."""

import contextlib
import fcntl
import itertools
import os
from collections.abc import Iterator
from pathlib import Path


def create_locked(path: Path) -> int:
    """Create a file to append to, locked until its descriptor is closed or we die.

    Whoever finds it between creation and lock may take it for a dead writer's and remove it; it
    is then created again.
    """
    while True:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        if _is_same(path, file):
            return file
        os.close(file)


@contextlib.contextmanager
def locked_if_free(path: Path) -> Iterator[int | None]:
    """Hold a file's lock, as its descriptor; None if somebody else does or the file is gone."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file if _is_same(path, file) else None
    finally:
        os.close(file)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, waiting for whoever has it; the file is made and stays."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, so that a power loss leaves them."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Bring the folder's entries onto the disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _is_same(path: Path, file: int) -> bool:
    """Whether the name still leads to the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def sync_versions(log: Path, version: int) -> None:
    """Bring a table's version, and those after it, onto the disk; Delta leaves that to chance.

    Whoever made the version may have died before it was there, and the table's folder with it.
    """
    for later in itertools.count(version):
        path = log / f"{later:020d}.json"
        if not path.exists():
            break
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for folder in (log, log.parent, log.parent.parent):
        sync_folder(folder)
