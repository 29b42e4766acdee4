from pathlib import Path

import pyarrow.parquet as pq
import pytest

from capture import rewrite
from capture.commit import Committer
from capture.config import CaptureConfig
from capture.delta import active_files, open_table
from capture.log import Log
from capture.rewrite import compact
from capture.verify import verify
from tests.support.log_folders import config_in, ids_on_disk, scattered, spool_logits
from tests.support.log_rows import logit_row


def num_files(config: CaptureConfig, name: str) -> int:
    table = open_table(config.log, name)
    assert table is not None
    return len(active_files(table))


def test_compaction_joins_the_files_of_a_day_and_changes_no_row(tmp_path: Path) -> None:
    config = scattered(tmp_path)
    log = Log(config.log)
    before = log.snapshot()
    rows = log.read(before, ["exchange_id", "topk_ids", "topk_logprobs", "day"])

    done = compact(config.log)

    assert (done.files_before, done.files_after) == (4, 2)
    assert (num_files(config, "logits"), num_files(config, "exchanges")) == (2, 2)
    after = log.snapshot()
    assert after.digest == before.digest
    assert log.read(after, rows.column_names).equals(rows)
    assert log.read(before, rows.column_names).equals(rows)
    assert verify(config).problems == []


def test_compaction_keeps_the_encodings_and_does_nothing_twice(tmp_path: Path) -> None:
    config = scattered(tmp_path)
    compact(config.log)
    assert compact(config.log).files_before == 0

    table = open_table(config.log, "logits")
    assert table is not None
    for file in active_files(table):
        group = pq.ParquetFile(config.log / "logits" / file.path).metadata.row_group(0)
        columns = [group.column(i) for i in range(group.num_columns)]
        (ids,) = [c for c in columns if c.path_in_schema == "topk_ids.list.element"]
        assert "BYTE_STREAM_SPLIT" in ids.encodings


def test_files_are_joined_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "SMALL_BYTES", 10_000)
    monkeypatch.setattr(rewrite, "GROUP_BYTES", 18_000)  # a file takes some 5,000
    config = config_in(tmp_path)
    for name in "abc":
        spool_logits(config, logit_row(name))
        Committer(config).commit()

    done = compact(config.log)
    assert (done.files_before, done.files_after) == (2, 1)
    assert ids_on_disk(config) == {"a", "b", "c"}


def test_a_log_that_is_not_there_is_compact(tmp_path: Path) -> None:
    assert compact(tmp_path / "nothing").files_before == 0
