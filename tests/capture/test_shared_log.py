"""Several machines change one log in a bucket, and no lock orders them."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from capture import commit, delta, rewrite
from capture.commit import Committer
from capture.config import CaptureConfig
from capture.delta import ROWS, apply, open_table
from capture.erasure import erase
from capture.errors import ConflictError
from capture.forgotten import MAX_PARTS, forget, forgotten
from capture.log import Log, query
from capture.parquet import read_parquet
from capture.rewrite import compact
from capture.selection import Selection
from capture.spool import closed_segments
from capture.verify import verify
from tests.capture.test_erasure import CANARY, CANARY_IDS, secret_exchange, secret_logits
from tests.support.buckets import Bucket
from tests.support.log_folders import spool_exchanges, spool_logits
from tests.support.log_rows import exchange_row, logit_row

pytestmark = pytest.mark.timeout(300)  # a server written in Python, on a machine that may be busy
ROUNDS = 4


def ids(config: CaptureConfig, table: str) -> list[str]:
    with Log(config.log).connect() as connection:
        rows = query(connection, f"from {table} order by exchange_id")
    return [str(name) for name in rows["exchange_id"].to_pylist()]


@contextmanager
def once_before(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, happens: Callable[[], object]
) -> Iterator[None]:
    """Let something happen right before a function is called for the first time."""
    real: Callable[..., Any] = getattr(owner, name)
    waiting = [happens]

    def call(*args: object, **kwargs: object) -> object:
        while waiting:
            waiting.pop()()
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, call)
        yield
    assert not waiting, f"{name} was never called"


def planted(bucket: Bucket, folder: Path) -> list[str]:
    """Objects that hold the canary or its ids, as bytes or inside Parquet."""
    found = []
    for key, data in bucket.objects().items():
        path = folder / "object"
        path.write_bytes(data)
        held = data + (decoded(path) if key.endswith(".parquet") else b"")
        if CANARY.encode() in held or CANARY_IDS.tobytes() in held:
            found.append(key)
    return found


def decoded(path: Path) -> bytes:
    table = read_parquet(path)
    buffers = (b for c in table.columns for chunk in c.chunks for b in chunk.buffers() if b)
    return str(table.to_pylist()).encode() + b"".join(bytes(buffer) for buffer in buffers)


@pytest.mark.long
@pytest.mark.slow
def test_two_machines_commit_each_row_exactly_once(bucket: Bucket, tmp_path: Path) -> None:
    configs = [bucket.config(tmp_path / name) for name in "ab"]
    machines = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.support.committing"),
                *(str(config.spool), str(config.log), config.spool.name, str(ROUNDS)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for config in configs
    ]
    for machine in machines:
        assert machine.stdout is not None
        assert machine.stdout.readline() == "ready\n"
    for machine in machines:
        assert machine.stdin is not None
        machine.stdin.write("go\n")
        machine.stdin.flush()
    for machine in machines:
        with machine:
            pass
        assert machine.returncode == 0

    expected = [f"{name}{number}" for name in "ab" for number in range(ROUNDS)]
    for table in ("exchanges", "logits"):
        assert ids(configs[0], table) == expected
    assert [closed_segments(config.spool) for config in configs] == [[], []]
    for config in configs:
        found = verify(config)
        assert (found.problems, found.orphan_files) == ([], 0)
    assert turns(configs[0]) > 2


def turns(config: CaptureConfig) -> int:
    """How often the machines took turns in a table's history; 2 if one followed the other."""
    table = open_table(config.log, "logits")
    assert table is not None
    writers = [next(iter(entry[ROWS])) for entry in table.history() if ROWS in entry]
    spools = {"a": set[str](), "b": set[str]()}
    for name, known in spools.items():
        accounts = (config.spool.parent / name).glob("logits-*.account.json")
        known |= {path.name.removeprefix("logits-").split(".")[0] for path in accounts}
    return len(list(groupby(writer in spools["a"] for writer in writers)))


@pytest.mark.parametrize("point", ["write_file", "apply"])
def test_an_exchange_redacted_meanwhile_brings_in_no_distributions(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    engine, gateway = bucket.config(tmp_path / "engine"), bucket.config(tmp_path / "gateway")
    spool_logits(engine, logit_row("x"), logit_row("y"))
    spool_exchanges(gateway, replace(exchange_row("x"), capture="redacted"), exchange_row("y"))

    with once_before(monkeypatch, commit, point, Committer(gateway).commit):
        report = Committer(engine).commit()

    assert report.dropped == {"redacted": 1}
    assert (ids(engine, "logits"), ids(engine, "exchanges")) == (["y"], ["x", "y"])
    for config in (engine, gateway):
        found = verify(config)
        assert (found.problems, found.orphan_files) == ([], 0)


@pytest.mark.parametrize("point", ["write_file", "apply"])
def test_what_is_erased_meanwhile_does_not_come_in(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    one, other = bucket.config(tmp_path / "one"), bucket.config(tmp_path / "other")
    spool_exchanges(other, secret_exchange())
    Committer(other).commit()
    spool_logits(one, secret_logits(), logit_row("y"))
    assert len(planted(bucket, tmp_path)) == 1

    with once_before(monkeypatch, commit, point, lambda: erase(other, Selection(tenant="t"))):
        report = Committer(one).commit()

    assert report.dropped == {"erased": 1}
    assert (ids(one, "logits"), ids(one, "exchanges")) == (["y"], [])
    assert planted(bucket, tmp_path) == []
    assert verify(one).problems == []


def test_rows_that_came_first_are_taken_back(bucket: Bucket, tmp_path: Path) -> None:
    engine, gateway = bucket.config(tmp_path / "engine"), bucket.config(tmp_path / "gateway")
    spool_logits(engine, secret_logits(), logit_row("y"))
    Committer(engine).commit()
    compact(engine.log)
    spool_exchanges(gateway, replace(exchange_row("secret"), capture="redacted"))

    Committer(gateway).commit()

    assert ids(gateway, "logits") == ["y"]
    assert planted(bucket, tmp_path) == []
    assert verify(engine).problems == []


@pytest.mark.parametrize("point", ["write_file", "replace"])
def test_compaction_brings_back_nothing_that_is_erased_meanwhile(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    config = bucket.config(tmp_path / "spool")
    for row in (secret_logits(), logit_row("y"), logit_row("z")):
        spool_logits(config, row)
        Committer(config).commit()

    with once_before(
        monkeypatch, rewrite, point, lambda: erase(config, Selection(exchanges=["secret"]))
    ):
        assert compact(config.log).files_after == 0

    assert ids(config, "logits") == ["y", "z"]
    assert planted(bucket, tmp_path) == []
    found = verify(config)
    assert (found.problems, found.orphan_files) == ([], 0)


def test_no_byte_of_what_was_erased_is_left_in_the_bucket(bucket: Bucket, tmp_path: Path) -> None:
    config = bucket.config(tmp_path / "spool")
    for name in "ab":
        spool_exchanges(config, exchange_row(name))
        spool_logits(config, logit_row(name))
        Committer(config).commit()
    spool_exchanges(config, secret_exchange())
    spool_logits(config, secret_logits())
    Committer(config).commit()
    compact(config.log)
    orphan = next(key for key in planted(bucket, tmp_path) if "logits" in key)
    left = bucket.log / f"logits/day=2026-11-24/part-left-by-a-crash{Path(orphan).suffix}"
    left.write_bytes(bucket.objects()[orphan])
    spool_exchanges(config, secret_exchange("later"))
    spool_logits(config, secret_logits("later"))
    assert len(planted(bucket, tmp_path)) == 5
    young = Log(config.log).snapshot("exchange_id in ('a', 'b')")

    done = erase(config, Selection(user="alice"))

    assert done.rows == {"exchanges": 2, "logits": 2}
    assert planted(bucket, tmp_path) == []
    assert ids(config, "examples") == ["a", "b"]
    assert Log(config.log).snapshot(young.where).digest == young.digest
    assert verify(config).problems == []


def test_a_list_of_many_parts_is_joined_and_complete(bucket: Bucket) -> None:
    names = [f"{number:03}" for number in range(2 * MAX_PARTS)]
    for name in names:
        forget(bucket.log, "erased", [name])

    assert sorted(forgotten(bucket.log, "erased").to_pylist()) == names
    assert forgotten(bucket.log, "redacted").to_pylist() == []
    assert len(bucket.objects()) <= MAX_PARTS


def test_a_change_that_never_gets_through_says_so(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = bucket.config(tmp_path / "spool")
    spool_logits(config, logit_row("a"))
    Committer(config).commit()
    spool_logits(config, logit_row("b"))

    def too_late(*args: Any) -> None:
        forget(config.log, "erased", ["somebody"])
        apply(*args)

    with monkeypatch.context() as patch:
        patch.setattr(commit, "apply", too_late)
        patch.setattr(delta, "ATTEMPTS", 2)
        with pytest.raises(ConflictError, match=r"^s3://.*/logits"):
            Committer(config).commit()

    Committer(config).commit()
    assert ids(config, "logits") == ["a", "b"]
    assert verify(config).orphan_files == 0
