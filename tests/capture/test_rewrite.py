from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from capture import rewrite
from capture.commit import Committer
from capture.config import CaptureConfig
from capture.delta import active_files, open_table
from capture.errors import LogError
from capture.log import Log, query
from capture.rewrite import compact, erase
from capture.verify import verify
from tests.support.log_folders import config_in, filled, spool_exchanges, spool_logits
from tests.support.log_rows import exchange_row, logit_row


def ids_on_disk(config: CaptureConfig) -> set[str]:
    """Exchange ids in any Parquet file, whether a version counts it or not."""
    return {
        name
        for path in config.log.glob("*/day=*/*.parquet")
        for name in pq.read_table(path, columns=["exchange_id"], partitioning=None)[
            "exchange_id"
        ].to_pylist()
    }


def num_files(config: CaptureConfig, name: str) -> int:
    table = open_table(config.log, name)
    assert table is not None
    return len(active_files(table))


def scattered(folder: Path) -> CaptureConfig:
    """Three exchanges of two days, every one in a file of its own."""
    config = config_in(folder)
    for name, day in (("a", "2026-11-23"), ("b", "2026-11-23"), ("c", "2026-11-24")):
        spool_exchanges(config, exchange_row(name, day=day, tenant=name))
        spool_logits(config, logit_row(name, day=day))
        Committer(config).commit()
    return config


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


def test_erased_exchanges_leave_the_disk_with_their_distributions(tmp_path: Path) -> None:
    config = scattered(tmp_path)
    compact(config.log)

    done = erase(config, "tenant = 'a' -- asked for it")

    assert done.rows == {"exchanges": 1, "logits": 1}
    assert ids_on_disk(config) == {"b", "c"}
    with Log(config.log).connect() as connection:
        rows = query(connection, "select exchange_id from examples order by all")
    assert rows["exchange_id"].to_pylist() == ["b", "c"]
    assert verify(config).problems == []


def test_shadows_of_an_erased_exchange_go_with_it(tmp_path: Path) -> None:
    exchanges = [
        exchange_row("a", tenant="t"),
        replace(exchange_row("shadow"), role="shadow", pair_id="a"),
        exchange_row("b"),
    ]
    config = filled(tmp_path, exchanges, [logit_row(name) for name in ("a", "shadow", "b")])

    assert erase(config, "tenant = 't'").rows == {"exchanges": 2, "logits": 2}
    assert ids_on_disk(config) == {"b"}


def test_rows_on_their_way_are_erased_too(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    spool_exchanges(config, exchange_row("a"))
    spool_logits(config, logit_row("a"))

    assert erase(config, "true").rows == {"exchanges": 1, "logits": 1}
    assert ids_on_disk(config) == set()
    assert verify(config).problems == []


def test_what_nothing_matches_changes_nothing(tmp_path: Path) -> None:
    config = scattered(tmp_path)
    versions = Log(config.log).versions()

    assert erase(config, "tenant = 'nobody'").rows == {"exchanges": 0, "logits": 0}
    assert ids_on_disk(config) == {"a", "b", "c"}
    assert Log(config.log).versions() == versions


def test_a_bad_filter_erases_nothing(tmp_path: Path) -> None:
    config = scattered(tmp_path)
    with pytest.raises(LogError, match="exchanges where 'nonsense'"):
        erase(config, "nonsense")
    assert ids_on_disk(config) == {"a", "b", "c"}
