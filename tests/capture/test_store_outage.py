"""An object store that fails loses nothing and doubles nothing."""

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from capture import commit
from capture.commit import CommitReport, Committer
from capture.config import CaptureConfig
from capture.delta import DataFile, write_file
from capture.errors import LogError
from capture.log import Log, query
from capture.spool import closed_segments
from capture.store import data_files
from capture.verify import verify
from tests.support.buckets import Bucket
from tests.support.killed_commit import killed
from tests.support.log_folders import spool_exchanges, spool_logits
from tests.support.log_rows import exchange_row, logit_row

pytestmark = pytest.mark.timeout(300)  # a server written in Python, on a machine that may be busy
HINT = r"^s3://.*refused.*; if the store cannot be reached, check AWS_ENDPOINT_URL"


def ids(config: CaptureConfig, table: str = "logits") -> list[str]:
    with Log(config.log).connect() as connection:
        rows = query(connection, f"from {table} order by exchange_id")
    return [str(name) for name in rows["exchange_id"].to_pylist()]


def assert_whole(config: CaptureConfig, expected: list[str]) -> None:
    """Every row once, no segment and no file left over."""
    assert ids(config) == expected
    assert closed_segments(config.spool) == []
    found = verify(config)
    assert (found.problems, found.orphan_files) == ([], 0)
    assert found.tables["logits"].committed == len(expected)


def test_a_store_that_is_away_keeps_the_rows(bucket: Bucket, tmp_path: Path) -> None:
    config = bucket.config(tmp_path)
    spool_logits(config, logit_row("a"))
    bucket.gate.shut()

    with pytest.raises(LogError, match=HINT):
        Committer(config).commit()
    with pytest.raises(LogError, match=HINT):
        Log(config.log).versions()
    assert len(closed_segments(config.spool)) == 1

    bucket.gate.open()
    Committer(config).commit()
    assert_whole(config, ["a"])


def test_going_away_between_file_and_transaction_loses_and_doubles_nothing(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = bucket.config(tmp_path)
    spool_logits(config, logit_row("a"))

    def then_shut(*args: Any) -> DataFile:
        file = write_file(*args)
        bucket.gate.shut()
        return file

    with monkeypatch.context() as patch:
        patch.setattr(commit, "write_file", then_shut)
        with pytest.raises(LogError, match=HINT):
            Committer(config).commit()
    assert len(closed_segments(config.spool)) == 1

    bucket.gate.open()
    assert len(data_files(bucket.log / "logits")) == 1
    Committer(config).commit()
    assert_whole(config, ["a"])


@pytest.mark.parametrize(
    "part", ["_delta_log/00000000000000000000", "_delta_log/00000000000000000001", ".parquet"]
)
def test_an_answer_that_is_lost_doubles_nothing(bucket: Bucket, tmp_path: Path, part: str) -> None:
    config = bucket.config(tmp_path)
    spool_logits(config, logit_row("a"))
    bucket.gate.lose_answer("PUT", part)

    Committer(config).commit()

    assert bucket.gate.has_lost_it()
    assert_whole(config, ["a"])


@pytest.mark.parametrize(
    "point", ["first file written", "before the transaction", "after the transaction"]
)
def test_killed_on_the_way_each_row_is_committed_exactly_once(
    bucket: Bucket, tmp_path: Path, point: str
) -> None:
    config = bucket.config(tmp_path / "spool")
    spool_logits(config, logit_row("a", day="2026-11-23"), logit_row("b"))
    assert killed(config, "commit", point)
    assert data_files(bucket.log / "logits")

    Committer(config).commit()

    assert_whole(config, ["a", "b"])


def test_a_watch_goes_on_by_itself_when_the_store_is_back(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    monkeypatch.setattr(commit, "MAX_PAUSE_SECONDS", 1.0)
    config = bucket.config(tmp_path)
    failed, committed, stop = threading.Semaphore(0), threading.Semaphore(0), threading.Event()

    class Watched(Committer):
        def commit(self) -> CommitReport:
            try:
                report = super().commit()
            except LogError:
                failed.release()
                raise
            if report.segments:
                committed.release()
            return report

    watch = threading.Thread(target=Watched(config).watch, args=(stop,))
    spool_logits(config, logit_row("000"))
    watch.start()
    assert committed.acquire(timeout=30)

    bucket.gate.shut()
    back_at = time.monotonic() + pytestconfig.getoption("--outage-seconds")
    names = ["000"]
    for number in itertools.count(1):
        names.append(f"{number:03}")
        spool_exchanges(config, exchange_row(names[-1]))
        spool_logits(config, logit_row(names[-1]))
        assert failed.acquire(timeout=30)
        if time.monotonic() > back_at:
            break
    bucket.gate.open()

    assert committed.acquire(timeout=30)
    stop.set()
    watch.join()
    assert ids(config, "exchanges") == names[1:]
    assert_whole(config, names)
