"""Two real engines: what a candidate makes of its incumbent's answers, and what it computes."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from capture.config import CaptureConfig
from capture.engine import Engine, EngineSpec
from capture.host import SMALL_ENGINE_ENV
from capture.spool import closed_segments, read_segment
from capture.wire import TOP
from capture.writer import Spool, SpoolLimits
from gateway.exchange import Exchange, Request, encode
from gateway.metrics import Metrics
from gateway.mirror import Mirror, MirrorLimits
from gateway.pair import Pair
from gateway.pool import Pool
from gateway.routing import Deployment
from gateway.scorer import Scorer
from tests.integration.conftest import ARGS, Tapped
from tests.support.tiny_model import make_tiny_model

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]

COMPLETIONS = "/v1/completions"
PROMPTS = ("hello there", "word " * 30, "a")  # the second takes several chunks
TOLERANCE_NATS = 1e-3
Row = dict[str, Any]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("student") / "tiny", seed=1)


@pytest.fixture(scope="module")
def candidate(student: Path) -> Iterator[Engine]:
    log = student.parent / "engine.log"
    with Engine.start(EngineSpec(student, "tiny", log, ARGS, SMALL_ENGINE_ENV)) as engine:
        engine.wait_ready()
        yield engine


async def answered(tapped: Tapped, prompt: str) -> Exchange:
    """Let the incumbent answer a request that its tap records."""
    body: Row = {"model": "tiny", "prompt": prompt, "max_tokens": 24, "temperature": 0}
    request = Request(COMPLETIONS, "tiny", orjson.dumps(body), body, stream=False, conversation="")
    pool = Pool((tapped.url,))
    incumbent = Deployment("teacher", pool, "tiny", "rev", True)
    exchange = Exchange(f"scored {prompt[:9]}", request, incumbent, "incumbent", "tap")
    tagged = {**body, "vllm_xargs": {"retort": exchange.exchange_id}}
    async with httpx.AsyncClient(base_url=tapped.url, timeout=300) as client:
        answer = await client.post(COMPLETIONS, json=tagged)
    exchange.http_status = answer.status_code
    exchange.take(answer.content)
    return exchange


def rows_of(spool: Path, source: str) -> dict[tuple[int, ...], Row]:
    """Rows of closed segments by their prompt's ids."""
    batches = [b for path in closed_segments(spool) for b in read_segment(path).batches]
    rows = pa.Table.from_batches(batches).to_pylist() if batches else []
    return {tuple(row["prompt_ids"]): row for row in rows if row["source"] == source}


def exact(folder: Path, row: Row) -> np.ndarray:
    """Log-probabilities of the whole vocabulary at every token of an answer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([row["prompt_ids"] + row["completion_ids"]])).logits[0]
    first = len(row["prompt_ids"]) - 1
    window = logits[first : first + len(row["completion_ids"])]
    found: np.ndarray = window.double().log_softmax(-1).numpy()
    return found


def positions(row: Row) -> list[tuple[list[int], np.ndarray]]:
    """Ids and log-probabilities of each position."""
    ends = np.cumsum(row["topk_size"]).tolist()
    starts = [0, *ends]
    return [
        (row["topk_ids"][start:end], np.array(row["topk_logprobs"][start:end]))
        for start, end in zip(starts, ends, strict=False)
    ]


async def score(candidate: Engine, tapped: Tapped, student: Path, home: Path) -> Metrics:
    """Mirror the incumbent's answers until each is scored."""
    spool = Spool(home, "exchanges", encode, limits=SpoolLimits())
    metrics = Metrics.create(home)
    deployment = Deployment("student", Pool((candidate.url,)), "tiny", "student", False)
    captured = CaptureConfig(spool=tapped.spool, segment_seconds=0.2)
    scorer = Scorer(deployment, student, captured, metrics.shadow)
    mirror = Mirror(deployment, spool, metrics, MirrorLimits(2, 1_000_000), scorer)
    where = {"route": "tiny", "deployment": "student", "outcome": "scored"}
    first = await answered(tapped, "never scored")
    mirror.offer(
        first, lambda *_, **__: Pair(agrees=None)
    )  # what comes before the process runs is not
    async with asyncio.timeout(120):
        while scorer._channel is None:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.05)
        await scorer._ask("forget", "nobody")  # it reads what is spooled when it answers
        for prompt in PROMPTS:
            mirror.offer(await answered(tapped, prompt), lambda *_, **__: Pair(agrees=None))
        name = "retort_pair_scores_total"
        while metrics.registry.get_sample_value(name, where) != len(PROMPTS):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await mirror.close()
    await asyncio.to_thread(spool.close)
    return metrics


async def test_scores_are_what_the_candidate_computes(
    candidate: Engine, tapped: Tapped, student: Path, tmp_path: Path
) -> None:
    metrics = await score(candidate, tapped, student, tmp_path)
    scored = rows_of(tapped.spool, "score")
    async with asyncio.timeout(30):  # until the tap's segments are closed too
        while not scored.keys() <= (theirs := rows_of(tapped.spool, "tap")).keys():  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    assert len(scored) == len(PROMPTS)
    means = []
    for prompt, row in scored.items():
        assert row["completion_ids"] == theirs[prompt]["completion_ids"]
        p_NV, q_NV = exact(tapped.model, row), exact(student, row)
        kl_nats, full = [], (np.exp(p_NV) * (p_NV - q_NV)).sum(axis=1)
        at = zip(positions(row), positions(theirs[prompt]), strict=True)
        for number, ((ids, logprobs), (kept, _)) in enumerate(at):
            q, p = q_NV[number], p_NV[number]
            token = row["completion_ids"][number]
            assert np.abs(logprobs - q[ids]).max() < TOLERANCE_NATS
            assert {*np.argsort(-q)[: TOP - 1].tolist(), token} <= set(ids)
            assert TOP <= len(ids) <= TOP + 1
            tail = 1 - np.exp(logprobs).sum()
            assert np.exp(row["tail_logprob"][number]) == pytest.approx(tail, abs=1e-5)
            shared = sorted(set(ids) & set(kept))
            assert token in shared
            rest = [1 - np.exp(side[shared]).sum() for side in (p, q)]
            kl_nats.append(
                (np.exp(p[shared]) * (p[shared] - q[shared])).sum()
                + rest[0] * np.log(rest[0] / rest[1])
            )
        assert (np.array(kl_nats) <= full + 1e-9).all()
        means.append(np.mean(kl_nats))
    where = {"route": "tiny", "deployment": "student"}
    total = metrics.registry.get_sample_value("retort_pair_kl_nats_sum", where)
    assert total == pytest.approx(sum(means), abs=1e-3)
    assert min(means) > 0.1
