import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from capture.account import Account, Counts
from capture.balance import Balance, Evidence
from capture.commit import Committer
from capture.delta import open_table
from capture.rows import encode_logits
from capture.schema import Flag
from capture.spool import closed_segments
from capture.verify import verify
from capture.writer import Spool, SpoolLimits
from tests.support.log_folders import config_in, filled, spool_exchanges, spool_logits
from tests.support.log_rows import exchange_row, logit_row


def evidence(
    started: int = 0, written: int = 0, *, committed: int = 0, waiting: int = 0, alive: bool = False
) -> Evidence:
    counts = Counts(table="logits", writer="w", started=started, written=written)
    return Evidence(counts, committed, waiting, is_alive=alive, is_damaged=False)


def parts(balance: Balance) -> int:
    return balance.committed + balance.dropped.total() + balance.in_flight


def test_a_living_writers_unfinished_rows_are_in_flight() -> None:
    balance = evidence(10, 6, committed=4, waiting=2, alive=True).balance()
    assert (balance.started, balance.in_flight, balance.dropped) == (10, 6, Counter())
    assert parts(balance) == balance.started


def test_a_dead_writers_unfinished_rows_were_killed() -> None:
    balance = evidence(10, 6, committed=4, waiting=2).balance()
    assert (balance.in_flight, balance.dropped) == (2, Counter(killed=4))
    assert parts(balance) == balance.started


def test_rows_found_beyond_the_last_count_count_as_started() -> None:
    balance = evidence(10, 6, committed=11, waiting=1).balance()
    assert (balance.started, balance.dropped) == (12, Counter())
    assert parts(balance) == balance.started


def test_vanished_rows_leave_a_gap() -> None:
    gone = evidence(10, 10, committed=7)
    assert gone.lost == 3
    assert parts(gone.balance()) == gone.balance().started - 3


def test_an_empty_log_holds_what_it_should(tmp_path: Path) -> None:
    found = verify(config_in(tmp_path))
    document = found.document()
    assert (found.problems, document["started"], document["complete_fraction"]) == ([], 0, 1.0)


def test_everything_committed_adds_up(tmp_path: Path) -> None:
    config = filled(tmp_path, [exchange_row("a")], [logit_row("a")])
    document = verify(config).document()

    assert document["problems"] == []
    assert (document["started"], document["committed"], document["in_flight"]) == (2, 2, 0)
    assert (document["captured"], document["complete"]) == (1, 1)


def test_rows_still_in_the_spool_are_in_flight(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    spool_logits(config, logit_row("a"), logit_row("b"))
    assert verify(config).tables["logits"] == Balance(2, 0, Counter(), 2)


def test_a_living_writer_is_told_from_a_dead_one(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    spool = Spool(config.spool, "logits", encode_logits, limits=SpoolLimits(sync_seconds=600))
    for _ in range(3):
        spool.account.start()
    spool.account.save()
    assert verify(config).tables["logits"].in_flight == 3

    spool.close()
    found = verify(config)
    assert found.tables["logits"] == Balance(3, 0, Counter(killed=3), 0)
    assert found.document()["dropped"] == {"killed": 3}


@pytest.mark.timeout(300)  # starts a process
def test_a_killed_writer_breaks_nothing(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    script = (
        "import os, signal, sys, pathlib, threading\n"
        "from capture.rows import encode_logits\n"
        "from capture.writer import Spool, SpoolLimits\n"
        "from tests.support.log_rows import logit_row\n"
        "spool = Spool(pathlib.Path(sys.argv[1]), 'logits', encode_logits, limits=SpoolLimits())\n"
        "done = threading.Semaphore(0)\n"
        "for seed in range(20):\n"
        "    spool.account.start()\n"
        "    spool.offer(logit_row(str(seed)), 100, written=done.release)\n"
        "for _ in range(20): done.acquire()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(config.spool)], check=False)
    assert ended.returncode == -9

    Committer(config).commit()

    found = verify(config)
    assert found.problems == []
    assert found.tables["logits"].committed == 20
    assert found.tables["logits"].in_flight == 0


def test_a_segment_that_disappeared_is_a_problem(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    spool_logits(config, logit_row("a"), logit_row("b"))
    closed_segments(config.spool)[0].unlink()

    (problem,) = verify(config).problems
    assert "2 rows of writer" in problem
    assert "vanished" in problem


def test_rows_lost_to_damage_are_dropped_with_that_reason(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    spool_logits(config, logit_row("a"))
    (path,) = closed_segments(config.spool)
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    Committer(config).commit()

    found = verify(config)
    assert (found.problems, found.quarantined) == ([], 1)
    assert found.tables["logits"] == Balance(1, 0, Counter(damaged=1), 0)


def test_a_row_in_the_table_twice_is_a_problem(tmp_path: Path) -> None:
    config = filled(tmp_path, [exchange_row("a")], [logit_row("a")])
    spool_logits(config, logit_row("a"))
    spool_exchanges(config, exchange_row("a"))
    Committer(config).commit()

    problems = verify(config).problems
    assert problems == [
        "exchanges: 1 rows are in the table more than once",
        "logits: 1 rows are in the table more than once",
    ]


def test_rows_deleted_behind_our_back_are_a_problem(tmp_path: Path) -> None:
    config = filled(tmp_path, logits=[logit_row("a"), logit_row("b")])
    table = open_table(config.log, "logits")
    assert table is not None
    table.delete("exchange_id = 'a'")

    (problem,) = verify(config).problems
    assert problem == "logits: 1 rows and 0 erased, expected 2 in all"


def test_a_choice_that_went_on_is_superseded_and_no_problem(tmp_path: Path) -> None:
    rows = [logit_row("a", sizes=(1,)), logit_row("a", sizes=(1, 2, 3))]
    found = verify(filled(tmp_path, [exchange_row("a")], rows))
    assert (found.problems, found.superseded, found.complete) == ([], 1, 1)


def test_only_whole_unflagged_choices_make_an_exchange_complete(tmp_path: Path) -> None:
    exchanges = [
        exchange_row("whole"),
        exchange_row("both", texts=("x", "y"), completion_tokens=6),
        exchange_row("one of two", texts=("x", "y")),
        exchange_row("short", completion_tokens=4),
        exchange_row("flagged"),
        exchange_row("missing"),
        exchange_row("aborted", status="aborted"),
    ]
    rows = [
        logit_row("whole"),
        logit_row("both"),
        logit_row("both", choice=1),
        logit_row("one of two"),
        logit_row("short"),
        logit_row("flagged", flags=Flag.BIASED),
    ]
    document = verify(filled(tmp_path, exchanges, rows)).document()
    assert (document["captured"], document["complete"]) == (6, 2)
    assert document["complete_fraction"] == pytest.approx(1 / 3)


def test_what_a_candidate_answers_unseen_does_not_count_as_captured(tmp_path: Path) -> None:
    exchanges = [exchange_row("answer"), replace(exchange_row("copy"), role="shadow")]
    found = verify(filled(tmp_path, exchanges, [logit_row("answer"), logit_row("copy")]))
    assert (found.captured, found.complete) == (1, 1)


def test_files_that_no_version_counts_are_counted(tmp_path: Path) -> None:
    config = filled(tmp_path, logits=[logit_row("a")])
    (config.log / "logits" / "day=2026-11-24" / "part-stray.parquet").write_bytes(b"stray")
    assert verify(config).orphan_files == 1


def test_a_log_may_hold_rows_of_writers_elsewhere(tmp_path: Path) -> None:
    config = filled(tmp_path, logits=[logit_row("a")])
    elsewhere = config.model_copy(update={"spool": tmp_path / "other"})
    elsewhere.spool.mkdir()
    account = Account(elsewhere.spool, "logits", "here")
    account.start()
    account.drop("overflow")
    account.save()

    found = verify(elsewhere)
    assert found.problems == []
    assert found.tables["logits"] == Balance(2, 1, Counter(overflow=1), 0)
