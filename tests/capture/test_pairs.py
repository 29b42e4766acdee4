"""What the log knows of a mirrored request."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from capture.log import Log, query
from capture.rows import ExchangeRow
from capture.schema import Flag
from capture.statistics import statistics
from capture.verify import verify
from tests.support.log_folders import filled
from tests.support.log_rows import exchange_row, logit_row


def shadow_row(texts: tuple[str, ...], **more: Any) -> ExchangeRow:
    row = replace(exchange_row("s", texts=texts), role="shadow", pair_id="x", deployment="student")
    return replace(row, **more)


def pairs(log: Log) -> list[dict[str, Any]]:
    with log.connect() as connection:
        rows: list[dict[str, Any]] = query(connection, "from pairs order by choice").to_pylist()
    return rows


def test_a_pair_has_both_answers_and_how_far_apart_they_were(tmp_path: Path) -> None:
    exchanges = [exchange_row("x", texts=("yes",)), shadow_row((" yes\n",), duration_ms=40.0)]
    log = Log(filled(tmp_path, exchanges, [logit_row("x"), logit_row("s")]).log)

    (pair,) = pairs(log)

    assert (pair["exchange_id"], pair["shadow_id"], pair["choice"]) == ("x", "s", 0)
    assert (pair["response_text"], pair["candidate_text"]) == ("yes", " yes\n")
    assert (pair["deployment"], pair["candidate"]) == ("teacher", "student")
    assert pair["agrees"]
    assert pair["duration_ratio"] == 2.0
    assert (pair["compared_tokens"], pair["kl_nats"]) == (3, 0.0)


def test_another_distribution_shows_as_kl_although_the_texts_agree(tmp_path: Path) -> None:
    ours = replace(logit_row("s"), topk_logprobs=logit_row("s").topk_logprobs - 1)
    exchanges = [exchange_row("x"), shadow_row(("hello",))]
    log = Log(filled(tmp_path, exchanges, [logit_row("x"), ours]).log)

    (pair,) = pairs(log)

    assert pair["agrees"]
    assert pair["kl_nats"] > 0.01


def test_what_was_not_recorded_or_flagged_is_left_open(tmp_path: Path) -> None:
    exchanges = [exchange_row("x", texts=("a", "b")), shadow_row(("a", "c"))]
    flagged = logit_row("s", choice=1, flags=Flag.MASKED)
    rows = [logit_row("x"), logit_row("x", choice=1), flagged]
    log = Log(filled(tmp_path, exchanges, rows).log)

    found = pairs(log)

    assert [pair["agrees"] for pair in found] == [True, False]
    assert [pair["kl_nats"] for pair in found] == [None, None]


def test_a_candidate_that_failed_does_not_agree(tmp_path: Path) -> None:
    failed = shadow_row((), status="failed", error_type="timeout")
    log = Log(filled(tmp_path, [exchange_row("x"), failed]).log)

    (pair,) = pairs(log)

    assert pair["candidate_status"] == "failed"
    assert pair["candidate_error"] == "timeout"
    assert pair["agrees"] is False


def test_shadow_answers_are_no_examples(tmp_path: Path) -> None:
    exchanges = [exchange_row("x"), shadow_row(("hello",))]
    log = Log(filled(tmp_path, exchanges, [logit_row("x"), logit_row("s")]).log)

    with log.connect() as connection:
        for view in ("examples", "answers", "tokens"):
            assert set(query(connection, f"from {view}")["exchange_id"].to_pylist()) == {"x"}


def test_scores_show_the_kl_of_the_whole_answer_where_the_candidates_own_is_another(
    tmp_path: Path,
) -> None:
    theirs = logit_row("x")
    other = replace(logit_row("s"), completion_ids=theirs.completion_ids + 1)
    scores = replace(logit_row("s"), source="score", topk_logprobs=theirs.topk_logprobs - 1)
    exchanges = [exchange_row("x"), shadow_row(("bye",))]
    (tmp_path / "before").mkdir()
    before = Log(filled(tmp_path / "before", exchanges, [theirs, other]).log)
    log = Log(filled(tmp_path, exchanges, [theirs, other, scores]).log)

    (without,) = pairs(before)
    (pair,) = pairs(log)

    assert (without["is_scored"], without["compared_tokens"]) == (False, 1)
    assert (pair["is_scored"], pair["compared_tokens"]) == (True, 3)
    assert pair["kl_nats"] > 0.01


def test_scores_of_other_tokens_than_the_incumbents_do_not_count(tmp_path: Path) -> None:
    theirs = logit_row("x")
    ids = theirs.completion_ids[::-1].copy()
    scores = replace(logit_row("s"), source="score", completion_ids=ids)
    exchanges = [exchange_row("x"), shadow_row(("hello",))]
    log = Log(filled(tmp_path, exchanges, [theirs, logit_row("s"), scores]).log)

    (pair,) = pairs(log)

    assert (pair["is_scored"], pair["compared_tokens"], pair["kl_nats"]) == (False, 3, 0.0)


def test_scores_are_nobodys_answer(tmp_path: Path) -> None:
    scores = replace(logit_row("s", seed=1), source="score")
    rows = [logit_row("x"), logit_row("s"), scores]
    config = filled(tmp_path, [exchange_row("x"), shadow_row(("hello",))], rows)

    found = verify(config)
    tokens = {route.role: route.tokens for route in statistics(config.log).routes}

    assert (found.problems, found.superseded) == ([], 0)
    assert tokens == {"incumbent": 3, "shadow": 3}
