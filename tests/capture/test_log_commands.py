import csv
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from capture.commands import log_app
from capture.errors import ConfigError, LogError
from capture.export import Format, export
from capture.log import Log
from tests.capture.test_lineage import write_model
from tests.support.damaged_segments import flip, frame_starts, segment_of
from tests.support.log_folders import config_in, filled, spool_exchanges, spool_logits
from tests.support.log_rows import exchange_row, logit_row


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A configuration and a log of two exchanges, three tokens each."""
    (tmp_path / "retort.toml").write_text("[capture]\n", encoding="utf-8")
    filled(tmp_path, [exchange_row("a"), exchange_row("b")], [logit_row("a"), logit_row("b")])
    return tmp_path


def run(home: Path, *words: str) -> Result:
    return CliRunner().invoke(log_app, [*words, "-c", str(home / "retort.toml")])


def document(home: Path, *words: str) -> dict[str, object]:
    result = run(home, *words, "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_stats_counts_rows_tokens_and_bytes(home: Path) -> None:
    stats = document(home, "stats")
    files = list((home / "log" / "logits").glob("day=*/*.parquet"))
    size = sum(path.stat().st_size for path in files)

    assert (stats["exchanges"], stats["choices"], stats["examples"], stats["tokens"]) == (
        2,
        2,
        2,
        6,
    )
    assert stats["mean_k"] == 2.0
    assert stats["bytes_per_token"] == pytest.approx(size / 6)
    assert stats["routes"] == [
        {
            "route": "support",
            "role": "incumbent",
            "deployment": "teacher",
            "exchanges": 2,
            "completed": 2,
            "tokens": 6,
        }
    ]
    assert stats["first_at"] == "2026-11-24T12:00:00+00:00"


def test_stats_of_an_empty_log_are_zero(tmp_path: Path) -> None:
    (tmp_path / "retort.toml").write_text("", encoding="utf-8")
    stats = document(tmp_path, "stats")
    assert (stats["tokens"], stats["mean_k"], stats["bytes_per_token"]) == (0, None, None)


def test_sql_answers_in_json_csv_and_for_people(home: Path) -> None:
    query = "select exchange_id, topk_size from examples order by all"

    assert json.loads(run(home, "sql", query, "--json").stdout) == [
        {"exchange_id": "a", "topk_size": [2, 1, 3]},
        {"exchange_id": "b", "topk_size": [2, 1, 3]},
    ]
    assert list(csv.reader(run(home, "sql", query, "--csv").stdout.splitlines())) == [
        ["exchange_id", "topk_size"],
        ["a", "[2,1,3]"],
        ["b", "[2,1,3]"],
    ]
    assert "[2,1,3]" in run(home, "sql", query).stdout


def test_sql_says_how_many_rows_it_does_not_show(home: Path) -> None:
    result = run(home, "sql", "from range(130)")
    assert "30 more rows" in result.stderr


def test_sql_changes_nothing(home: Path) -> None:
    error = run(home, "sql", "drop view examples").exception
    assert isinstance(error, LogError)
    assert "read-only" in str(error)


def test_show_decodes_one_exchange(home: Path) -> None:
    shown = document(home, "show", "a")
    row = logit_row("a")

    assert isinstance(shown["exchange"], dict)
    assert shown["exchange"]["response_text"] == ["hello"]
    assert isinstance(shown["choices"], list)
    (choice,) = shown["choices"]
    ids = [[token for token, _ in position["topk"]] for position in choice["positions"]]
    assert ids == [row.topk_ids[:2].tolist(), row.topk_ids[2:3].tolist(), row.topk_ids[3:].tolist()]
    assert [position["token_id"] for position in choice["positions"]] == row.completion_ids.tolist()
    text = run(home, "show", "a").stdout
    assert re.search(rf"{row.topk_ids[2]}: 0\.\d{{4}}", text)


def test_show_names_an_exchange_it_does_not_find(home: Path) -> None:
    error = run(home, "show", "nobody").exception
    assert isinstance(error, LogError)
    assert "'nobody'" in str(error)


def test_verify_ends_well_when_the_law_holds_and_not_when_it_breaks(home: Path) -> None:
    assert document(home, "verify")["complete_fraction"] == 1.0
    spool_logits(config_in(home), logit_row("c"))
    for path in (home / "spool").glob("*.seg"):
        path.unlink()

    result = run(home, "verify", "--json")
    assert json.loads(result.stdout)["problems"]
    assert isinstance(result.exception, LogError)
    assert "vanished" in str(result.exception)


def test_verify_shows_what_is_damaged_and_repairs_it(home: Path) -> None:
    path = segment_of(home / "spool", "c", "d")
    flip(path, frame_starts(path)[2] + 20)
    document(home, "commit")

    assert "checksum" in run(home, "verify").stdout
    (damaged,) = cast("list[dict[str, object]]", document(home, "verify")["damaged"])
    assert (damaged["segment"], damaged["frame"]) == ("logits-w-000001", 2)
    repaired = document(home, "verify", "--repair")
    assert (repaired["damaged"], repaired["dropped"]) == ([], {"damaged": 1})
    assert cast("dict[str, object]", repaired["repaired"])["rows"] == {"exchanges": 0, "logits": 1}


def test_commit_brings_the_spool_in(home: Path) -> None:
    spool_logits(config_in(home), logit_row("c"))
    assert document(home, "commit")["rows"] == {"exchanges": 0, "logits": 1}


def test_results_are_shown_to_people_too(home: Path) -> None:
    assert re.search(r"segments +0", run(home, "commit").stdout)
    assert re.search(r"complete_fraction +1.0", run(home, "verify").stdout)
    assert re.search(r"support +│ incumbent", run(home, "stats").stdout)


def test_compact_and_erase_say_what_they_did(home: Path) -> None:
    spool_logits(config_in(home), logit_row("c"))
    document(home, "commit")
    assert document(home, "compact")["files_before"] == 2
    assert document(home, "erase", "--where", "exchange_id = 'a'")["rows"] == {
        "exchanges": 1,
        "logits": 1,
    }


def test_erase_takes_a_tenant_a_user_ids_and_a_moment(home: Path) -> None:
    config = config_in(home)
    alice = replace(exchange_row("d"), request=json.dumps({"user": "alice's"}))
    rows = [exchange_row("c", tenant="t"), alice]
    spool_exchanges(config, *rows, exchange_row("e", day="2026-01-01"))

    def erased(*words: str) -> object:
        return document(home, "erase", *words)["rows"]

    assert erased("--tenant", "t") == {"exchanges": 1, "logits": 0}
    assert erased("--user", "alice's") == {"exchanges": 1, "logits": 0}
    assert erased("--before", "2026-01-02") == {"exchanges": 1, "logits": 0}
    assert erased("--exchange", "a", "--exchange", "b") == {"exchanges": 2, "logits": 2}


def test_erase_names_what_was_made_from_the_rows(home: Path) -> None:
    snapshot = Log(home / "log").snapshot()
    made = write_model(home / "runs" / "student" / "checkpoint", snapshot)
    elsewhere = write_model(home / "elsewhere" / "bundle", snapshot, kind="bundle")

    assert document(home, "erase", "--tenant", "nobody")["models"] == []
    done = document(home, "erase", "--exchange", "a", "--models", str(home / "elsewhere"))
    (model,) = cast("list[dict[str, object]]", done["models"])
    assert (model["path"], model["num_rows"]) == (elsewhere, 1)
    done = document(home, "erase", "--exchange", "b")
    (model,) = cast("list[dict[str, object]]", done["models"])
    assert (model["path"], model["num_rows"]) == (made, None)


def test_erase_wants_to_know_what(home: Path) -> None:
    error = run(home, "erase").exception
    assert isinstance(error, ConfigError)
    assert "--tenant" in str(error)
    assert isinstance(run(home, "erase", "--before", "soon").exception, ConfigError)


def test_commit_applies_the_retention(home: Path) -> None:
    (home / "retort.toml").write_text("[capture]\nretention_days = 1\n", encoding="utf-8")
    spool_exchanges(config_in(home), exchange_row("old", day="2020-01-01"))
    expired = document(home, "commit")["expired"]
    assert isinstance(expired, dict)
    assert expired["exchanges"] >= 1


def test_export_writes_examples_as_json_lines_and_parquet(home: Path) -> None:
    lines, parquet = home / "out.jsonl", home / "out.parquet"
    exported = document(home, "export", str(lines), "--where", "exchange_id = 'b'")
    document(home, "export", str(parquet), "--format", "parquet")

    (row,) = map(json.loads, lines.read_text(encoding="utf-8").splitlines())
    assert (row["exchange_id"], row["topk_size"]) == ("b", [2, 1, 3])
    assert isinstance(exported["snapshot"], dict)
    assert exported["snapshot"]["num_rows"] == 1
    assert pq.read_table(parquet).num_rows == 2
    assert sorted(path.name for path in home.glob(".*")) == []


def test_an_export_that_cannot_be_written_says_why(home: Path) -> None:
    error = run(home, "export", str(home / "no" / "folder.jsonl")).exception
    assert isinstance(error, LogError)
    assert "folder.jsonl" in str(error)


def test_without_a_configuration_the_default_places_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = CliRunner().invoke(log_app, ["stats"]).exception
    assert isinstance(error, ConfigError)
    assert "./retort.toml" in str(error)
    assert "./demo/retort.toml" in str(error)


def test_the_demos_configuration_is_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "work" / "demo").mkdir(parents=True)
    (home / "work" / "demo" / "retort.toml").write_text(
        f'[capture]\nlog = "{home / "log"}"\n', encoding="utf-8"
    )
    monkeypatch.chdir(home / "work")
    result = CliRunner().invoke(log_app, ["sql", "select count(*) as n from examples", "--json"])
    assert json.loads(result.stdout) == [{"n": 2}]


@pytest.mark.timeout(300)  # starts a process
def test_a_watch_commits_once_more_when_it_is_ended(home: Path) -> None:
    config = home / "slow.toml"
    config.write_text("[capture]\ncommit_seconds = 600.0\n", encoding="utf-8")
    command = [sys.executable, "-m", "gateway", "log", "commit", "--watch", "-c", str(config)]
    spool_exchanges(config_in(home), exchange_row("first"))
    with subprocess.Popen(command) as watch:
        while list((home / "spool").glob("*.seg")):
            assert watch.poll() is None
        spool_exchanges(config_in(home), exchange_row("last"))
        watch.send_signal(signal.SIGTERM)
        assert watch.wait() == 0

    rows = Log(home / "log").connect().sql("select exchange_id from exchanges").fetchall()
    assert sorted(rows) == [("a",), ("b",), ("first",), ("last",)]


def test_an_export_of_erased_rows_is_refused(home: Path) -> None:
    snapshot = Log(home / "log").snapshot()
    document(home, "erase", "--exchange", "a")
    with pytest.raises(LogError, match="expected 2"):
        export(snapshot, home / "out.jsonl", Format.JSONL, lambda _: None)
    assert not (home / "out.jsonl").exists()
