"""What dead writers left open is closed for them."""

import os
from pathlib import Path

from capture.errors import SpoolError
from capture.frames import whole_batches
from capture.locks import locked_if_free, sync_folder
from capture.quarantine import set_aside
from capture.schema import TABLES
from capture.spool import CLOSED, LOCK, OPEN, Segment, read_segment, segments


def recover(folder: Path) -> int:
    """Close what dead writers left open, without its torn tail.

    Returns:
        How many segments were closed; one that cannot be read is set aside instead.
    """
    for path in folder.glob(f"*-*{LOCK}"):
        with locked_if_free(path) as file:
            if file is not None:
                path.unlink()
    recovered = 0
    for _, path in segments(folder, OPEN):
        with locked_if_free(path) as file:
            recovered += file is not None and _close_for_writer(path, file)
    if recovered:
        sync_folder(folder)
    return recovered


def _close_for_writer(path: Path, file: int) -> bool:
    """Make a closed segment of one whose lock we hold; False if there is nothing in it."""
    if not os.fstat(file).st_size:
        path.unlink()
        return False
    try:
        segment = read_segment(path)
    except SpoolError as error:
        set_aside(path, error.damage)
        return False
    if not segment.is_whole and _is_torn(path, segment):
        os.ftruncate(file, segment.whole_bytes)
    os.fsync(file)
    path.rename(path.with_suffix(CLOSED))
    return True


def _is_torn(path: Path, segment: Segment) -> bool:
    """Whether nothing can be read behind the first frame that is not whole.

    If something can, this is no trace of a crash but damage: whoever commits it sets it aside.
    """
    rest = path.read_bytes()[segment.whole_bytes :]
    return next(whole_batches(rest, TABLES[segment.name.table]), None) is None
