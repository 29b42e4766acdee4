"""Spool segments: append-only files of framed, checksummed batches of rows.

``TABLE-WRITER-SEQUENCE.open`` is being written and is locked by its writer; ``.seg`` is closed and
may be committed; ``.bad`` is damaged and set aside until a repair. Of its frames the first holds
the header (JSON), the second the Arrow schema, each further one rows. Whatever follows
the last whole frame is a torn tail, the trace of a crash. ``TABLE-WRITER.lock`` is locked while
its writer lives, whether or not it has a segment open.
"""

import errno
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from capture.damage import Damage
from capture.errors import SpoolError
from capture.frames import Frame, Rows, Span, frame, read_batch, walk
from capture.locks import create_locked, locked_if_free, sync_folder
from capture.schema import TABLES

FORMAT_VERSION = 2  # 1 had no rows as JSON
READABLE = (1, 2)
EXPECTED = " or ".join(map(str, READABLE))
NUM_HEADS = 2  # frames before the first batch
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

    def __str__(self) -> str:
        """The name as files carry it."""
        return f"{self.table}-{self.writer}-{self.sequence:06d}"

    def path(self, folder: Path, suffix: str) -> Path:
        """The file in one of its states."""
        return folder / f"{self}{suffix}"


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

    def append(self, batch: pa.RecordBatch | Rows) -> None:
        """Hand a batch to the operating system: it survives us, but not yet a power loss.

        Raises:
            OSError: If the disk refuses; the batch is then not in the segment.
        """
        if self.current is None:
            self.current = self._open()
        self.current.append([batch.payload if isinstance(batch, Rows) else batch.serialize()])

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
        batches: Record batches, in order; whole ones up to the first that is not.
        spans: Bytes of the file, from and to, that they were read from.
        damage: Why these are not the whole file, if they are not.
    """

    name: SegmentName
    batches: tuple[pa.RecordBatch, ...]
    spans: tuple[Span, ...]
    damage: Damage | None

    @property
    def is_whole(self) -> bool:
        """Whether nothing else is in the file."""
        return self.damage is None

    @property
    def whole_bytes(self) -> int:
        """Length up to the end of its last batch."""
        return self.spans[-1][1]

    @property
    def num_rows(self) -> int:
        """Rows of all batches."""
        return sum(batch.num_rows for batch in self.batches)


def read_segment(path: Path) -> Segment:
    """Read every whole batch of a segment, up to the first frame that is damaged.

    Raises:
        SpoolError: If its header or schema is not whole, not its own, or of another format.
        FileNotFoundError: If it has been committed or renamed meanwhile.
    """
    data = memoryview(path.read_bytes())
    whole, damage = walk(data)
    name = SegmentName.parse(path)
    if len(whole) < NUM_HEADS or name is None:
        raise SpoolError(path, damage or Damage("cut short", len(whole), len(data)))
    fault = _fault_of_header(whole[0], name) or _fault_of_schema(whole[1], name)
    if fault is not None:
        raise SpoolError(path, fault)
    batches: list[pa.RecordBatch] = []
    for number, one in enumerate(whole[NUM_HEADS:], NUM_HEADS):
        batch = read_batch(one, TABLES[name.table])
        if batch is None:
            damage = Damage("batch", number, one.start)
            break
        batches.append(batch)
    end = damage.at_byte if damage else len(data)
    return Segment(name, tuple(batches), ((0, end),), damage)


def _fault_of_header(found: Frame, name: SegmentName) -> Damage | None:
    try:
        header = json.loads(bytes(found.payload))
        version = header["format_version"]
        if version not in READABLE:
            return Damage("format", 0, found.start, f"format {version}, expected {EXPECTED}")
        named = SegmentName(header["table"], header["writer"], header["sequence"])
    except (ValueError, KeyError, TypeError):
        return Damage("header", 0, found.start)
    return None if named == name else Damage("header", 0, found.start, str(named))


def _fault_of_schema(found: Frame, name: SegmentName) -> Damage | None:
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(found.payload))
    except (pa.ArrowException, OSError):
        schema = None
    if schema is not None and schema == TABLES.get(name.table):
        return None
    return Damage("schema", 1, found.start)


def segments(folder: Path, suffix: str) -> list[tuple[SegmentName, Path]]:
    """Segments in one state, by table, writer and sequence; other files are not ours."""
    found = ((SegmentName.parse(path), path) for path in folder.glob(f"*{suffix}"))
    return sorted((name, path) for name, path in found if name is not None)


def closed_segments(folder: Path) -> list[Path]:
    """Segments that may be committed, by table, writer and sequence."""
    return [path for _, path in segments(folder, CLOSED)]


def living_writers(folder: Path) -> set[tuple[str, str]]:
    """Table and id of every writer that holds its lock."""
    alive = set()
    for path in folder.glob(f"*-*{LOCK}"):
        with locked_if_free(path) as file:
            if file is None and path.exists():
                table, _, writer = path.stem.partition("-")
                alive.add((table, writer))
    return alive
