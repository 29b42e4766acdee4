"""Frames of a spool segment: a length and a CRC32C (both u32, little endian), then the payload.

A payload is an Arrow record batch or, behind ``ROWS_MARK``, a JSON array of rows: for a few rows
of many columns a fraction of the time. What is behind a frame that was altered is found again by
the mark that both begin with. It consists of bytes that no UTF-8 text and no token id holds, so
nobody's prompt is ever taken for a frame.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import orjson
import pyarrow as pa
from crc32c import crc32c

from capture.damage import Damage, Reason

FRAME = struct.Struct("<II")
Span = tuple[int, int]
ARROW_MARK = b"\xff\xff\xff\xff"
ROWS_MARK = ARROW_MARK + b"rows"  # as the length of an Arrow message more than there can be


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows on their way to a segment, behind ``ROWS_MARK``."""

    payload: bytes
    num_rows: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole frame, from ``start`` to ``end`` of its segment."""

    payload: memoryview
    start: int
    end: int


def frame(payload: bytes | pa.Buffer) -> tuple[bytes, memoryview]:
    """Length and checksum, and the payload they belong to."""
    data = memoryview(payload)
    return FRAME.pack(len(data), crc32c(data)), data


def frame_at(data: memoryview, start: int) -> Frame | Reason:
    """The frame that begins at a byte, or why there is none."""
    if start + FRAME.size > len(data):
        return "cut short"
    length, checksum = FRAME.unpack_from(data, start)
    end = start + FRAME.size + length
    # The checksum of nothing is zero: a tail of zeros would pass for frames.
    if not length or end > len(data):
        return "cut short"
    payload = data[start + FRAME.size : end]
    return Frame(payload, start, end) if crc32c(payload) == checksum else "checksum"


def walk(data: memoryview) -> tuple[list[Frame], Damage | None]:
    """Every whole frame up to the first that is torn or altered, and what is wrong with that."""
    whole: list[Frame] = []
    start = 0
    while start < len(data):
        found = frame_at(data, start)
        if not isinstance(found, Frame):
            return whole, Damage(found, len(whole), start)
        whole.append(found)
        start = found.end
    return whole, None


def whole_batches(data: bytes, schema: pa.Schema) -> Iterator[tuple[Frame, pa.RecordBatch]]:
    """Every whole frame that holds a record batch, whatever lies between them, in order."""
    view, start = memoryview(data), 0
    while (mark := data.find(ARROW_MARK, start + FRAME.size)) >= 0:
        start = mark - FRAME.size
        found = frame_at(view, start)
        batch = read_batch(found, schema) if isinstance(found, Frame) else None
        if isinstance(found, Frame) and batch is not None:
            yield found, batch
            start = found.end
        else:
            start += 1


def read_batch(found: Frame, schema: pa.Schema) -> pa.RecordBatch | None:
    """Read a frame's payload as a record batch; None if it is none of these columns."""
    try:
        if found.payload[: len(ROWS_MARK)] == ROWS_MARK:
            rows = orjson.loads(found.payload[len(ROWS_MARK) :])
            return pa.RecordBatch.from_struct_array(pa.array(rows, pa.struct(list(schema))))
        batch = pa.ipc.read_record_batch(pa.py_buffer(found.payload), schema)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, TypeError):
        return None
    return batch
