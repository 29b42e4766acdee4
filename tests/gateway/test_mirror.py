import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from capture.account import read_counts
from capture.spool import closed_segments, read_segment
from capture.writer import Spool, SpoolLimits
from gateway.exchange import Exchange, Request, encode
from gateway.metrics import Metrics
from gateway.mirror import Mirror, MirrorLimits
from gateway.pair import Pair
from gateway.pool import Pool
from gateway.routing import Deployment
from tests.support.fake_engine import FakeEngine
from tests.support.serving import served


@dataclass
class Mirrored:
    """A mirror before a fake candidate."""

    mirror: Mirror
    engine: FakeEngine
    metrics: Metrics
    candidate: Deployment
    spool: Spool[Exchange]
    folder: Path

    def offer(self, word: str, **more: object) -> None:
        messages = [{"role": "user", "content": word}]
        body: dict[str, object] = {"model": "support", "messages": messages, **more}
        request = Request(
            *("/v1/chat/completions", "support", orjson.dumps(body), body),
            stream="stream" in more,
            conversation="c",
        )
        exchange = Exchange("a", request, self.candidate, "incumbent")
        self.mirror.offer(exchange, lambda *_, **__: Pair(agrees=None))

    def count(self, reason: str) -> float:
        found = self.metrics.registry.get_sample_value(
            "retort_mirrored_total", {"route": "support", "reason": reason}
        )
        return found or 0.0

    async def until(self, reason: str) -> None:
        async with asyncio.timeout(20):
            while not self.count(reason):  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.01)

    async def row(self) -> dict[str, object]:
        await self.mirror.close()
        await asyncio.to_thread(self.spool.close)
        (segment,) = closed_segments(self.folder)
        (row,) = read_segment(segment).batches[0].to_pylist()
        return dict(row)


@asynccontextmanager
async def mirrored(
    folder: Path, *, queue_bytes: int = 100_000, has_tap: bool = False
) -> AsyncIterator[Mirrored]:
    engine = FakeEngine()
    spool = Spool(folder, "exchanges", encode, limits=SpoolLimits())
    metrics = Metrics.create(folder)
    async with served(engine.app) as url:
        candidate = Deployment("student", Pool((url,)), "student", "rev", False, has_tap)
        mirror = Mirror(candidate, spool, metrics, MirrorLimits(1, queue_bytes))
        yield Mirrored(mirror, engine, metrics, candidate, spool, folder)
        await mirror.close()
    await asyncio.to_thread(spool.close)


async def test_a_shadow_that_is_cut_off_is_written_as_aborted(tmp_path: Path) -> None:
    async with mirrored(tmp_path) as m:
        m.offer("hang")
        await asyncio.wait_for(m.engine.hanging.wait(), 10)
        row = await m.row()

    assert (row["role"], row["status"], row["pair_id"]) == ("shadow", "aborted", "a")
    (counts,) = read_counts(tmp_path).values()
    assert (counts.started, counts.written, counts.dropped) == (1, 1, {})


async def test_what_waits_is_bounded_in_bytes(tmp_path: Path) -> None:
    async with mirrored(tmp_path, queue_bytes=10_000) as m:
        m.offer("hang")
        await asyncio.wait_for(m.engine.hanging.wait(), 10)
        for _ in range(20):
            m.offer("x" * 2_000)
        skipped = m.count("skipped")

    assert skipped == 17  # three of 2.6 kB fit


async def test_an_answer_without_end_is_cut_off(tmp_path: Path) -> None:
    async with mirrored(tmp_path) as m:
        m.offer("flood", stream=True)
        await m.until("failed")
        row = await m.row()

    assert (row["status"], row["error_type"]) == ("failed", "answer_too_long")
    assert m.engine.flooded < 30_000_000


@pytest.mark.parametrize("has_tap", [False, True])
async def test_the_candidates_tap_records_shadow_requests(tmp_path: Path, has_tap: bool) -> None:
    async with mirrored(tmp_path, has_tap=has_tap) as m:
        m.offer("hi")
        await m.until("completed")
        row = await m.row()

    (body,) = m.engine.bodies
    tag = {"vllm_xargs": {"retort": row["exchange_id"]}} if has_tap else {}
    assert {name: value for name, value in body.items() if name == "vllm_xargs"} == tag
    assert row["capture"] == ("tap" if has_tap else "off")
