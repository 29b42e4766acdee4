import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from prometheus_client import generate_latest

from capture.spool import closed_segments, read_segment
from capture.writer import Spool, SpoolLimits
from gateway.app import create_app
from gateway.config import GatewayConfig
from gateway.exchange import Exchange, encode
from gateway.gate import Gate
from gateway.health import PoolConfig
from gateway.keeper import Keeper, Overflow
from gateway.metrics import Metrics
from gateway.pool import Pool
from gateway.prober import probing
from gateway.routing import Deployment, Route, RouteTable
from gateway.serving import Serving
from gateway.upstream import Upstream
from tests.support.fake_engine import FakeEngine
from tests.support.serving import served

LIMITS = SpoolLimits(sync_seconds=0.02, segment_seconds=60.0)


@dataclass
class Stand:
    """A gateway before a fake engine, and what has come through it."""

    client: httpx.AsyncClient
    engine: FakeEngine
    engine_url: str
    serving: Serving
    ended: "asyncio.Queue[Exchange]"
    spool_dir: Path
    pools: dict[str, Pool]

    async def rows(self) -> list[dict[str, object]]:
        await asyncio.to_thread(self.serving.spool.close)
        segments = [read_segment(path) for path in closed_segments(self.spool_dir)]
        batches = [batch for s in segments if s.name.table == "exchanges" for batch in s.batches]
        rows: list[dict[str, object]] = pa.Table.from_batches(batches).to_pylist()
        return rows


def chat(word: str, **more: object) -> dict[str, object]:
    return {"model": "support", "messages": [{"role": "user", "content": word}], **more}


@asynccontextmanager
async def probed(*pools: Pool) -> AsyncIterator[None]:
    """Look after the health of engines, as the fleet does."""
    tasks = [asyncio.create_task(probing(pool, "support")) for pool in pools]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def stand(
    folder: Path,
    *,
    limits: SpoolLimits = LIMITS,
    wait_seconds: float = 5,
    write_seconds: float = 5,
    overflow: Overflow = "shed_capture",
    gate: Gate | None = None,
    **settings: object,
) -> AsyncIterator[Stand]:
    engine = FakeEngine()
    async with served(engine.app) as engine_url:
        route = {"url": engine_url, "timeouts": settings.pop("timeouts", {})}
        config = GatewayConfig.model_validate({"routes": {"support": route}, **settings})
        pool = Pool((engine_url,))
        deployment = Deployment("teacher", pool, "teacher", "rev", capture=True)
        table = RouteTable({"support": Route(deployment)})
        upstream = Upstream.create()
        spool = Spool(folder / "spool", "exchanges", encode, limits=limits)
        pools: dict[str, Pool] = {}
        metrics = Metrics.create(folder / "spool", lambda: pools)
        ended: asyncio.Queue[Exchange] = asyncio.Queue()
        keeper = Keeper(
            spool,
            wait_seconds=wait_seconds,
            overflow=overflow,
            on_late=metrics.count_late,
            write_seconds=write_seconds,
        )

        def end(exchange: Exchange) -> None:
            metrics.end(exchange)
            ended.put_nowait(exchange)

        async def exposition() -> bytes:
            return generate_latest(metrics.registry)

        serving = Serving(
            *(config, table, upstream, spool, metrics.begin, end, keeper),
            on_refused=metrics.refuse,
            gate=gate or Gate(),
        )
        async with (
            probed(pool),
            served(create_app(serving, exposition)) as url,
            httpx.AsyncClient(base_url=url, timeout=10.0) as client,
        ):
            yield Stand(client, engine, engine_url, serving, ended, folder / "spool", pools)
        await upstream.close()
        await asyncio.to_thread(spool.close)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_receives_the_engines_bytes(tmp_path: Path, stream: bool) -> None:
    async with stand(tmp_path) as s, httpx.AsyncClient(base_url=s.engine_url) as direct:
        through = await s.client.post("/v1/chat/completions", json=chat("hi", stream=stream))
        straight = await direct.post("/v1/chat/completions", json=chat("hi", stream=stream))

    assert through.content == straight.content
    assert through.status_code == straight.status_code
    assert through.headers["content-type"] == straight.headers["content-type"]
    ours = set(through.headers) - set(straight.headers)
    assert ours == {"x-retort-exchange-id", "x-retort-deployment"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_completed_exchange_becomes_a_row(tmp_path: Path, stream: bool) -> None:
    async with stand(tmp_path) as s:
        answer = await s.client.post("/v1/chat/completions", json=chat("hi", stream=stream, seed=7))
        (row,) = await s.rows()

    assert row["exchange_id"] == answer.headers["x-retort-exchange-id"]
    assert row["response_text"] == ['{"intent": "order"}']
    assert (row["status"], row["http_status"], row["finish_reason"]) == ("completed", 200, ["stop"])
    assert (row["route"], row["deployment"], row["role"]) == ("support", "teacher", "incumbent")
    assert (row["stream"], row["capture"]) == (stream, "tap")
    assert json.loads(str(row["params"])) == {"seed": 7}
    assert json.loads(str(row["request"]))["messages"] == chat("hi")["messages"]


async def test_the_row_is_written_before_the_client_has_the_whole_answer(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        await s.client.post("/v1/chat/completions", json=chat("hi", stream=True))
        (segment,) = s.spool_dir.glob("*.open")

        assert read_segment(segment).num_rows == 1


async def test_the_engine_is_asked_to_record_by_a_tag(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        own = {"vllm_xargs": {"other": 1}}
        answer = await s.client.post("/v1/chat/completions", json=chat("hi", **own))

    sent = s.engine.bodies[0]["vllm_xargs"]
    assert sent == {"other": 1, "retort": answer.headers["x-retort-exchange-id"]}


async def test_the_clients_key_stays_with_the_gateway(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        headers = {"authorization": "Bearer sk-secret", "x-request-id": "7"}
        await s.client.post("/v1/chat/completions", json=chat("hi"), headers=headers)

    assert "authorization" not in s.engine.headers[0]
    assert s.engine.headers[0]["x-request-id"] == "7"


@pytest.mark.parametrize(
    ("word", "http_status", "status"), [("fail", 500, "failed"), ("refuse", 400, "rejected")]
)
async def test_the_engines_errors_pass_through_and_are_recorded(
    tmp_path: Path, word: str, http_status: int, status: str
) -> None:
    async with stand(tmp_path) as s:
        answer = await s.client.post("/v1/chat/completions", json=chat(word))
        (row,) = await s.rows()

    assert answer.status_code == http_status
    assert answer.json()["error"]["message"] in {"out of memory", "bad"}
    assert (row["status"], row["http_status"]) == (status, http_status)
    assert row["error_type"] == answer.json()["error"]["type"]


async def test_a_stream_that_the_engine_breaks_off_ends_with_an_error_event(
    tmp_path: Path,
) -> None:
    async with stand(tmp_path) as s:
        answer = await s.client.post("/v1/chat/completions", json=chat("break", stream=True))
        (row,) = await s.rows()

    *_, last, rest = answer.text.split("\n\n")
    assert rest == ""
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
    assert "[DONE]" not in answer.text
    assert (row["status"], row["error_type"]) == ("failed", "engine_failed")
    assert row["response_text"] == ['{"intent": ']


async def test_an_engine_that_dies_after_its_answers_head_gives_a_clear_error(
    tmp_path: Path,
) -> None:
    async with stand(tmp_path) as s:
        answer = await s.client.post("/v1/chat/completions", json=chat("vanish"))
        (row,) = await s.rows()

    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "engine_failed"
    assert (row["status"], row["error_type"]) == ("failed", "engine_failed")


async def test_an_engine_that_is_down_gives_a_clear_error(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        pool = Pool(("http://127.0.0.1:9",), PoolConfig(queue_seconds=0.1))
        nowhere = Deployment("teacher", pool, "m", None, capture=False)
        s.serving.table = RouteTable({"support": Route(nowhere)})
        answer = await s.client.post("/v1/chat/completions", json=chat("hi"))
        (row,) = await s.rows()

    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_not_ready"
    assert (row["status"], row["error_type"]) == ("failed", "engine_not_ready")


async def test_an_engine_that_stays_silent_times_out(tmp_path: Path) -> None:
    async with stand(tmp_path, timeouts={"total_seconds": 0.1}) as s:
        answer = await s.client.post("/v1/chat/completions", json=chat("hang"))

    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "engine_timeout"
    assert "total_seconds is 0.1" in answer.json()["error"]["message"]


async def test_a_client_that_leaves_stops_the_engines_work(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        asking = asyncio.create_task(s.client.post("/v1/chat/completions", json=chat("hang")))
        await asyncio.wait_for(s.engine.hanging.wait(), 5)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.wait_for(s.engine.cancelled.wait(), 5)
        exchange = await asyncio.wait_for(s.ended.get(), 5)

    assert exchange.status == "aborted"


async def test_models_health_and_metrics_answer(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        models = (await s.client.get("/v1/models")).json()
        model = (await s.client.get("/v1/models/support")).json()
        await s.client.post("/v1/chat/completions", json=chat("hi"))
        ready = await s.client.get("/readyz")
        health = await s.client.get("/healthz")
        metrics = (await s.client.get("/metrics")).text
        s.serving.table = RouteTable({})
        waiting = await s.client.get("/readyz")

    assert models["data"] == [model]
    assert (model["id"], model["object"]) == ("support", "model")
    assert (ready.status_code, health.status_code, waiting.status_code) == (200, 200, 503)
    assert waiting.json()["waiting"] == ["support"]
    assert "retort_in_flight_requests" in metrics
