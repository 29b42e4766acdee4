"""Spool segments: append-only files of framed, checksummed Arrow record batches.

``TABLE-WRITER-SEQUENCE.open`` is being written and is locked by its writer; ``.seg`` is closed and
may be committed; ``.bad`` could not be read and is kept for a person to look at. A frame is a
length and a CRC32C (both u32, little endian) before its payload. The first payload is the header
(JSON), the second the Arrow schema, each further one a record batch. Whatever follows the last
whole frame is a torn tail, the trace of a crash.
"""

import fcntl
import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from crc32c import crc32c

from capture.errors import SpoolError

FORMAT_VERSION = 1
FRAME = struct.Struct("<II")
OPEN, CLOSED, BAD = ".open", ".seg", ".bad"


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """A segment's place in the order of its writer."""

    table: str
    writer: str
    sequence: int

    @classmethod
    def parse(cls, path: Path) -> "SegmentName":
        """Read a file's name."""
        table, writer, sequence = path.stem.split("-")
        return cls(table, writer, int(sequence))

    def path(self, folder: Path, suffix: str) -> Path:
        """The file in one of its three states."""
        return folder / f"{self.table}-{self.writer}-{self.sequence:06d}{suffix}"


class SegmentWriter:
    """Appends batches of one table to segment after segment; one thread, one writer."""

    def __init__(self, folder: Path, table: str, schema: pa.Schema, writer: str) -> None:
        self._folder = folder
        self._schema = schema
        self._name = SegmentName(table, writer, 0)
        self._file: int | None = None
        self.num_bytes = 0

    def append(self, batch: pa.RecordBatch) -> None:
        """Hand a batch to the operating system: it survives us, but not yet a power loss.

        Raises:
            OSError: If the disk refuses; the batch is then not in the segment.
        """
        payload = batch.serialize()
        if self._file is None:
            self._open()
        self._write([payload])

    def sync(self) -> None:
        """Bring everything appended onto the disk."""
        if self._file is not None:
            os.fdatasync(self._file)

    def rotate(self) -> None:
        """Close the segment under way, if any, so that it may be committed."""
        if self._file is None:
            return
        os.fsync(self._file)
        self._name.path(self._folder, OPEN).rename(self._name.path(self._folder, CLOSED))
        sync_folder(self._folder)
        os.close(self._file)
        self._file = None

    def abandon(self) -> None:
        """Let go of a segment that the disk refuses to take more of; recovery closes it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> None:
        self._name = SegmentName(self._name.table, self._name.writer, self._name.sequence + 1)
        path = self._name.path(self._folder, OPEN)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        self._file, self.num_bytes = file, 0
        header = {
            "format_version": FORMAT_VERSION,
            "table": self._name.table,
            "writer": self._name.writer,
            "sequence": self._name.sequence,
        }
        self._write([json.dumps(header).encode(), self._schema.serialize()])

    def _write(self, payloads: Sequence[bytes | pa.Buffer]) -> None:
        """Append frames with one call, or leave the file as it was."""
        if self._file is None:
            raise SpoolError("the segment is closed")
        data = b"".join(frame(payload) for payload in payloads)
        written = os.write(self._file, data)
        if written != len(data):
            os.ftruncate(self._file, self.num_bytes)
            raise OSError(28, "only part of a frame could be written")
        self.num_bytes += written


@dataclass(frozen=True, slots=True)
class Segment:
    """What a segment holds.

    Attributes:
        batches: Whole record batches, in order.
        whole_bytes: Length up to the last whole frame; the file may be longer by a torn tail.
    """

    name: SegmentName
    batches: tuple[pa.RecordBatch, ...]
    whole_bytes: int

    @property
    def num_rows(self) -> int:
        """Rows of all batches."""
        return sum(batch.num_rows for batch in self.batches)


def frame(payload: bytes | pa.Buffer) -> bytes:
    """Put length and checksum before a payload."""
    data = bytes(payload)
    return FRAME.pack(len(data), crc32c(data)) + data


def read_segment(path: Path) -> Segment:
    """Read every whole batch of a segment.

    Raises:
        SpoolError: If its header or schema is not whole, or its format is another.
    """
    payloads = list(_frames(path.read_bytes()))
    try:
        header, schema = (
            json.loads(payloads[0][0]),
            pa.ipc.read_schema(pa.py_buffer(payloads[1][0])),
        )
        name = SegmentName(header["table"], header["writer"], header["sequence"])
        version = header["format_version"]
    except (IndexError, ValueError, KeyError, pa.ArrowException) as error:
        raise SpoolError(f"{path}: its header cannot be read; it is set aside") from error
    if version != FORMAT_VERSION:
        raise SpoolError(f"{path}: format {version}, expected {FORMAT_VERSION}; it is set aside")
    batches = tuple(
        pa.ipc.read_record_batch(pa.py_buffer(payload), schema) for payload, _ in payloads[2:]
    )
    return Segment(name, batches, payloads[-1][1])


def _frames(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Payload and end of each whole frame, up to the first that is torn or altered."""
    start = 0
    while start + FRAME.size <= len(data):
        length, checksum = FRAME.unpack_from(data, start)
        end = start + FRAME.size + length
        payload = data[start + FRAME.size : end]
        if len(payload) != length or crc32c(payload) != checksum:
            return
        yield payload, end
        start = end


def closed_segments(folder: Path) -> list[Path]:
    """Segments that may be committed, by table, writer and sequence."""
    return sorted(folder.glob(f"*{CLOSED}"), key=SegmentName.parse)


def recover(folder: Path) -> int:
    """Close what dead writers left open, without its torn tail; returns how many there were."""
    recovered = 0
    for path in sorted(folder.glob(f"*{OPEN}")):
        file = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, read_segment(path).whole_bytes)
            os.fsync(file)
            path.rename(path.with_suffix(CLOSED))
            recovered += 1
        except BlockingIOError:
            continue  # its writer lives
        except SpoolError:
            quarantine(path)
        finally:
            os.close(file)
    sync_folder(folder)
    return recovered


def quarantine(path: Path) -> None:
    """Set a segment aside that cannot be read."""
    path.rename(path.with_suffix(BAD))


def sync_folder(folder: Path) -> None:
    """Bring the folder's entries onto the disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
