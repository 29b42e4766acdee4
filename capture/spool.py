"""Spool segments: append-only files of framed, checksummed Arrow record batches.

``TABLE-WRITER-SEQUENCE.open`` is being written and is locked by its writer; ``.seg`` is closed and
may be committed; ``.bad`` could not be read and is kept for a person to look at. A frame is a
length and a CRC32C (both u32, little endian) before its payload. The first payload is the header
(JSON), the second the Arrow schema, each further one a record batch. Whatever follows the last
whole frame is a torn tail, the trace of a crash. ``TABLE-WRITER.lock`` is locked while its
writer lives, whether or not it has a segment open.
"""

import errno
import json
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
from crc32c import crc32c

from capture.errors import SpoolError
from capture.locks import create_locked, locked_if_free, sync_folder

FORMAT_VERSION = 1
FRAME = struct.Struct("<II")
OPEN, CLOSED, BAD, LOCK = ".open", ".seg", ".bad", ".lock"
NAME = re.compile(r"([a-z]+)-([0-9a-z]+)-([0-9]{6,})")


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """A segment's place in the order of its writer."""

    table: str
    writer: str
    sequence: int

    @classmethod
    def parse(cls, path: Path) -> "SegmentName | None":
        """Read a file's name; None if it is no segment's."""
        found = NAME.fullmatch(path.stem)
        return cls(found[1], found[2], int(found[3])) if found else None

    def path(self, folder: Path, suffix: str) -> Path:
        """The file in one of its three states."""
        return folder / f"{self.table}-{self.writer}-{self.sequence:06d}{suffix}"


class OpenSegment:
    """A segment under way. Whoever syncs it also closes it; another thread may append meanwhile.

    Attributes:
        num_bytes: Its size.
        has_failed: Whether the disk has refused something; recovery closes it then.
    """

    def __init__(self, folder: Path, name: SegmentName) -> None:
        self._folder = folder
        self._name = name
        self._file = create_locked(name.path(folder, OPEN))
        self._is_listed = False
        self.num_bytes = 0
        self.has_failed = False

    def append(self, payloads: Sequence[bytes | pa.Buffer]) -> None:
        """Append frames with one call, or leave the file as it was."""
        parts = [part for payload in payloads for part in frame(payload)]
        written = os.writev(self._file, parts)
        if written != sum(len(part) for part in parts):
            os.ftruncate(self._file, self.num_bytes)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.num_bytes += written

    def sync(self) -> None:
        """Bring everything appended, and the segment's name, onto the disk."""
        try:
            os.fdatasync(self._file)
        except OSError:
            self.has_failed = True
            raise
        if not self._is_listed:
            sync_folder(self._folder)
            self._is_listed = True

    def close(self) -> None:
        """Bring it onto the disk and close it, so that it may be committed."""
        try:
            if not self.has_failed:
                os.fsync(self._file)
                self._name.path(self._folder, OPEN).rename(self._name.path(self._folder, CLOSED))
                sync_folder(self._folder)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of it; recovery closes it."""
        os.close(self._file)

    def remove(self) -> None:
        """Take it off the disk."""
        try:
            self._name.path(self._folder, OPEN).unlink()
        finally:
            self.abandon()


class SegmentWriter:
    """Appends batches of one table to segment after segment; one writer.

    Attributes:
        current: The segment under way; taking it away makes the next batch begin another.
    """

    def __init__(self, folder: Path, table: str, schema: pa.Schema, writer_id: str) -> None:
        self._folder = folder
        self._schema = schema
        self._name = SegmentName(table, writer_id, 0)
        self.current: OpenSegment | None = None

    @property
    def num_bytes(self) -> int:
        """Size of the segment under way."""
        return self.current.num_bytes if self.current else 0

    def append(self, batch: pa.RecordBatch) -> None:
        """Hand a batch to the operating system: it survives us, but not yet a power loss.

        Raises:
            OSError: If the disk refuses; the batch is then not in the segment.
        """
        if self.current is None:
            self.current = self._open()
        self.current.append([batch.serialize()])

    def rotate(self) -> None:
        """Close the segment under way, if any, so that it may be committed."""
        segment, self.current = self.current, None
        if segment is not None:
            segment.close()

    def abandon(self) -> None:
        """Let go of the segment under way, if any; recovery closes it."""
        segment, self.current = self.current, None
        if segment is not None:
            segment.abandon()

    def _open(self) -> OpenSegment:
        self._name = replace(self._name, sequence=self._name.sequence + 1)
        header = {
            "format_version": FORMAT_VERSION,
            "table": self._name.table,
            "writer": self._name.writer,
            "sequence": self._name.sequence,
        }
        segment = OpenSegment(self._folder, self._name)
        try:
            segment.append([json.dumps(header).encode(), self._schema.serialize()])
        except OSError:
            segment.remove()
            raise
        return segment


@dataclass(frozen=True, slots=True)
class Segment:
    """What a segment holds.

    Attributes:
        batches: Whole record batches, in order.
        whole_bytes: Length up to the last whole frame; the file may be longer by a torn tail.
        is_whole: Whether nothing follows that frame.
    """

    name: SegmentName
    schema: pa.Schema
    batches: tuple[pa.RecordBatch, ...]
    whole_bytes: int
    is_whole: bool

    @property
    def num_rows(self) -> int:
        """Rows of all batches."""
        return sum(batch.num_rows for batch in self.batches)


def frame(payload: bytes | pa.Buffer) -> tuple[bytes, memoryview]:
    """Length and checksum, and the payload they belong to."""
    data = memoryview(payload)
    return FRAME.pack(len(data), crc32c(data)), data


def read_segment(path: Path) -> Segment:
    """Read every whole batch of a segment.

    Raises:
        SpoolError: If its header or schema is not whole, or its format is another.
        FileNotFoundError: If it has been committed or renamed meanwhile.
    """
    data = path.read_bytes()
    frames = list(_frames(memoryview(data)))
    try:
        (first, _), (second, _), *rest = frames
        header = json.loads(bytes(first))
        version = header["format_version"]
        if version != FORMAT_VERSION:
            raise SpoolError(
                f"{path}: format {version}, expected {FORMAT_VERSION}; it is set aside: commit it "
                "with the version of retort that wrote it"
            )
        name = SegmentName(header["table"], header["writer"], header["sequence"])
        schema = pa.ipc.read_schema(pa.py_buffer(second))
        batches = tuple(
            pa.ipc.read_record_batch(pa.py_buffer(payload), schema) for payload, _ in rest
        )
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise SpoolError(f"{path}: it cannot be read; it is set aside as {BAD}") from error
    whole_bytes = frames[-1][1]
    return Segment(name, schema, batches, whole_bytes, whole_bytes == len(data))


def _frames(data: memoryview) -> Iterator[tuple[memoryview, int]]:
    """Payload and end of each whole frame, up to the first that is torn or altered."""
    start = 0
    while start + FRAME.size <= len(data):
        length, checksum = FRAME.unpack_from(data, start)
        end = start + FRAME.size + length
        payload = data[start + FRAME.size : end]
        # The checksum of nothing is zero: a tail of zeros would pass for frames.
        if not length or len(payload) != length or crc32c(payload) != checksum:
            return
        yield payload, end
        start = end


def segments(folder: Path, suffix: str) -> list[tuple[SegmentName, Path]]:
    """Segments in one state, by table, writer and sequence; other files are not ours."""
    found = ((SegmentName.parse(path), path) for path in folder.glob(f"*{suffix}"))
    return sorted((name, path) for name, path in found if name is not None)


def closed_segments(folder: Path) -> list[Path]:
    """Segments that may be committed, by table, writer and sequence."""
    return [path for _, path in segments(folder, CLOSED)]


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
        os.ftruncate(file, read_segment(path).whole_bytes)
    except SpoolError:
        quarantine(path)
        return False
    os.fsync(file)
    path.rename(path.with_suffix(CLOSED))
    return True


def quarantine(path: Path) -> None:
    """Set a segment aside that cannot be read."""
    path.rename(path.with_suffix(BAD))


def living_writers(folder: Path) -> set[tuple[str, str]]:
    """Table and id of every writer that holds its lock."""
    alive = set()
    for path in folder.glob(f"*-*{LOCK}"):
        with locked_if_free(path) as file:
            if file is None and path.exists():
                table, _, writer = path.stem.partition("-")
                alive.add((table, writer))
    return alive
