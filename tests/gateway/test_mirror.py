import asyncio
from pathlib import Path

import orjson

from capture.account import read_counts
from capture.spool import closed_segments, read_segment
from capture.writer import Spool, SpoolLimits
from gateway.exchange import Exchange, Request, encode
from gateway.metrics import Metrics
from gateway.mirror import Mirror, MirrorLimits
from gateway.pool import Pool
from gateway.routing import Deployment
from tests.support.fake_engine import FakeEngine
from tests.support.serving import served


async def test_a_shadow_that_is_cut_off_is_written_as_aborted(tmp_path: Path) -> None:
    engine = FakeEngine()
    spool = Spool(tmp_path, "exchanges", encode, limits=SpoolLimits())
    body: dict[str, object] = {
        "model": "support",
        "messages": [{"role": "user", "content": "hang"}],
    }
    request = Request(
        "/v1/chat/completions", "support", orjson.dumps(body), body, stream=False, conversation="c"
    )
    async with served(engine.app) as url:
        candidate = Deployment("student", Pool((url,)), "student", "rev", capture=False)
        mirror = Mirror(
            candidate, spool, Metrics.create(tmp_path), MirrorLimits(concurrency=1, queue=4)
        )
        mirror.offer(Exchange("a", request, candidate, "incumbent"), lambda *_: None)
        await asyncio.wait_for(engine.hanging.wait(), 10)
        await mirror.close()
    await asyncio.to_thread(spool.close)

    (segment,) = closed_segments(tmp_path)
    (row,) = read_segment(segment).batches[0].to_pylist()
    assert (row["role"], row["status"], row["pair_id"]) == ("shadow", "aborted", "a")
    (counts,) = read_counts(tmp_path).values()
    assert (counts.started, counts.written, counts.dropped) == (1, 1, {})
