"""A log in a bucket does what a log in a folder does."""

import json
import time
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from capture.commands import log_app
from capture.commit import Committer
from capture.config import CaptureConfig
from capture.errors import LogError
from capture.log import Log, Snapshot, query
from capture.repair import Repairer
from capture.rewrite import compact
from capture.store import UPLOAD_SECONDS, S3Path, data_files, left_behind
from capture.verify import verify
from tests.support.answered_rows import answer, write_log
from tests.support.buckets import Bucket
from tests.support.log_folders import spool_exchanges, spool_logits
from tests.support.log_rows import exchange_row, logit_row
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import COLUMNS, from_table

pytestmark = pytest.mark.timeout(300)  # a server written in Python, on a machine that may be busy


def retort_log(home: Path, *words: str) -> object:
    """What a ``retort log`` command prints as JSON."""
    config = ["-c", str(home / "retort.toml"), "--json"]
    result = CliRunner().invoke(log_app, [*words, *config], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout)


def field(document: object, name: str) -> object:
    assert isinstance(document, dict)
    return document[name]


def scattered(bucket: Bucket, spool: Path) -> CaptureConfig:
    """Three exchanges of two days, every one in a file of its own."""
    config = bucket.config(spool)
    for name, day in (("a", "2026-11-23"), ("b", "2026-11-23"), ("c", "2026-11-24")):
        spool_exchanges(config, exchange_row(name, day=day, tenant=name))
        spool_logits(config, logit_row(name, day=day))
        Committer(config).commit()
    return config


def test_every_command_works_on_it(bucket: Bucket, tmp_path: Path) -> None:
    toml = f'[capture]\nlog = "{bucket.log}"\n'
    (tmp_path / "retort.toml").write_text(toml, encoding="utf-8")
    config = bucket.config(tmp_path / "spool")
    spool_exchanges(config, exchange_row("a"), exchange_row("b"))
    spool_logits(config, logit_row("a"), logit_row("b"))

    assert field(retort_log(tmp_path, "commit"), "rows") == {"exchanges": 2, "logits": 2}
    assert field(retort_log(tmp_path, "stats"), "tokens") == 6
    rows = retort_log(tmp_path, "sql", "select exchange_id from examples order by all")
    assert rows == [{"exchange_id": "a"}, {"exchange_id": "b"}]
    assert field(field(retort_log(tmp_path, "show", "a"), "exchange"), "exchange_id") == "a"
    assert field(retort_log(tmp_path, "verify"), "problems") == []
    out = tmp_path / "out.jsonl"
    exported = retort_log(tmp_path, "export", str(out))
    assert field(field(exported, "snapshot"), "log") == str(bucket.log)
    again = ["import", str(out), "--format", "jsonl"]
    assert field(retort_log(tmp_path, *again), "skipped") == 2
    erased = retort_log(tmp_path, "erase", "--exchange", "a")
    assert field(erased, "rows") == {"exchanges": 1, "logits": 1}
    assert field(retort_log(tmp_path, *again), "skipped") == 1
    assert field(retort_log(tmp_path, "stats"), "exchanges") == 1  # what was erased stays away
    assert field(retort_log(tmp_path, "compact"), "files_before") == 0
    assert field(retort_log(tmp_path, "verify"), "problems") == []


def test_compaction_joins_files_and_keeps_old_snapshots(bucket: Bucket, tmp_path: Path) -> None:
    config = scattered(bucket, tmp_path)
    log = Log(config.log)
    before = log.snapshot()

    done = compact(config.log)

    assert (done.files_before, done.files_after) == (4, 2)
    assert log.snapshot().digest == before.digest
    assert log.read(before, ["day"])["day"].to_pylist() == ["2026-11-23"] * 2 + ["2026-11-24"]
    found = verify(config)
    assert (found.problems, found.orphan_files) == ([], 0)


def test_retention_takes_days_out_of_every_version(bucket: Bucket, tmp_path: Path) -> None:
    config = scattered(bucket, tmp_path).model_copy(update={"retention_days": 1})
    compact(config.log)
    log = Log(config.log)
    old, young = log.snapshot(), log.snapshot("day >= '2026-11-24'")

    expired = Committer(config, lambda: date(2026, 11, 25)).expire()

    assert expired.rows == {"exchanges": 2, "logits": 2}
    assert [file.day for name in ("exchanges", "logits") for file in data_files(config.log / name)]
    for name in ("exchanges", "logits"):
        assert {file.day for file in data_files(config.log / name)} == {"2026-11-24"}
    assert log.read(young, ["exchange_id"]).num_rows == 1
    with pytest.raises(LogError):
        log.read(old, ["exchange_id"])
    assert verify(config).problems == []


def test_retention_leaves_a_file_that_is_on_its_way(bucket: Bucket, tmp_path: Path) -> None:
    config = scattered(bucket, tmp_path).model_copy(update={"retention_days": 1})
    folder = S3Path(bucket.name, "team/log/logits")
    (folder / "day=2026-11-23/part-coming.parquet").write_bytes(b"somebody else's")

    Committer(config, lambda: date(2026, 11, 25)).expire()

    names = {file.path for file in data_files(folder) if file.day == "2026-11-23"}
    assert names == {"day=2026-11-23/part-coming.parquet"}


def test_a_repair_leaves_a_file_that_is_on_its_way(bucket: Bucket, tmp_path: Path) -> None:
    config = scattered(bucket, tmp_path)
    coming = bucket.log / "logits/day=2026-11-24/part-coming.parquet"
    coming.write_bytes(b"somebody else's")

    assert Repairer(config).repair().orphan_files == 0
    assert coming.read_bytes() == b"somebody else's"


def test_what_is_older_than_any_upload_is_left_behind(bucket: Bucket) -> None:
    folder = bucket.log / "logits"
    (folder / "day=2026-11-24/part-a.parquet").write_bytes(b"a")
    paths = {"day=2026-11-24/part-a.parquet"}
    now = time.time()

    assert left_behind(folder, paths, now) == set()
    assert left_behind(folder, paths, now + UPLOAD_SECONDS + 60) == paths
    assert left_behind(folder, {"day=2026-11-24/part-b.parquet"}, now + 1e9) == set()


def test_a_snapshot_is_what_the_trainer_reads(bucket: Bucket, tmp_path: Path) -> None:
    teacher = make_tiny_model(tmp_path / "teacher")
    table = answer(teacher, 6)
    write_log(table, bucket.log, tmp_path / "spool")
    log = Log(bucket.log)
    snapshot = Snapshot.model_validate_json(log.snapshot().model_dump_json())

    dataset = from_table(log.read(snapshot, COLUMNS), teacher)

    assert snapshot.log == bucket.log
    assert len(dataset) == 6
    order = table.sort_by("exchange_id")["completion_ids"].to_pylist()
    assert [dataset.completion_ids.row(i).tolist() for i in range(6)] == order


def test_any_parquet_reader_sees_plain_columns(bucket: Bucket, tmp_path: Path) -> None:
    scattered(bucket, tmp_path / "spool")
    key, data = next(
        item for item in bucket.objects().items() if "logits/day=2026-11-24" in item[0]
    )
    (tmp_path / Path(key).name).write_bytes(data)

    found = pq.read_table(tmp_path / Path(key).name)

    assert found["exchange_id"].to_pylist() == ["c"]


def test_an_empty_bucket_is_an_empty_log(bucket: Bucket, tmp_path: Path) -> None:
    config = bucket.config(tmp_path)
    assert Log(config.log).versions().model_dump() == {"exchanges": None, "logits": None}
    assert verify(config).problems == []
    with Log(config.log).connect() as connection:
        assert query(connection, "from examples").num_rows == 0
    assert bucket.objects() == {}


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there_is_no_empty_log() -> None:
    with pytest.raises(LogError, match=r"^s3://nowhere/log/exchanges: .*NoSuchBucket.*check AWS_"):
        Log(S3Path("nowhere", "log")).versions()
