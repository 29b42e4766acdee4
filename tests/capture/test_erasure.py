"""Erased rows leave no byte behind, whatever goes on meanwhile."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from capture import erasure
from capture.commit import Committer
from capture.config import CaptureConfig
from capture.erasure import erase
from capture.errors import LogError
from capture.log import Log, query
from capture.rewrite import compact
from capture.rows import ExchangeRow, LogitRow, encode_exchanges, encode_logits
from capture.selection import Selection
from capture.spool import closed_segments
from capture.verify import verify
from capture.writer import Spool, SpoolLimits
from tests.support.damaged_segments import flip, segment_of
from tests.support.log_folders import (
    config_in,
    filled,
    folder_of,
    ids_on_disk,
    scattered,
    spool_exchanges,
    spool_logits,
)
from tests.support.log_rows import exchange_row, logit_row

CANARY = "the canary sings at dawn"
CANARY_IDS = np.array([40961, 40963, 40973, 40993], np.int32)


def secret_exchange(exchange_id: str = "secret", **fields: object) -> ExchangeRow:
    request = json.dumps({"user": "alice", "messages": [{"content": CANARY}]})
    row = replace(exchange_row(exchange_id, texts=(CANARY,), tenant="t"), request=request)
    return replace(row, **fields)  # type: ignore[arg-type]


def secret_logits(exchange_id: str = "secret") -> LogitRow:
    row = logit_row(exchange_id, sizes=(1, 1, 1, 1))
    return replace(row, prompt_ids=CANARY_IDS, completion_ids=CANARY_IDS, topk_ids=CANARY_IDS)


def planted(config: CaptureConfig) -> list[str]:
    """Files under log and spool that hold the canary or its ids, as bytes or inside Parquet."""
    found = []
    for path in sorted([*folder_of(config).rglob("*"), *config.spool.rglob("*")]):
        data = path.read_bytes() if path.is_file() else b""
        if path.suffix == ".parquet" and "_delta_log" not in path.parts:
            table = pq.read_table(path, partitioning=None)
            data += str(table.to_pylist()).encode()
            data += b"".join(
                bytes(b) for c in table.columns for chunk in c.chunks for b in chunk.buffers() if b
            )
        if CANARY.encode() in data or CANARY_IDS.tobytes() in data:
            found.append(path.name)
    return found


def with_history(folder: Path) -> CaptureConfig:
    """The canary in the log, in old versions of it, in closed segments and in damaged ones."""
    config = config_in(folder)
    for name in "ab":
        spool_exchanges(config, exchange_row(name))
        spool_logits(config, logit_row(name))
        Committer(config).commit()
    spool_exchanges(config, secret_exchange())
    spool_logits(config, secret_logits())
    for segment in closed_segments(config.spool):  # a torn segment is committed and kept
        segment.write_bytes(segment.read_bytes() + b"torn")
    Committer(config).commit()
    compact(config.log)
    for path in list(
        (folder_of(config) / "logits").glob("day=*/*.parquet")
    ):  # a compaction that died
        path.with_name(f"orphan-{path.name}").write_bytes(path.read_bytes())
    spool_exchanges(config, secret_exchange("later"))
    spool_logits(config, secret_logits("later"))
    return config


@pytest.mark.parametrize(
    "selection",
    [
        Selection(tenant="t"),
        Selection(user="alice"),
        Selection(exchanges=["secret", "later"]),
        Selection("response_text[1] like '%canary%'"),
        Selection(tenant="t", user="alice", exchanges=["secret", "later", "nobody"]),
    ],
)
def test_no_byte_of_what_was_erased_is_left(tmp_path: Path, selection: Selection) -> None:
    config = with_history(tmp_path)
    assert len(planted(config)) == 10

    done = erase(config, selection)

    assert done.rows == {"exchanges": 2, "logits": 2}
    assert len(done.damaged) == 2
    assert planted(config) == []
    assert ids_on_disk(config) == {"a", "b"}
    assert verify(config).problems == []


def test_all_that_is_asked_for_must_hold(tmp_path: Path) -> None:
    config = filled(
        tmp_path,
        [secret_exchange("a"), secret_exchange("b", tenant="u"), exchange_row("c", tenant="t")],
    )
    assert erase(config, Selection(tenant="t", user="alice")).rows["exchanges"] == 1
    assert erase(config, Selection(tenant="t", exchanges=["b"])).rows["exchanges"] == 0
    assert ids_on_disk(config) == {"b", "c"}


def test_distributions_without_an_exchange_are_erased_by_id_and_by_day(tmp_path: Path) -> None:
    rows = [logit_row("a", day="2026-11-20"), logit_row("b"), logit_row("c")]
    config = filled(tmp_path, logits=rows)
    before = exchange_row(day="2026-11-22").started_at

    assert erase(config, Selection(tenant="t", before=before)).rows["logits"] == 0
    assert erase(config, Selection(before=before)).rows["logits"] == 1
    assert erase(config, Selection(exchanges=["b"])).rows["logits"] == 1
    assert ids_on_disk(config) == {"c"}


@contextmanager
def living(config: CaptureConfig, seconds: float) -> Iterator[Callable[[str], None]]:
    """Two writers that go on; what is given writes a row of each and returns when it is written."""
    limits = SpoolLimits(segment_seconds=seconds)
    exchanges = Spool(config.spool, "exchanges", encode_exchanges, limits=limits)
    logits = Spool(config.spool, "logits", encode_logits, limits=limits)

    def write(name: str) -> None:
        written = threading.Semaphore(0)
        exchanges.account.start()
        logits.account.start()
        exchanges.offer(secret_exchange(name), 1000, written=written.release)
        logits.offer(secret_logits(name), 1000, written=written.release)
        assert written.acquire(timeout=30)
        assert written.acquire(timeout=30)

    try:
        yield write
    finally:
        exchanges.close()
        logits.close()


def test_rows_in_a_living_writers_segment_are_waited_for(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    with living(config, 0.5) as write:
        write("a")
        assert len(planted(config)) == 2
        done = erase(config, Selection(user="alice"))
        assert done.rows == {"exchanges": 1, "logits": 1}
        assert planted(config) == []
        write("b")
    Committer(config).commit()

    assert ids_on_disk(config) == {"b"}
    assert verify(config).problems == []


def test_erasing_while_rows_keep_coming_erases_each_whole_or_not_at_all(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    stop = threading.Event()
    committing = threading.Thread(target=Committer(config).watch, args=(stop,))
    with living(config, 0.05) as write:
        write("first")
        committing.start()
        writing = threading.Thread(target=lambda: [write(f"{i}") for i in range(60)])
        writing.start()
        done = erase(config, Selection(user="alice"))
        writing.join()
    stop.set()
    committing.join()

    with Log(config.log).connect() as connection:
        left = query(connection, "select exchange_id from exchanges order by all")
        paired = query(connection, "select distinct exchange_id from logits order by all")
    assert done.rows["exchanges"] >= 1
    assert left.num_rows + done.rows["exchanges"] == 61
    assert left["exchange_id"].to_pylist() == paired["exchange_id"].to_pylist()
    found = verify(config)
    assert found.problems == []
    assert found.document()["in_flight"] == 0


def test_what_an_engine_still_held_back_goes_when_it_comes(tmp_path: Path) -> None:
    config = filled(tmp_path, [secret_exchange()])
    erase(config, Selection(user="alice"))
    spool_logits(config, secret_logits())

    assert Committer(config).commit().dropped == {"erased": 1}
    assert planted(config) == []
    found = verify(config)
    assert (found.problems, found.tables["logits"].dropped) == ([], Counter(erased=1))


def test_an_exchange_under_way_can_be_named(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    erase(config, Selection(exchanges=["secret"]))
    spool_exchanges(config, secret_exchange())

    assert Committer(config).commit().dropped == {"erased": 1}
    assert ids_on_disk(config) == set()
    assert verify(config).problems == []


def test_a_segment_that_stays_open_is_named_and_nothing_is_erased(tmp_path: Path) -> None:
    config = filled(tmp_path, [secret_exchange("a")])
    with living(config, 600.0) as write:
        write("b")
        with pytest.raises(LogError, match=r"\.open: still open after 35 s"):
            erase(config, Selection(user="alice"), sleep=lambda _: None)
    assert ids_on_disk(config) == {"a"}


def test_an_unreadable_segment_is_named(tmp_path: Path) -> None:
    config = filled(tmp_path, [secret_exchange("a")])
    bad = config.spool / "exchanges-0-000001.bad"
    bad.write_bytes(b"nothing")

    assert erase(config, Selection(user="alice")).unknown == [str(bad)]


def test_a_segment_with_a_part_that_nobody_can_read_is_named(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, "a", "secret")
    flip(path, path.stat().st_size - 3)

    done = erase(config, Selection(exchanges=["secret"]))

    assert (done.damaged, done.unknown) == ([], [str(path.with_suffix(".bad"))])


def test_a_segment_set_aside_that_can_be_read_to_its_end_is_not_named(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, "a", "b")
    path.rename(path.with_suffix(".bad"))

    assert erase(config, Selection(exchanges=["secret"])).unknown == []


def test_erasing_again_ends_what_a_failing_disk_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = filled(tmp_path, [secret_exchange(), exchange_row("a")], [secret_logits()])

    def fail(*_: object) -> None:
        raise LogError("the store failed")

    with monkeypatch.context() as failing:
        failing.setattr(erasure, "_vacuum", fail)
        with pytest.raises(LogError):
            erase(config, Selection(user="alice"))
    assert planted(config) != []
    erase(config, Selection(user="alice"))
    assert planted(config) == []
    assert verify(config).problems == []


def test_erased_exchanges_leave_the_disk_with_their_distributions(tmp_path: Path) -> None:
    config = scattered(tmp_path)
    compact(config.log)

    done = erase(config, Selection("tenant = 'a' -- asked for it"))

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

    assert erase(config, Selection(tenant="t")).rows == {"exchanges": 2, "logits": 2}
    assert ids_on_disk(config) == {"b"}


def test_rows_on_their_way_are_erased_too(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    spool_exchanges(config, exchange_row("a"))
    spool_logits(config, logit_row("a"))

    assert erase(config, Selection("true")).rows == {"exchanges": 1, "logits": 1}
    assert ids_on_disk(config) == set()
    assert verify(config).problems == []


def test_what_nothing_matches_changes_nothing(tmp_path: Path) -> None:
    config = scattered(tmp_path)
    versions = Log(config.log).versions()

    assert erase(config, Selection(tenant="nobody")).rows == {"exchanges": 0, "logits": 0}
    assert ids_on_disk(config) == {"a", "b", "c"}
    assert Log(config.log).versions() == versions


def test_a_bad_filter_erases_nothing(tmp_path: Path) -> None:
    config = scattered(tmp_path)
    with pytest.raises(LogError, match="exchanges where 'nonsense'"):
        erase(config, Selection("nonsense"))
    assert ids_on_disk(config) == {"a", "b", "c"}
