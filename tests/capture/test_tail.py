"""Rows as they are appended, whatever becomes of their segment meanwhile."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.rows import encode_logits
from capture.schema import LOGITS
from capture.spool import CLOSED, OPEN, SegmentWriter
from capture.tail import SpoolTail
from tests.support.log_rows import logit_row


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SegmentWriter]:
    made = SegmentWriter(tmp_path, "logits", LOGITS, "w")
    yield made
    made.rotate()


def append(writer: SegmentWriter, *names: str) -> None:
    writer.append(encode_logits([logit_row(name) for name in names]))


def new(tail: SpoolTail) -> list[str]:
    return [name for batch in tail.new() for name in batch["exchange_id"].to_pylist()]


def test_rows_come_once_and_in_order(tmp_path: Path, writer: SegmentWriter) -> None:
    append(writer, "a")
    tail = SpoolTail(tmp_path, "logits")
    assert new(tail) == ["a"]  # of a segment that is open
    append(writer, "b", "c")
    append(writer, "d")
    assert new(tail) == ["b", "c", "d"]
    assert new(tail) == []
    writer.rotate()
    append(writer, "e")
    assert new(tail) == ["e"]
    tail.close()


def test_a_segment_that_is_closed_and_committed_is_read_to_its_end(
    tmp_path: Path, writer: SegmentWriter
) -> None:
    tail = SpoolTail(tmp_path, "logits")
    append(writer, "a")
    assert new(tail) == ["a"]
    append(writer, "b")
    writer.rotate()
    (segment,) = tmp_path.glob(f"*{CLOSED}")
    segment.unlink()

    assert new(tail) == ["b"]
    assert new(tail) == []


def test_a_segment_that_was_closed_before_is_left_out_and_one_that_is_closed_later_is_not(
    tmp_path: Path, writer: SegmentWriter
) -> None:
    append(writer, "old")
    writer.rotate()
    tail = SpoolTail(tmp_path, "logits")
    append(writer, "a")
    writer.rotate()

    assert new(tail) == ["a"]
    assert new(tail) == []


def test_a_row_that_is_half_written_comes_when_it_is_whole(
    tmp_path: Path, writer: SegmentWriter
) -> None:
    append(writer, "a", "b")
    (path,) = tmp_path.glob(f"*{OPEN}")
    whole = path.read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    torn = other / path.name
    torn.write_bytes(whole[:-7])
    tail = SpoolTail(other, "logits")

    assert new(tail) == []
    torn.write_bytes(whole)
    assert new(tail) == ["a", "b"]
    tail.close()


def test_other_tables_are_left_alone(tmp_path: Path, writer: SegmentWriter) -> None:
    append(writer, "a")

    assert new(SpoolTail(tmp_path, "exchanges")) == []
