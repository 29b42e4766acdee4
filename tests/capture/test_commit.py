import tempfile
import threading
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture import commit
from capture.commit import CommitReport, Committer
from capture.config import CaptureConfig
from capture.delta import Change, apply, open_table
from capture.errors import LogError
from capture.history import committed_rows
from capture.log import Log, query
from capture.parquet import rounded
from capture.rows import LogitRow, encode_logits
from capture.schema import LOGITS
from capture.spool import SegmentWriter, closed_segments
from capture.verify import verify
from tests.support.killed_commit import COMMIT, killed
from tests.support.log_folders import config_in, filled, folder_of, spool_exchanges, spool_logits
from tests.support.log_rows import exchange_row, logit_row
from tests.support.log_strategies import logit_rows
from tests.support.real_disk import fill, small_disk


def ids(config: CaptureConfig, sql: str = "select exchange_id from logits") -> list[str]:
    with Log(config.log).connect() as connection:
        rows = query(connection, sql).sort_by("exchange_id")
    return [str(name) for name in rows["exchange_id"].to_pylist()]


@given(rows=st.lists(logit_rows(), min_size=1, max_size=4))
@settings(max_examples=10)
def test_rows_come_back_from_the_log_as_they_were_but_for_rounding(rows: list[LogitRow]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = filled(Path(folder), logits=rows)
        with Log(config.log).connect() as connection:
            found = query(connection, "select * from logits").cast(LOGITS)

    expected = rounded(pa.Table.from_batches([encode_logits(rows)]))
    assert Counter(map(repr, found.to_pylist())) == Counter(map(repr, expected.to_pylist()))


def test_committing_again_does_nothing(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    spool_logits(config, logit_row("a"), logit_row("b"))

    first, second = Committer(config).commit(), Committer(config).commit()

    assert (first.rows["logits"], first.segments, first.files) == (2, 1, 1)
    assert second == CommitReport()
    assert ids(config) == ["a", "b"]
    assert closed_segments(config.spool) == []


def test_a_spool_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert Committer(config_in(tmp_path)).commit() == CommitReport()


def test_segments_of_many_writers_become_one_file_per_day_in_one_transaction(
    tmp_path: Path,
) -> None:
    config = config_in(tmp_path)
    for writer in range(4):
        rows = [logit_row(f"{writer}-{day}", day=f"2026-11-{day}") for day in (23, 24)]
        spool_logits(config, *rows)

    report = Committer(config).commit()

    table = open_table(config.log, "logits")
    assert table is not None
    assert (report.segments, report.files, table.version()) == (4, 2, 1)
    assert sorted(committed_rows(table).values()) == [2, 2, 2, 2]


def test_any_parquet_reader_sees_plain_columns(tmp_path: Path) -> None:
    config = filled(tmp_path, logits=[logit_row("a", day="2026-11-23"), logit_row("b")])

    found = ds.dataset(config.log / "logits", partitioning="hive", format="parquet").to_table()

    assert sorted(zip(found["exchange_id"].to_pylist(), found["day"].to_pylist(), strict=True)) == [
        ("a", "2026-11-23"),
        ("b", "2026-11-24"),
    ]
    assert found.schema.field("topk_ids").type.value_type == pa.int32()


@pytest.mark.timeout(300)  # starts a process
@pytest.mark.parametrize("point", COMMIT)
def test_killed_anywhere_each_row_is_committed_exactly_once(tmp_path: Path, point: str) -> None:
    config = config_in(tmp_path)
    for writer in "ab":
        rows = [logit_row(f"{writer}{i}", day=f"2026-11-2{i}") for i in (3, 4)]
        spool_logits(config, *rows)
    assert killed(config, "commit", point)

    Committer(config).commit()

    assert ids(config) == ["a3", "a4", "b3", "b4"]
    assert closed_segments(config.spool) == []
    found = verify(config)
    assert (found.problems, found.orphan_files) == ([], 0)


def test_committers_at_the_same_time_take_turns(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    for writer in range(6):
        spool_logits(config, logit_row(f"{writer}"))
    reports: list[CommitReport] = []
    threads = [
        threading.Thread(target=lambda: reports.append(Committer(config).commit()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(report.rows["logits"] for report in reports) == 6
    assert ids(config) == list("012345")


def test_the_table_itself_refuses_a_segment_it_has(tmp_path: Path) -> None:
    config = filled(tmp_path, logits=[logit_row("a")])
    stale = open_table(config.log, "logits", version=0)
    newest = open_table(config.log, "logits")
    assert stale is not None
    assert newest is not None
    (writer,) = committed_rows(newest)

    with pytest.raises(LogError, match="Concurrent transaction"):
        apply(config.log / "logits", stale, Change(segments={writer: {1: 1}}))


def test_what_a_dead_writer_left_is_recovered(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    config.spool.mkdir()
    writer = SegmentWriter(config.spool, "logits", LOGITS, "w")
    writer.append(encode_logits([logit_row("a")]))
    writer.abandon()
    (path,) = config.spool.glob("*.open")
    path.write_bytes(path.read_bytes() + b"torn")

    report = Committer(config).commit()

    assert (report.recovered, report.rows["logits"]) == (1, 1)
    assert ids(config) == ["a"]


def test_a_segment_waits_for_an_earlier_one_that_is_still_open(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    config.spool.mkdir()
    first = SegmentWriter(config.spool, "logits", LOGITS, "w")
    first.append(encode_logits([logit_row("a")]))
    second = SegmentWriter(config.spool, "logits", LOGITS, "w")
    second._name = first._name
    second.append(encode_logits([logit_row("b")]))
    second.rotate()

    Committer(config).commit()
    assert not (folder_of(config) / "logits").exists() or ids(config) == []

    first.rotate()
    Committer(config).commit()
    assert ids(config) == ["a", "b"]


def test_a_damaged_segment_gives_what_is_whole_and_is_set_aside(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    config.spool.mkdir()
    writer = SegmentWriter(config.spool, "logits", LOGITS, "w")
    for name in ("a", "b"):
        writer.append(encode_logits([logit_row(name)]))
    writer.rotate()
    (path,) = closed_segments(config.spool)
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)

    report = Committer(config).commit()

    assert (report.rows["logits"], report.quarantined) == (1, 1)
    assert ids(config) == ["a"]
    assert path.with_suffix(".bad").exists()
    assert Committer(config).commit().rows["logits"] == 0


def test_a_segment_that_cannot_be_read_does_not_stop_others(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    spool_logits(config, logit_row("a"))
    (config.spool / "logits-0-000001.seg").write_bytes(b"nothing")
    other = SegmentWriter(config.spool, "logits", pa.schema([("x", pa.int8())]), "1")
    other.append(pa.record_batch({"x": pa.array([1], pa.int8())}))
    other.rotate()

    report = Committer(config).commit()

    assert (report.quarantined, ids(config)) == (2, ["a"])


def test_a_backlog_is_committed_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "GROUP_BYTES", 1)
    config = config_in(tmp_path)
    for name in "abc":
        spool_logits(config, logit_row(name))

    Committer(config).commit()

    table = open_table(config.log, "logits")
    assert table is not None
    assert table.version() == 3
    assert ids(config) == ["a", "b", "c"]


def test_a_failing_store_keeps_the_rows(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    spool_logits(config, logit_row("a"))
    folder_of(config).write_text("in the way", encoding="utf-8")

    with pytest.raises(LogError, match="log"):
        Committer(config).commit()
    assert len(closed_segments(config.spool)) == 1

    folder_of(config).unlink()
    Committer(config).commit()
    assert ids(config) == ["a"]


def test_a_log_whose_disk_is_full_keeps_the_rows_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "256k") as disk:
        config = config_in(tmp_path).model_copy(update={"log": disk / "log"})
        spool_logits(config, logit_row("a"))
        Committer(config).commit()
        ballast = disk / "ballast"
        fill(ballast)
        spool_logits(config, logit_row("b"))
        with pytest.raises(LogError, match="No space"):
            Committer(config).commit()
        assert ids(config) == ["a"]

        ballast.unlink()
        Committer(config).commit()

        found = verify(config)
        assert (ids(config), found.problems, found.orphan_files) == (["a", "b"], [], 0)


def test_a_watch_outlives_a_failing_store_and_commits_once_more_at_its_end(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    failed, stop = threading.Semaphore(0), threading.Event()

    class Watched(Committer):
        def commit(self) -> CommitReport:
            try:
                return super().commit()
            except LogError:
                failed.release()
                raise

    folder_of(config).write_text("in the way", encoding="utf-8")
    spool_logits(config, logit_row("a"))
    thread = threading.Thread(target=Watched(config).watch, args=(stop,))
    thread.start()
    assert failed.acquire(timeout=30)
    assert failed.acquire(timeout=30)
    folder_of(config).unlink()
    spool_exchanges(config, exchange_row("b"))
    stop.set()
    thread.join()

    assert (ids(config), ids(config, "from exchanges")) == (["a"], ["b"])


@pytest.mark.slow
def test_counts_outlive_deltas_checkpoints(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    for i in range(105):
        spool_logits(config, logit_row(f"{i:03}"))
        Committer(config).commit()

    assert list((folder_of(config) / "logits" / "_delta_log").glob("*.checkpoint.parquet"))
    assert len(ids(config)) == 105
    assert verify(config).problems == []
