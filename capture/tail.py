"""Rows of a spool as its writers append them, before they are committed."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from capture.frames import read_batch, walk
from capture.schema import TABLES
from capture.spool import CLOSED, NUM_HEADS, OPEN, SegmentName, segments


@dataclass(slots=True)
class _Segment:
    """A segment that is being read: its file, open even when it has been unlinked, and how far."""

    file: int
    at_byte: int = 0
    num_frames: int = 0


class SpoolTail:
    """Follows the segments of one table.

    What lay closed in the folder before is left out, and so is what comes and goes between two
    calls of ``new``: call it more often than segments are closed.
    """

    def __init__(self, folder: Path, table: str) -> None:
        """Begin with the segments that are open now."""
        self._folder = folder
        self._table = table
        self._reading: dict[SegmentName, _Segment] = {}
        self._done = set(self._listed(CLOSED))

    def new(self) -> Iterator[pa.RecordBatch]:
        """Batches that were appended since the last call; what is damaged ends its segment.

        Raises:
            OSError: If the disk fails.
        """
        is_open = self._listed(OPEN)
        closed = self._listed(CLOSED)
        for name, path in {**closed, **is_open}.items():
            if name not in self._reading and name not in self._done:
                self._open(name, path)
        self._done &= closed.keys()
        for name, segment in list(self._reading.items()):
            yield from self._read(segment)
            if name not in is_open:  # it was closed before it was read, so that was all
                os.close(segment.file)
                del self._reading[name]
                self._done.add(name)

    def close(self) -> None:
        """Let go of the files."""
        for segment in self._reading.values():
            os.close(segment.file)
        self._reading.clear()

    def _listed(self, suffix: str) -> dict[SegmentName, Path]:
        found = segments(self._folder, suffix)
        return {name: path for name, path in found if name.table == self._table}

    def _open(self, name: SegmentName, path: Path) -> None:
        try:
            self._reading[name] = _Segment(os.open(path, os.O_RDONLY))
        except FileNotFoundError:  # renamed or committed meanwhile; the former is found next time
            return

    def _read(self, segment: _Segment) -> Iterator[pa.RecordBatch]:
        size = os.fstat(segment.file).st_size
        data = os.pread(segment.file, size - segment.at_byte, segment.at_byte)
        whole, _ = walk(memoryview(data))
        for found in whole:
            segment.num_frames += 1
            if segment.num_frames <= NUM_HEADS:
                continue
            batch = read_batch(found, TABLES[self._table])
            if batch is not None:
                yield batch
        segment.at_byte += whole[-1].end if whole else 0
