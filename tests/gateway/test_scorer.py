"""The candidate scores what the incumbent has answered, out of everybody's way."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from capture.config import CaptureConfig
from capture.redaction import RedactConfig, Redactor
from capture.revision import tokenizer_hash
from capture.rows import LogitRow, encode_logits
from capture.schema import Flag
from capture.spool import CLOSED, OPEN, read_segment, segments
from capture.tail import SpoolTail
from capture.writer import Spool, SpoolLimits
from gateway import scoring
from gateway.awaited import AwaitedRows
from gateway.exchange import Exchange, Request, encode
from gateway.metrics import Metrics
from gateway.mirror import Mirror, MirrorLimits
from gateway.pair import Pair
from gateway.pool import Pool
from gateway.privacy import Keeping
from gateway.routing import Deployment
from gateway.scorer import Scorer
from gateway.scoring import Scored, ScoreTask, Scoring
from gateway.upstream import Upstream
from tests.support.fake_engine import FakeEngine
from tests.support.log_rows import logit_row
from tests.support.serving import served

ANSWER = b'{"choices": [{"index": 0, "message": {"content": "yes"}, "finish_reason": "stop"}]}'
PATIENCE_SECONDS = 40.0


@dataclass
class Scene:
    """A mirror with a scorer before a fake candidate, and an incumbent's tap."""

    mirror: Mirror
    scorer: Scorer
    engine: FakeEngine
    metrics: Metrics
    incumbent: Deployment
    tap: Spool[LogitRow]
    folder: Path

    def offer(self, name: str, keeping: Keeping | None = None) -> None:
        body: dict[str, object] = {"model": "support", "messages": [{"content": "hi"}]}
        request = Request(
            *("/v1/chat/completions", "support", orjson.dumps(body), body),
            stream=False,
            conversation="c",
            salt="pepper",
        )
        exchange = Exchange(name, request, self.incumbent, "incumbent", "tap", http_status=200)
        exchange.keeping = keeping or exchange.keeping
        exchange.take(ANSWER)
        self.mirror.offer(exchange, lambda *_, **__: Pair(agrees=None))

    def spool(self, row: LogitRow) -> None:
        self.tap.account.start()
        self.tap.offer(row, row.num_bytes)

    def count(self, name: str, **labels: str) -> float:
        where = {"route": "support", "deployment": "student", **labels}
        return self.metrics.registry.get_sample_value(name, where) or 0.0

    def has_scored(self, number: int) -> bool:
        """Whether so many scores have come to an end, good or bad."""
        ends = ("scored", "failed")
        return sum(self.count("retort_pair_scores_total", outcome=end) for end in ends) == number

    async def until(self, outcome: str) -> None:
        def is_there() -> bool:
            return bool(self.count("retort_pair_scores_total", outcome=outcome))

        await until(is_there)

    async def rows(self) -> list[dict[str, Any]]:
        """What the scorer has spooled in the end."""
        await self.mirror.close()
        found = [*segments(self.folder, OPEN), *segments(self.folder, CLOSED)]
        paths = [path for name, path in found if name.table == "logits"]
        batches = [batch for path in paths for batch in read_segment(path).batches]
        rows = [row for batch in batches for row in batch.to_pylist()]
        return [row for row in rows if row["source"] == "score"]


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not is_so():  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)


async def follows(scorer: Scorer, before: object = None) -> None:
    """Wait until the process, another one than before, reads what is spooled."""
    await until(lambda: scorer._channel not in {before, None})
    await asyncio.wait_for(scorer._ask("forget", "nobody"), PATIENCE_SECONDS)


def tapped(name: str, folder: Path, **more: Any) -> LogitRow:
    return replace(logit_row(name), tokenizer_hash=tokenizer_hash(folder), **more)


@asynccontextmanager
async def scene(folder: Path, **behaviour: Any) -> AsyncIterator[Scene]:
    engine = FakeEngine(**behaviour)
    spool = Spool(folder, "exchanges", encode, limits=SpoolLimits())
    tap = Spool(folder, "logits", encode_logits, limits=SpoolLimits())
    metrics = Metrics.create(folder)
    async with served(engine.app) as url:
        candidate = Deployment("student", Pool((url,)), "student", "rev", False, True)
        scorer = Scorer(candidate, folder, CaptureConfig(spool=folder), metrics.shadow)
        mirror = Mirror(candidate, spool, metrics, MirrorLimits(2, 1_000_000), scorer)
        teacher = Deployment("teacher", Pool((url,)), "teacher", "rev", True)
        made = Scene(mirror, scorer, engine, metrics, teacher, tap, folder)
        made.offer("first")  # nobody looks out for what comes before the process runs
        try:
            await follows(scorer)
            yield made
        finally:
            await mirror.close()
    await asyncio.to_thread(spool.close)
    await asyncio.to_thread(tap.close)


def entries(row: dict[str, Any]) -> list[dict[int, float]]:
    """What a row says at each position: probabilities by token."""
    ends = np.cumsum(row["topk_size"])
    pairs = list(zip(row["topk_ids"], np.exp(row["topk_logprobs"]), strict=True))
    return [dict(pairs[end - size : end]) for end, size in zip(ends, row["topk_size"], strict=True)]


async def test_what_the_incumbent_said_is_scored_token_by_token(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        s.offer("a")
        s.spool(tapped("a", tmp_path))
        await s.until("scored")
        mean = s.count("retort_pair_kl_nats_sum") / s.count("retort_pair_kl_nats_count")
        (body,) = [body for body in s.engine.bodies if "prompt_logprobs" in body]
        tags = [b["vllm_xargs"] for b in s.engine.bodies if "messages" in b]
        (row,) = await s.rows()

    theirs = tapped("a", tmp_path)
    ids = theirs.completion_ids.tolist()
    assert body["prompt"] == [[*theirs.prompt_ids.tolist(), *ids]]
    assert (body["model"], body["max_tokens"], body["cache_salt"]) == ("support", 1, "pepper")
    assert {"retort": row["exchange_id"]} == tags[1]
    assert (row["source"], row["model_revision"]) == ("score", "rev")
    assert (row["prompt_ids"], row["completion_ids"]) == (theirs.prompt_ids.tolist(), ids)
    assert entries(row) == [{i: pytest.approx(1 / 2), 1: pytest.approx(1 / 3)} for i in ids]
    assert np.exp(row["tail_logprob"]) == pytest.approx([1 / 6] * 3)
    assert mean == pytest.approx(kl(theirs, ids), rel=1e-5)


def kl(theirs: LogitRow, ids: list[int]) -> float:
    """Per token, by the definition: tokens that both name, and all others together."""
    probs = np.exp(theirs.topk_logprobs)
    total, start = 0.0, 0
    for token, size in zip(ids, theirs.topk_size.tolist(), strict=True):
        named = dict(
            zip(theirs.topk_ids[start : start + size].tolist(), probs[start:], strict=False)
        )
        start += size
        q = {token: 1 / 2, 1: 1 / 3}
        shared = named.keys() & q.keys()
        rest = 1 - sum(named[i] for i in shared), 1 - sum(q[i] for i in shared)
        pairs = [*((named[i], q[i]) for i in shared), rest]
        total += max(sum(p * np.log(p / q) for p, q in pairs if p > 0), 0.0)
    return total / len(ids)


async def test_what_cannot_be_scored_is_counted_and_not_asked(tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "flagged": {"flags": int(Flag.MASKED)},
        "other_tokenizer": {"tokenizer_hash": "another"},
        "too_long": {"prompt_ids": np.ones(4096, np.int32)},
    }
    async with scene(tmp_path) as s:
        for outcome, change in changes.items():
            s.offer(outcome)
            s.spool(replace(tapped(outcome, tmp_path), **change))
            await s.until(outcome)

        assert not [body for body in s.engine.bodies if "prompt_logprobs" in body]
        assert await s.rows() == []


async def test_a_candidate_that_cannot_score_costs_the_scores_alone(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        for number, s.engine.scoring in enumerate(["fail", "refuse", "garbage", ""]):
            name = f"x{number}"
            s.offer(name)
            s.spool(tapped(name, tmp_path))
            await until(partial(s.has_scored, number + 1))

        assert s.count("retort_pair_scores_total", outcome="failed") == 3
        assert s.count("retort_pair_scores_total", outcome="scored") == 1
        assert s.count("retort_pairs_total", outcome="sampled") == 5
        assert len(await s.rows()) == 1


async def test_a_candidate_that_always_fails_to_score_is_asked_no_more(tmp_path: Path) -> None:
    async with scene(tmp_path, scoring="fail") as s:
        for number in range(1, 6):
            s.offer(f"x{number}")
            s.spool(tapped(f"x{number}", tmp_path))
            await until(partial(s.has_scored, number))
        s.offer("last")
        await s.until("skipped")

        assert len([body for body in s.engine.bodies if "prompt_logprobs" in body]) == 5
        assert s.count("retort_pair_scores_total", outcome="failed") == 5


async def test_shadow_requests_wait_while_an_answer_is_scored(tmp_path: Path) -> None:
    async with scene(tmp_path, scoring="hang") as s:
        s.offer("a")
        s.spool(tapped("a", tmp_path))
        await asyncio.wait_for(s.engine.hanging.wait(), PATIENCE_SECONDS)
        asked = len(s.engine.bodies)
        s.offer("b")
        await asyncio.sleep(0.3)

        assert len(s.engine.bodies) == asked


async def test_a_candidate_that_answers_clients_is_not_asked(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        s.offer("a")
        s.scorer.may_ask = False
        s.spool(tapped("a", tmp_path))
        await s.until("skipped")

        assert await s.rows() == []


async def test_an_answer_that_is_redacted_is_not_scored(tmp_path: Path) -> None:
    redactor = Redactor(RedactConfig(patterns={"word": "yes"}))  # the candidate says another
    async with scene(tmp_path) as s:
        s.offer("a", keeping=Keeping.decide("full", redactor, {"messages": []}))
        s.spool(tapped("a", tmp_path))
        await s.until("withheld")

        assert await s.rows() == []


async def test_a_process_that_ends_is_started_again(tmp_path: Path) -> None:
    async with scene(tmp_path, scoring="hang") as s:
        s.offer("a")
        s.spool(tapped("a", tmp_path))
        await asyncio.wait_for(s.engine.hanging.wait(), PATIENCE_SECONDS)
        s.engine.scoring = ""
        before = s.scorer._channel
        (child,) = multiprocessing.active_children()
        child.kill()
        await s.until("failed")
        await follows(s.scorer, before)
        s.offer("b")
        s.spool(tapped("b", tmp_path))
        await s.until("scored")


async def test_an_engine_that_takes_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "SECONDS", 0.2)
    engine, upstream = FakeEngine(scoring="hang"), Upstream.create()

    class Found(AwaitedRows):
        async def wait(self, exchange_id: str, num_choices: int) -> list[pa.RecordBatch | None]:
            return [encode_logits([tapped(exchange_id, tmp_path)])] * num_choices

    plan = scoring.ScoringPlan(CaptureConfig(spool=tmp_path), tmp_path, "rev", None)  # type: ignore[arg-type]
    spool = Spool(tmp_path, "logits", encode_logits, limits=SpoolLimits())
    judged = Scoring(plan, Found(SpoolTail(tmp_path, "logits")), spool, upstream)
    async with served(engine.app) as url:
        task = ScoreTask("a", 1, "s", "support", None)
        assert await judged.score((task, url)) == Scored("timeout")
        await asyncio.wait_for(engine.cancelled.wait(), PATIENCE_SECONDS)
        await upstream.close()
    await asyncio.to_thread(spool.close)
