from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from capture.commit import Committer
from capture.erasure import erase
from capture.errors import LogError
from capture.log import Log, Snapshot, matching, query, query_only
from capture.parquet import rounded
from capture.rows import encode_logits
from capture.schema import TABLES, Flag
from capture.selection import Selection
from capture.views import nested
from tests.support.log_folders import (
    config_in,
    filled,
    scattered,
    spool_exchanges,
    spool_logits,
)
from tests.support.log_rows import exchange_row, logit_row

VIEWS = ("exchanges", "logits", "examples", "tokens", "pairs")


def rows_of(log: Log, sql: str) -> list[dict[str, object]]:
    with log.connect() as connection:
        rows: list[dict[str, object]] = query(connection, sql).to_pylist()
    return rows


@pytest.mark.parametrize("view", VIEWS)
def test_a_log_that_is_not_there_reads_as_empty(tmp_path: Path, view: str) -> None:
    log = Log(tmp_path / "nothing")
    assert rows_of(log, f"from {view}") == []
    assert log.read(log.snapshot(), ["topk_ids"]).num_rows == 0


@pytest.mark.parametrize("view", VIEWS)
def test_a_log_of_one_table_reads_as_empty_in_the_views_that_need_both(
    tmp_path: Path, view: str
) -> None:
    log = Log(filled(tmp_path, exchanges=[exchange_row("x")]).log)
    assert len(rows_of(log, f"from {view}")) == (view == "exchanges")


def test_the_tables_have_the_columns_of_the_schema(tmp_path: Path) -> None:
    log = Log(filled(tmp_path, [exchange_row()], [logit_row()]).log)
    with log.connect() as connection:
        for name, schema in TABLES.items():
            found = query(connection, f"from {name}")
            assert sorted(found.column_names) == sorted(schema.names)
            assert found.select(schema.names).cast(schema).num_rows == 1


def test_an_example_is_a_completed_exchange_with_its_choice(tmp_path: Path) -> None:
    exchange = exchange_row("x", texts=("first", "second"))
    log = Log(filled(tmp_path, [exchange], [logit_row("x", choice=1)]).log)

    (example,) = rows_of(log, "from examples")

    (expected,) = rounded(
        pa.Table.from_batches([encode_logits([logit_row("x", choice=1)])])
    ).to_pylist()
    for name in ("prompt_ids", "completion_ids", "topk_size", "topk_ids", "topk_logprobs"):
        assert example[name] == expected[name]
    assert example["response_text"] == "second"
    assert (example["route"], example["role"], example["choice"]) == ("support", "incumbent", 1)
    assert example["started_at"] == exchange.started_at


def test_flagged_incomplete_empty_and_unfinished_rows_are_no_examples(tmp_path: Path) -> None:
    short = replace(logit_row("short"), topk_size=logit_row(sizes=(6,)).topk_size)
    rows = [
        logit_row("good"),
        logit_row("flagged", flags=Flag.MASKED),
        logit_row("alone"),
        logit_row("aborted"),
        logit_row("empty", sizes=()),
        short,
    ]
    names = ("good", "flagged", "aborted", "empty", "short")
    exchanges = [
        exchange_row(name, status="aborted" if name == "aborted" else "completed") for name in names
    ]
    log = Log(filled(tmp_path, exchanges, rows).log)

    assert rows_of(log, "select exchange_id from examples") == [{"exchange_id": "good"}]


def test_of_a_choice_written_twice_the_longest_row_counts(tmp_path: Path) -> None:
    config = filled(tmp_path, [exchange_row("x", texts=("a", "b"))], [logit_row("x", sizes=(1, 2))])
    spool_logits(config, logit_row("x", sizes=(1, 2, 3)), logit_row("x", choice=1, sizes=(1,)))
    spool_logits(config, logit_row("x", sizes=(1,)))
    Committer(config).commit()

    found = rows_of(Log(config.log), "select choice, topk_size from examples order by choice")
    assert found == [{"choice": 0, "topk_size": [1, 2, 3]}, {"choice": 1, "topk_size": [1]}]


def test_of_two_equally_long_rows_of_a_choice_one_counts(tmp_path: Path) -> None:
    rows = [logit_row("x", seed=1), logit_row("x", seed=2)]
    log = Log(filled(tmp_path, [exchange_row("x")], rows).log)
    assert rows_of(log, "select count(*) as n from examples") == [{"n": 1}]


def test_tokens_are_the_positions_of_examples(tmp_path: Path) -> None:
    rows = [logit_row("a", sizes=(2, 1), seed=1), logit_row("b", sizes=(3,), seed=2)]
    log = Log(filled(tmp_path, [exchange_row("a"), exchange_row("b")], rows).log)

    found = rows_of(
        log,
        "select exchange_id, position, token_id, topk_ids, len(topk_logprobs) as k, tail_logprob "
        "from tokens order by all",
    )

    a, b = (row.topk_ids.tolist() for row in rows)
    assert [row["topk_ids"] for row in found] == [a[:2], a[2:], b]
    assert [(row["exchange_id"], row["position"], row["k"]) for row in found] == [
        ("a", 0, 2),
        ("a", 1, 1),
        ("b", 0, 3),
    ]
    completions = [*rows[0].completion_ids, *rows[1].completion_ids]
    assert [row["token_id"] for row in found] == completions
    assert found[0]["tail_logprob"] == pytest.approx(rows[0].tail_logprob[0], rel=2**-10)


def test_lists_that_do_not_add_up_are_refused() -> None:
    values = pa.chunked_array([pa.array([[1, 2], [3]], pa.list_(pa.int32()))])
    sizes = pa.chunked_array([pa.array([[1], [2]], pa.list_(pa.int16()))])
    with pytest.raises(ValueError, match="does not add up"):
        nested(values, sizes)


def test_a_snapshot_reads_the_same_rows_whatever_is_committed_later(tmp_path: Path) -> None:
    config = filled(
        tmp_path, [exchange_row("b"), exchange_row("a")], [logit_row("b"), logit_row("a")]
    )
    log = Log(config.log)
    snapshot = Snapshot.model_validate_json(log.snapshot().model_dump_json())
    spool_exchanges(config, exchange_row("c"))
    spool_logits(config, logit_row("c"))
    Committer(config).commit()

    assert log.read(snapshot, ["exchange_id"])["exchange_id"].to_pylist() == ["a", "b"]
    assert log.snapshot().num_rows == 3
    assert log.snapshot().digest != snapshot.digest


def test_some_of_a_snapshots_rows_are_read_in_its_order(tmp_path: Path) -> None:
    rows = [logit_row(name, seed=number) for number, name in enumerate("badcb")]
    rows[4] = rows[0]  # written twice, as equally long ones are whose tail is the same
    log = Log(filled(tmp_path, [exchange_row(name) for name in "abcd"], rows).log)
    snapshot = log.snapshot()
    every = log.read(snapshot, ["exchange_id", "topk_ids"])

    assert every["exchange_id"].to_pylist() == ["a", "b", "b", "c", "d"]
    for number in range(2**5):
        is_kept = np.array([number >> bit & 1 for bit in range(5)], dtype=bool)
        found = log.read(snapshot, ["exchange_id", "topk_ids"], is_kept)
        assert found == every.filter(pa.array(is_kept))


def test_a_snapshots_rows_are_found_file_by_file(tmp_path: Path) -> None:
    config = scattered(tmp_path)
    spool_logits(config, logit_row("a", sizes=(1,)), logit_row("b", flags=Flag.MASKED))
    Committer(config).commit()
    log = Log(config.log)
    snapshot = log.snapshot("exchange_id <> 'c'")
    files = log.files(snapshot)
    tables = [fragment.to_table() for fragment in files.get_fragments()]

    found = [
        matching(table, log.ranks(snapshot), snapshot.view, ["completion_ids"]) for table in tables
    ]
    assert sorted(one.num_rows for one in found) == [0, 0, 1, 1]
    assert (
        pa.concat_tables(found).sort_by("number")["completion_ids"]
        == (log.read(snapshot, ["completion_ids"])["completion_ids"])
    )


def test_equal_rows_have_equal_digests_wherever_they_are(tmp_path: Path) -> None:
    one = filled(
        tmp_path / "1", [exchange_row("a"), exchange_row("b")], [logit_row("b"), logit_row("a")]
    )
    two = filled(tmp_path / "2", [exchange_row("b"), exchange_row("a")], [logit_row("a")])
    spool_logits(two, logit_row("b"))
    Committer(two).commit()

    first, second = Log(one.log).snapshot(), Log(two.log).snapshot()
    assert first.digest == second.digest
    assert first.versions != second.versions


def test_a_filter_selects_examples(tmp_path: Path) -> None:
    log = Log(
        filled(
            tmp_path, [exchange_row("a"), exchange_row("b")], [logit_row("a"), logit_row("b")]
        ).log
    )
    snapshot = log.snapshot("exchange_id = 'b' -- only that one")

    table = log.read(snapshot, ["topk_ids", "choice"])
    assert (table.num_rows, snapshot.num_rows) == (1, 1)
    assert table.column_names == ["topk_ids", "choice"]


@pytest.mark.parametrize(
    "where", ["nonsense = 1", "exchange_id = 'a')", "", "1; drop view examples"]
)
def test_a_bad_filter_is_named(tmp_path: Path, where: str) -> None:
    log = Log(filled(tmp_path, [exchange_row("a")], [logit_row("a")]).log)
    with pytest.raises(LogError, match="examples where"):
        log.snapshot(where)


def test_an_unknown_column_is_named(tmp_path: Path) -> None:
    log = Log(tmp_path)
    with pytest.raises(LogError, match="nonsense"):
        log.read(log.snapshot(), ["nonsense"])


def test_a_filter_that_changes_its_mind_is_refused(tmp_path: Path) -> None:
    log = Log(filled(tmp_path, [exchange_row("a")], [logit_row("a")]).log)
    snapshot = log.snapshot().model_copy(update={"where": "false"})
    with pytest.raises(LogError, match="rows have changed"):
        log.read(snapshot, ["topk_ids"])


def test_a_snapshot_whose_rows_were_erased_cannot_be_read(tmp_path: Path) -> None:
    config = filled(tmp_path, [exchange_row("a")], [logit_row("a")])
    log = Log(config.log)
    snapshot = log.snapshot()
    erase(config, Selection("true"))

    with pytest.raises(LogError, match="log"):
        log.read(snapshot, ["topk_ids"])


def test_what_a_person_types_reads_and_nothing_else(tmp_path: Path) -> None:
    log = Log(tmp_path)
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n", encoding="utf-8")
    for sql in (
        "create table x as select 1",
        f"copy (select 1) to '{tmp_path / 'out'}'",
        "select 1; select 2",
        "",
        f"from read_csv('{secret}')",
        "selec",
    ):
        with log.connect() as connection, pytest.raises(LogError):
            query_only(connection, sql)
    with log.connect() as connection:
        assert query_only(connection, "select 1 as one").to_pylist() == [{"one": 1}]
    assert not (tmp_path / "out").exists()


def test_versions_are_those_of_what_is_committed(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    assert Log(config.log).versions().model_dump() == {"exchanges": None, "logits": None}
    spool_logits(config, logit_row())
    Committer(config).commit()
    assert Log(config.log).versions().model_dump() == {"exchanges": None, "logits": 1}
