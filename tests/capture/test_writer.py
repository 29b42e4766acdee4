import errno
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from capture import writer
from capture.account import read_counts
from capture.recovery import recover
from capture.rows import LogitRow, encode_logits
from capture.spool import closed_segments, read_segment, segments
from capture.writer import Spool, SpoolLimits
from tests.support.full_disk import failing_disk, full_disk
from tests.support.log_rows import logit_row

LONG = 600.0  # longer than any test: a deadline that must not be what makes it pass


def open_spool(
    folder: Path,
    encode: Callable[[Sequence[LogitRow]], pa.RecordBatch] = encode_logits,
    **limits: float,
) -> Spool[LogitRow]:
    wanted = {"sync_seconds": LONG, "segment_seconds": LONG, **limits}
    return Spool(folder, "logits", encode, limits=SpoolLimits(**wanted))  # type: ignore[arg-type]


def rows_in(folder: Path) -> list[str]:
    """Exchange ids of closed segments, in order."""
    batches = (batch for path in closed_segments(folder) for batch in read_segment(path).batches)
    return [row for batch in batches for row in batch.column("exchange_id").to_pylist()]


class Gate:
    """An encoder that waits, so that rows pile up behind it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def encode(self, rows: Sequence[LogitRow]) -> pa.RecordBatch:
        self.entered.set()
        assert self.opened.wait(10)
        return encode_logits(rows)


def offer_and_wait(spool: Spool[LogitRow], row: LogitRow, *, synced: bool = False) -> None:
    done = threading.Event()
    tell = {"synced": done.set} if synced else {"written": done.set}
    assert spool.offer(row, row.num_bytes, **tell)
    assert done.wait(10)


def test_every_row_offered_is_in_a_closed_segment_after_close(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    names = [f"x{i}" for i in range(50)]
    for name in names:
        spool.account.start()
        assert spool.offer(logit_row(name), 100)
    spool.close()

    assert rows_in(tmp_path) == names
    (counts,) = read_counts(tmp_path).values()
    assert (counts.started, counts.written, counts.dropped) == (50, 50, {})
    assert list(tmp_path.glob("*.lock")) == []


def test_rows_that_pile_up_become_one_batch(tmp_path: Path) -> None:
    gate = Gate()
    spool = open_spool(tmp_path, gate.encode)
    spool.offer(logit_row("first"), 100)
    assert gate.entered.wait(10)
    for name in ("a", "b", "c"):
        spool.offer(logit_row(name), 100)
    gate.opened.set()
    spool.close()

    (path,) = closed_segments(tmp_path)
    assert [batch.num_rows for batch in read_segment(path).batches] == [1, 3]


def test_written_is_called_when_the_row_is_in_the_file(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    offer_and_wait(spool, logit_row("x"))

    ((_, path),) = segments(tmp_path, ".open")
    assert read_segment(path).num_rows == 1
    spool.close()


def test_only_synced_rows_wait_for_a_disk_that_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    real, syncing, goes_on = os.fsync, threading.Event(), threading.Event()

    def sync(file: int) -> None:
        syncing.set()
        assert goes_on.wait(10)
        real(file)
        happened.append("sync")

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "fdatasync", sync)
    spool = open_spool(tmp_path, segment_bytes=1)  # closing segments does not hold rows up either
    spool.offer(logit_row("a"), 100, synced=lambda: happened.append("strict"))
    assert syncing.wait(10)
    for name in "bc":
        offer_and_wait(spool, logit_row(name))
        happened.append("durable")
    goes_on.set()
    spool.close()

    assert happened[:3] == ["durable", "durable", "sync"]
    assert happened.count("strict") == 1
    assert rows_in(tmp_path) == ["a", "b", "c"]


def test_a_full_buffer_drops_and_counts_without_waiting(tmp_path: Path) -> None:
    gate = Gate()
    spool = open_spool(tmp_path, gate.encode, buffer_bytes=1000)
    assert spool.offer(logit_row("written while others wait"), 600)
    assert gate.entered.wait(10)
    taken = [spool.offer(logit_row(f"x{i}"), 200) for i in range(3)]
    gate.opened.set()
    spool.close()

    assert taken == [True, True, False]
    (counts,) = read_counts(tmp_path).values()
    assert (counts.written, counts.dropped) == (3, {"overflow": 1})


def test_a_closed_spool_takes_nothing(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.close()
    spool.close()
    assert not spool.offer(logit_row(), 100)


def test_a_full_disk_loses_rows_counted_and_later_rows_get_a_fresh_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(tmp_path)
    offer_and_wait(spool, logit_row("before"))
    with full_disk(monkeypatch):
        offer_and_wait(spool, logit_row("lost"), synced=True)
        offer_and_wait(spool, logit_row("lost too"))
    offer_and_wait(spool, logit_row("after"))
    spool.close()

    (counts,) = read_counts(tmp_path).values()
    assert (counts.written, counts.dropped) == (2, {"store": 2})
    assert rows_in(tmp_path) == ["after"]
    ((_, abandoned),) = segments(tmp_path, ".open")
    assert read_segment(abandoned).num_rows == 1


def test_a_row_that_cannot_be_encoded_does_not_take_others_along(tmp_path: Path) -> None:
    gate = Gate()

    def encode(rows: Sequence[LogitRow]) -> pa.RecordBatch:
        batch = gate.encode(rows)
        if any(row.exchange_id == "bad" for row in rows):
            raise KeyError("bad")
        return batch

    spool = open_spool(tmp_path, encode)
    spool.offer(logit_row("first"), 100)
    assert gate.entered.wait(10)
    told: list[str] = []
    for name in ("a", "bad", "b"):
        spool.offer(logit_row(name), 100, written=lambda name=name: told.append(name))  # type: ignore[misc]
    gate.opened.set()
    spool.close()

    assert rows_in(tmp_path) == ["first", "a", "b"]
    assert told == ["a", "bad", "b"]
    (counts,) = read_counts(tmp_path).values()
    assert (counts.written, counts.dropped) == (3, {"encode": 1})


def test_a_callback_that_fails_does_not_end_the_writer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = open_spool(tmp_path)

    def fail() -> None:
        raise RuntimeError("the loop is closed")

    spool.offer(logit_row("a"), 100, written=fail)
    offer_and_wait(spool, logit_row("b"))
    spool.close()

    assert rows_in(tmp_path) == ["a", "b"]
    assert "callback failed" in caplog.text


def test_segments_are_closed_by_size(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, segment_bytes=1)
    for name in "abc":
        offer_and_wait(spool, logit_row(name))
    spool.close()

    assert len(closed_segments(tmp_path)) == 3


def test_an_idle_segment_is_closed_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        moved = real(self, target)
        closed.set()
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    spool = open_spool(tmp_path, segment_seconds=0.05)
    spool.offer(logit_row("x"), 100)
    assert closed.wait(10)

    assert rows_in(tmp_path) == ["x"]
    spool.close()


def test_counts_reach_the_disk_though_no_row_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = threading.Event()
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        moved = real(self, target)
        saved.set()
        return moved

    monkeypatch.setattr(Path, "replace", replace)
    spool = open_spool(tmp_path, sync_seconds=0.01)
    spool.account.start()
    assert saved.wait(10)

    assert [counts.started for counts in read_counts(tmp_path).values()] == [1]
    spool.close()


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)

    def offer(worker: int) -> None:
        for i in range(200):
            spool.account.start()
            spool.offer(logit_row(f"{worker}-{i}"), 100)

    threads = [threading.Thread(target=offer, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spool.close()

    assert sorted(rows_in(tmp_path)) == sorted(f"{w}-{i}" for w in range(4) for i in range(200))
    (counts,) = read_counts(tmp_path).values()
    assert (counts.started, counts.written) == (800, 800)


def test_a_disk_that_cannot_sync_ends_the_segment_and_loses_no_written_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    spool = open_spool(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        offer_and_wait(spool, logit_row("a"), synced=True)
    offer_and_wait(spool, logit_row("b"), synced=True)
    spool.close()

    assert recover(tmp_path) == 1
    assert sorted(rows_in(tmp_path)) == ["a", "b"]
    (counts,) = read_counts(tmp_path).values()
    assert (counts.written, counts.dropped) == (2, {})


def test_a_segment_that_cannot_be_closed_is_left_to_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(tmp_path)
    offer_and_wait(spool, logit_row("a"))

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        spool.close()

    assert closed_segments(tmp_path) == []
    assert recover(tmp_path) == 1
    assert rows_in(tmp_path) == ["a"]


def test_counts_that_the_disk_refused_are_saved_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, saved, real = threading.Event(), threading.Event(), Path.replace
    is_back = threading.Event()

    def replace(self: Path, target: Path) -> Path:
        if not is_back.is_set():
            refused.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        moved = real(self, target)
        saved.set()
        return moved

    monkeypatch.setattr(Path, "replace", replace)
    spool = open_spool(tmp_path, sync_seconds=0.01)
    spool.account.start()
    assert refused.wait(10)
    is_back.set()
    assert saved.wait(10)

    assert [counts.started for counts in read_counts(tmp_path).values()] == [1]
    spool.close()


def test_rows_may_wait_for_a_full_disk_and_are_all_written_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.01)
    spool = open_spool(tmp_path, holds_rows=True, buffer_bytes=1000)
    with failing_disk(monkeypatch, errno.ENOSPC) as refusals:
        taken = [spool.offer(logit_row(f"x{i}"), 400) for i in range(3)]
        assert refusals.acquire(timeout=10)
        assert refusals.acquire(timeout=10)
        assert spool.is_filling
    spool.close()

    assert taken == [True, True, False]
    assert rows_in(tmp_path) == ["x0", "x1"]
    (counts,) = read_counts(tmp_path).values()
    assert (counts.written, counts.dropped) == (2, {"overflow": 1})
