import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.damage import Damage
from capture.errors import SpoolError
from capture.locks import create_locked
from capture.quarantine import Note, quarantined
from capture.recovery import recover
from capture.rows import ExchangeRow, LogitRow, encode_exchanges, encode_logits
from capture.schema import EXCHANGES, LOGITS
from capture.spool import (
    BAD,
    OpenSegment,
    SegmentName,
    SegmentWriter,
    closed_segments,
    living_writers,
    read_segment,
    segments,
)
from tests.support.full_disk import full_disk
from tests.support.log_rows import exchange_row, logit_row
from tests.support.log_strategies import logit_rows


def written(folder: Path, *batches: list[LogitRow], writer: str = "w") -> Path:
    """One closed segment holding the batches."""
    segment = SegmentWriter(folder, "logits", LOGITS, writer)
    for batch in batches:
        segment.append(encode_logits(batch))
    segment.rotate()
    return closed_segments(folder)[-1]


def died(folder: Path, data: bytes) -> Path:
    """What a dead writer leaves: an open segment that nobody has locked."""
    path = folder / "logits-w-000001.open"
    path.write_bytes(data)
    return path


@given(batches=st.lists(st.lists(logit_rows(), min_size=1, max_size=2), min_size=1, max_size=2))
@settings(max_examples=15)
def test_a_segment_gives_back_the_batches_it_took(batches: list[list[LogitRow]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        segment = read_segment(written(Path(folder), *batches))

    expected = [encode_logits(rows) for rows in batches]
    assert all(map(pa.RecordBatch.equals, segment.batches, expected))
    assert len(segment.batches) == len(batches)
    assert segment.is_whole


def test_an_open_segment_can_be_read_and_is_not_for_commit(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "logits", LOGITS, "w")
    writer.append(encode_logits([logit_row()]))

    assert closed_segments(tmp_path) == []
    assert read_segment(tmp_path / "logits-w-000001.open").num_rows == 1
    writer.abandon()


def test_rotation_numbers_segments_and_orders_them_by_table_writer_and_number(
    tmp_path: Path,
) -> None:
    for writer in ("b", "a"):
        segment = SegmentWriter(tmp_path, "logits", LOGITS, writer)
        for _ in range(11):
            segment.append(encode_logits([logit_row()]))
            segment.rotate()
        segment.rotate()  # nothing under way: no empty segment

    names = [path.stem for path in closed_segments(tmp_path)]
    assert names == [f"logits-{w}-{n:06d}" for w in "ab" for n in range(1, 12)]


@pytest.fixture(scope="module")
def three_batches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[pa.RecordBatch]]:
    """A segment of three batches of one row."""
    rows = [[logit_row(seed=seed)] for seed in range(3)]
    path = written(tmp_path_factory.mktemp("spool"), *rows)
    return path, [encode_logits(one) for one in rows]


@given(data=st.data())
@settings(max_examples=60)
def test_any_cut_of_a_segment_recovers_a_prefix_of_whole_batches(
    three_batches: tuple[Path, list[pa.RecordBatch]], data: st.DataObject
) -> None:
    path, batches = three_batches
    whole = path.read_bytes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        died(folder, whole[: data.draw(st.integers(0, len(whole)))])

        recovered = recover(folder)

        found = [read_segment(path) for path in closed_segments(folder)]
        assert len(found) == recovered
        assert all(segment.is_whole for segment in found)
        assert segments(folder, ".open") == []
    kept = [batch for segment in found for batch in segment.batches]
    assert all(map(pa.RecordBatch.equals, kept, batches))


@given(data=st.data())
@settings(max_examples=80)
def test_a_flipped_byte_never_yields_other_rows(
    three_batches: tuple[Path, list[pa.RecordBatch]], data: st.DataObject
) -> None:
    path, batches = three_batches
    altered = bytearray(path.read_bytes())
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = path.with_name("damaged")
    damaged.write_bytes(altered)
    try:
        segment = read_segment(damaged)
    except SpoolError:
        return
    assert not segment.is_whole
    assert len(segment.batches) < len(batches)
    assert all(map(pa.RecordBatch.equals, segment.batches, batches))


TEXTS = st.text(max_size=9)  # without surrogates, which no UTF-8 holds


@given(
    rows=st.lists(
        st.builds(
            exchange_row,
            TEXTS,
            texts=st.lists(TEXTS, max_size=3).map(tuple),
            completion_tokens=st.none() | st.integers(0, 2**31 - 1),
            tenant=st.none() | TEXTS,
        ),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=30)
def test_exchanges_come_back_as_they_were(rows: list[ExchangeRow]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = SegmentWriter(Path(folder), "exchanges", EXCHANGES, "w")
        writer.append(encode_exchanges(rows))
        writer.append(encode_exchanges(rows[:1]))
        writer.rotate()
        segment = read_segment(*closed_segments(Path(folder)))

    assert segment.is_whole
    assert [batch.num_rows for batch in segment.batches] == [len(rows), 1]
    assert all(batch.schema == EXCHANGES for batch in segment.batches)
    assert segment.batches[0].to_pylist() == [asdict(row) for row in rows]


def test_a_tail_of_zeros_is_torn_off(tmp_path: Path) -> None:
    path = written(tmp_path, [logit_row()])
    died(tmp_path, path.read_bytes() + bytes(4096))
    path.unlink()

    assert recover(tmp_path) == 1
    segment = read_segment(*closed_segments(tmp_path))
    assert (segment.num_rows, segment.is_whole) == (1, True)


def test_a_living_writers_segment_is_left_alone(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "logits", LOGITS, "w")
    writer.append(encode_logits([logit_row()]))

    assert recover(tmp_path) == 0
    writer.append(encode_logits([logit_row()]))
    writer.rotate()
    assert read_segment(*closed_segments(tmp_path)).num_rows == 2


def test_a_segment_that_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    died(tmp_path, b"no segment at all")

    assert recover(tmp_path) == 0
    assert [path.name for _, path in segments(tmp_path, BAD)] == ["logits-w-000001.bad"]
    ((_, note),) = quarantined(tmp_path)
    assert note == Note(damage=Damage("cut short", 0, 0))


def test_a_segment_of_another_format_is_named_with_what_was_expected(tmp_path: Path) -> None:
    segment = OpenSegment(tmp_path, SegmentName("logits", "w", 1))
    segment.append([b'{"format_version": 9}', LOGITS.serialize()])
    segment.close()
    (path,) = closed_segments(tmp_path)

    with pytest.raises(SpoolError, match="format 9, expected 1"):
        read_segment(path)


def test_files_of_others_in_the_spool_are_not_touched(tmp_path: Path) -> None:
    for name in ("notes.seg", "a-b.open", "README"):
        (tmp_path / name).write_text("mine", encoding="utf-8")

    assert recover(tmp_path) == 0
    assert closed_segments(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 3


def test_a_disk_that_is_full_from_the_start_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with full_disk(monkeypatch), pytest.raises(OSError, match="No space"):
        SegmentWriter(tmp_path, "logits", LOGITS, "w").append(encode_logits([logit_row()]))
    assert list(tmp_path.iterdir()) == []


def test_a_frame_written_in_part_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SegmentWriter(tmp_path, "logits", LOGITS, "w")
    writer.append(encode_logits([logit_row()]))
    whole, real = writer.num_bytes, os.writev
    monkeypatch.setattr(os, "writev", lambda file, parts: real(file, [b"".join(parts)[:100]]))

    with pytest.raises(OSError, match="No space"):
        writer.append(encode_logits([logit_row()]))

    path = tmp_path / "logits-w-000001.open"
    assert path.stat().st_size == whole
    assert read_segment(path).is_whole
    writer.abandon()


@pytest.mark.timeout(300)  # starts a process
def test_rows_of_a_killed_process_survive_it(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, pathlib\n"
        "from capture.rows import encode_logits\n"
        "from capture.schema import LOGITS\n"
        "from capture.spool import SegmentWriter\n"
        "from tests.support.log_rows import logit_row\n"
        "writer = SegmentWriter(pathlib.Path(sys.argv[1]), 'logits', LOGITS, 'w')\n"
        "for seed in range(5): writer.append(encode_logits([logit_row(seed=seed)]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)

    assert ended.returncode == -9
    assert recover(tmp_path) == 1
    batches = read_segment(*closed_segments(tmp_path)).batches
    expected = [encode_logits([logit_row(seed=seed)]) for seed in range(5)]
    assert [batch.to_pylist() for batch in batches] == [batch.to_pylist() for batch in expected]


def test_a_writer_lives_while_it_holds_its_lock(tmp_path: Path) -> None:
    file = create_locked(tmp_path / "logits-w.lock")
    recover(tmp_path)
    assert living_writers(tmp_path) == {("logits", "w")}

    os.close(file)
    assert living_writers(tmp_path) == set()
    recover(tmp_path)
    assert list(tmp_path.iterdir()) == []
