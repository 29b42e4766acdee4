import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import compaction, rewrite
from capture.commit import Committer
from capture.compaction import FAN_IN, REST_SECONDS, compact_due, due
from capture.config import CaptureConfig
from capture.delta import (
    Change,
    DataFile,
    active_files,
    apply,
    days_of,
    new_path,
    open_table,
    write_file,
)
from capture.errors import LogError
from capture.log import Log, query
from capture.rewrite import GROUP_BYTES, SMALL_BYTES
from capture.rows import LogitRow, encode_logits
from capture.schema import LOGITS
from capture.spool import SegmentWriter
from capture.verify import verify
from tests.support.log_folders import config_in, spool_logits
from tests.support.log_rows import DAY, logit_row
from tests.support.spool_model import rows_in_log

NOW = 1_800_000_000.0


def file(number: int, num_bytes: int = 20_000, *, day: str = DAY, age: float = 1.0) -> DataFile:
    return DataFile(f"day={day}/{number:06}", day, num_bytes, 1, NOW - age)


def test_as_many_files_of_a_size_as_the_fan_in_are_joined_and_no_fewer() -> None:
    files = [file(i) for i in range(FAN_IN)]
    assert due(files, NOW) == files
    assert due(files[1:], NOW) == []
    assert due([*files[1:], file(99, 20_000 * FAN_IN)], NOW) == []
    assert due([*files[1:], file(99, day="2026-11-25")], NOW) == []


def test_a_day_at_rest_ends_with_one_small_file() -> None:
    files = [file(i, 5_000 * 100**i, age=REST_SECONDS + 1) for i in range(3)]
    assert due(files, NOW) == files
    assert due(files[:1], NOW) == []
    assert due([*files, file(4)], NOW) == []


def test_large_files_stay_as_they_are() -> None:
    files = [file(i, SMALL_BYTES, age=REST_SECONDS + 1) for i in range(FAN_IN)]
    assert due(files, NOW) == []


@given(sizes=st.lists(st.integers(1, 2 * SMALL_BYTES), max_size=60), rests=st.booleans())
def test_joining_comes_to_an_end_and_makes_no_file_too_large(sizes: list[int], rests: bool) -> None:
    age = REST_SECONDS * 2 if rests else 1.0
    files = [file(i, size, age=age) for i, size in enumerate(sizes)]
    while group := due(files, NOW):
        total = sum(one.num_bytes for one in group)
        assert len(group) > 1
        assert total <= GROUP_BYTES
        files = [*(set(files) - set(group)), replace(file(len(files)), num_bytes=total)]


def test_a_day_of_commits_writes_each_row_a_few_times_and_keeps_few_files() -> None:
    files: list[DataFile] = []
    written = 0
    for number in range(10_000):
        files.append(file(number))
        while group := due(files, NOW):
            total = sum(one.num_bytes for one in group)
            written += total
            files = [one for one in files if one not in group]
            files.append(replace(file(1_000_000 + number), num_bytes=total))
    assert len(files) < 4 * FAN_IN
    assert written / (10_000 * 20_000) < 4


def committed(config: CaptureConfig, writer: SegmentWriter, number: int) -> None:
    writer.append(encode_logits([logit_row(str(number), seed=number)]))
    writer.rotate()
    Committer(config).commit()


def test_files_that_are_due_become_one_and_every_row_stays_accounted_for(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    config.spool.mkdir()
    writer = SegmentWriter(config.spool, "logits", LOGITS, "w")
    for number in range(FAN_IN):
        committed(config, writer, number)
    before = Log(config.log).snapshot()

    assert compact_due(config, NOW) == FAN_IN
    assert compact_due(config, 0.0) == 0

    table = open_table(config.log, "logits")
    assert table is not None
    assert len(active_files(table)) == 1
    found = verify(config)
    assert (found.problems, found.orphan_files) == ([], 0)
    assert found.tables["logits"].committed == FAN_IN
    assert Log(config.log).read(before, ["exchange_id"]).num_rows == before.num_rows


def test_a_watch_joins_files_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_in(tmp_path)
    config.spool.mkdir()
    writer = SegmentWriter(config.spool, "logits", LOGITS, "w")
    for number in range(FAN_IN):
        committed(config, writer, number)
    stop, real = threading.Event(), compaction.due

    def choose(files: list[DataFile], now: float) -> list[DataFile]:
        if not (group := real(files, now)):
            stop.set()
        return group

    monkeypatch.setattr(compaction, "due", choose)
    thread = threading.Thread(target=Committer(config).watch, args=(stop,))
    thread.start()
    thread.join()

    table = open_table(config.log, "logits")
    assert table is not None
    assert len(active_files(table)) == 1
    assert rows_in_log(config, "logits") == {str(i): 1 for i in range(FAN_IN)}


@pytest.fixture
def two_files(tmp_path: Path) -> CaptureConfig:
    config = config_in(tmp_path)
    for name in "ab":
        spool_logits(config, logit_row(name))
        Committer(config).commit()
    return config


def meanwhile(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let somebody whose locks are not ours act once, between a join's look and its transaction."""
    acted = Counter[str]()

    def write(folder: Path, path: str, day: str, rows: pa.Table) -> DataFile:
        acted["times"] += 1
        if acted["times"] == 1:
            act()
        return write_file(folder, path, day, rows)

    patch.setattr(rewrite, "write_file", write)


def test_files_that_somebody_else_joined_meanwhile_are_left_alone(
    two_files: CaptureConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = open_table(two_files.log, "logits")
    assert table is not None
    group = active_files(table)
    meanwhile(monkeypatch, lambda: rewrite.join(two_files.log, "logits", group, new_path(DAY)))

    assert compact_due(two_files, NOW * 2) == 0

    Committer(two_files).commit()
    assert rows_in_log(two_files, "logits") == {"a": 1, "b": 1}
    found = verify(two_files)
    assert (found.problems, found.orphan_files) == ([], 0)


def test_rows_that_somebody_else_commits_meanwhile_are_no_conflict(
    two_files: CaptureConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = write_file(
        two_files.log / "logits", new_path(DAY), DAY, days_of(table_of(logit_row("c")))[DAY]
    )
    table = open_table(two_files.log, "logits")
    assert table is not None
    change = Change([added], segments={"elsewhere": {1: 1}})
    meanwhile(monkeypatch, lambda: apply(two_files.log / "logits", table, change))

    assert compact_due(two_files, NOW * 2) == 2
    assert rows_in_log(two_files, "logits") == {"a": 1, "b": 1, "c": 1}
    assert verify(two_files).tables["logits"].committed == 3


def table_of(*rows: LogitRow) -> pa.Table:
    return pa.Table.from_batches([encode_logits(rows)])


def test_a_watch_goes_on_where_joining_fails(
    two_files: CaptureConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()

    def fail(*_: object) -> list[DataFile]:
        stop.set()
        raise LogError("the store failed")

    monkeypatch.setattr(compaction, "due", fail)
    spool_logits(two_files, logit_row("c"))
    Committer(two_files).watch(stop)

    assert rows_in_log(two_files, "logits") == {"a": 1, "b": 1, "c": 1}
    assert "small files stay as they are" in caplog.text


class Busy:
    """A log that is written, joined and read at the same time, until every row is in."""

    def __init__(self, config: CaptureConfig, num_rows: int) -> None:
        config.spool.mkdir()
        self.config = config
        self.num_rows = num_rows
        self.num_committed = 0
        self.reads: list[tuple[int, Counter[str]]] = []

    def run(self) -> None:
        targets = (self.write, self.read, self.read, self.join)
        threads = [threading.Thread(target=target) for target in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def write(self) -> None:
        writer = SegmentWriter(self.config.spool, "logits", LOGITS, "w")
        for number in range(self.num_rows):
            committed(self.config, writer, number)
            self.num_committed = number + 1

    def read(self) -> None:
        while self.num_committed < self.num_rows:
            at_least = self.num_committed
            with Log(self.config.log).connect() as connection:
                rows = query(connection, "select exchange_id from logits")
            self.reads.append((at_least, Counter(rows["exchange_id"].to_pylist())))

    def join(self) -> None:
        while self.num_committed < self.num_rows:
            compact_due(self.config, 0.0)


def test_readers_and_writers_go_on_while_files_are_joined(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    busy = Busy(config, 3 * FAN_IN)
    busy.run()

    assert busy.reads
    for at_least, found in busy.reads:
        assert len(found) >= at_least
        assert found == Counter(str(number) for number in range(len(found)))
    table = open_table(config.log, "logits")
    assert table is not None
    assert len(active_files(table)) < 2 * FAN_IN
    verified = verify(config)
    assert (verified.problems, verified.tables["logits"].committed) == ([], 3 * FAN_IN)
