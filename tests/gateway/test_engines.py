"""Several engines behind one route: what fails on one is answered by another, or waits."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.health import PoolConfig
from gateway.pool import Pool
from gateway.routing import Deployment, Route, RouteTable
from tests.gateway.test_relay import Stand, chat, probed, stand
from tests.support.fake_engine import FakeEngine
from tests.support.serving import served

CHAT = "/v1/chat/completions"


@dataclass
class Pooled:
    """A gateway before two fake engines."""

    stand: Stand
    engines: tuple[FakeEngine, FakeEngine]
    pool: Pool

    async def ask(self, word: str = "hi", **more: object) -> int:
        answer = await self.stand.client.post(CHAT, json=chat(word, **more))
        return answer.status_code


@asynccontextmanager
async def pooled(
    folder: Path, hold: Path | None = None, **settings: float
) -> AsyncIterator[Pooled]:
    one, other = engines = (FakeEngine(hold=hold), FakeEngine())
    async with stand(folder) as s, served(one.app) as first, served(other.app) as second:
        pool = Pool((first, second), PoolConfig.model_validate(settings))
        deployment = Deployment("teacher", pool, "teacher", "rev", capture=True)
        s.serving.table = RouteTable({"support": Route(deployment)})
        async with probed(pool):
            yield Pooled(s, engines, pool)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)


async def test_the_load_is_shared(tmp_path: Path) -> None:
    async with pooled(tmp_path) as p:
        statuses = await asyncio.gather(*(p.ask() for _ in range(20)))

    assert set(statuses) == {200}
    assert [len(engine.bodies) for engine in p.engines] == [10, 10]


async def test_what_one_engine_breaks_off_another_answers(tmp_path: Path) -> None:
    async with pooled(tmp_path) as p:
        p.engines[0].spells.add("vanish")
        statuses = [await p.ask() for _ in range(4)]
        rows = await p.stand.rows()

    assert set(statuses) == {200}
    assert p.pool.counts.retries == p.pool.counts.ejections >= 1
    assert [row["status"] for row in rows] == ["completed"] * 4
    tags = [body["vllm_xargs"]["retort"] for engine in p.engines for body in engine.bodies]  # type: ignore[index]
    assert len(set(tags)) == len(tags), "what one engine recorded must not mix with the other's"
    assert {row["exchange_id"] for row in rows} <= set(tags)


async def test_an_engine_that_says_it_does_not_serve_is_passed_over(tmp_path: Path) -> None:
    async with pooled(tmp_path) as p:
        p.engines[0].spells.add("unserved")
        statuses = [await p.ask() for _ in range(4)]

    assert set(statuses) == {200}
    assert p.pool.counts.retries >= 1


async def test_when_every_engine_says_so_the_client_is_told(tmp_path: Path) -> None:
    async with pooled(tmp_path) as p:
        answer = await p.stand.client.post(CHAT, json=chat("unserved"))

    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "not now")
    assert [len(engine.bodies) for engine in p.engines] == [1, 1]


async def test_a_stream_that_has_begun_is_never_tried_again(tmp_path: Path) -> None:
    async with pooled(tmp_path) as p:
        answer = await p.stand.client.post(CHAT, json=chat("break", stream=True))

    assert '"code":"engine_failed"' in answer.text
    assert sum(len(engine.bodies) for engine in p.engines) == 1
    assert p.pool.counts.retries == 0


async def test_an_error_of_the_model_is_not_tried_again(tmp_path: Path) -> None:
    async with pooled(tmp_path) as p:
        status = await p.ask("fail")

    assert status == 500
    assert sum(len(engine.bodies) for engine in p.engines) == 1


async def test_an_engine_that_keeps_failing_is_ejected(tmp_path: Path) -> None:
    async with pooled(tmp_path, hold=tmp_path / "hold", eject_after=2) as p:
        (tmp_path / "hold").touch()  # its probes fail too
        p.engines[0].spells.add("fail")
        statuses = [await p.ask() for _ in range(20)]
        states = {member.state for member in p.pool.members}
        (tmp_path / "hold").unlink()
        p.engines[0].spells.clear()
        await until(lambda: all(member.state == "serving" for member in p.pool.members))

    assert sorted(statuses) == [200] * 18 + [500] * 2
    assert states == {"serving", "ejected"}


async def test_a_silent_engine_is_found_out_without_any_traffic(tmp_path: Path) -> None:
    async with pooled(tmp_path, hold=tmp_path / "hold", probe_seconds=0.2) as p:
        (tmp_path / "hold").touch()
        await until(lambda: p.pool.members[0].state == "ejected")
        statuses = [await p.ask() for _ in range(4)]

    assert set(statuses) == {200}
    assert p.engines[0].bodies[-1:] != [chat("hi")]


async def test_nobody_is_refused_while_the_only_engine_restarts(tmp_path: Path) -> None:
    async with pooled(tmp_path) as p:
        urls = [member.url for member in p.pool.members]
        for url in urls:
            p.pool.set_up(url, is_up=False)
        asking = [asyncio.create_task(p.ask(stream=n % 2 == 0)) for n in range(50)]
        await until(lambda: p.pool.num_waiting == 50)
        waiting = (await p.stand.client.get("/readyz")).status_code
        p.pool.set_up(urls[0], is_up=True)
        statuses = await asyncio.gather(*asking)

    assert waiting == 503
    assert set(statuses) == {200}


async def test_a_client_that_leaves_the_queue_is_recorded_as_aborted(tmp_path: Path) -> None:
    async with pooled(tmp_path) as p:
        for member in p.pool.members:
            p.pool.set_up(member.url, is_up=False)
        asking = asyncio.create_task(p.ask())
        await until(lambda: p.pool.num_waiting == 1)
        asking.cancel()
        exchange = await asyncio.wait_for(p.stand.ended.get(), 5)

    assert exchange.status == "aborted"
    assert p.pool.num_waiting == 0


async def test_what_pools_do_can_be_read_from_the_metrics(tmp_path: Path) -> None:
    async with pooled(tmp_path) as p:
        p.stand.pools["teacher"] = p.pool
        p.pool.set_up(p.pool.members[0].url, is_up=False)
        p.engines[1].answer = "word " * 300
        await p.ask(stream=True)
        await asyncio.wait_for(p.stand.ended.get(), 5)
        text = (await p.stand.client.get("/metrics")).text

    where = 'deployment="teacher"'
    for line in (
        f"retort_engine_up{{{where}}} 1.0",
        f"retort_outstanding_requests{{{where}}} 0.0",
        f"retort_queued_requests{{{where}}} 0.0",
        f"retort_ejections_total{{{where}}} 0.0",
        f"retort_retries_total{{{where}}} 0.0",
        f'retort_inter_token_seconds_count{{{where},role="incumbent",route="support"}} 1.0',
        f'retort_overhead_seconds_count{{{where},role="incumbent",route="support"}} 1.0',
        "retort_capture_lag_seconds 0.0",
    ):
        assert line in text
