"""What the processes of a gateway say to one another, and what they make of it."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway.channel import Channel, Handler
from gateway.collectors import add_up, exposition, worker_families
from gateway.config import RouteConfig
from gateway.errors import BudgetError, RateLimitError, WorkerLostError
from gateway.gate import Gate
from gateway.keys import Quota
from gateway.pool import Pool
from gateway.replica import Replica, describe
from gateway.routing import Deployment, Route, RouteTable
from gateway.workers import _Running
from tests.gateway.test_keys import made


@asynccontextmanager
async def channels(
    ours: dict[str, Handler], theirs: dict[str, Handler]
) -> AsyncIterator[tuple[Channel, Channel, asyncio.Task[None]]]:
    ends = zip(socket.socketpair(), (ours, theirs), strict=True)
    one, other = [await Channel.opened(pair, handlers) for pair, handlers in ends]
    running = [asyncio.create_task(end.run()) for end in (one, other)]
    try:
        yield one, other, running[1]
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_channel_gives_back_answers_and_errors() -> None:
    async def double(number: int) -> int:
        return 2 * number

    async def refuse(_: object) -> None:
        raise RateLimitError("too many", 3.5)

    async def fail(_: object) -> None:
        raise ZeroDivisionError

    handlers: dict[str, Handler] = {"double": double, "refuse": refuse, "fail": fail}
    async with channels({}, handlers) as (one, _, theirs):
        assert await asyncio.gather(*(one.ask("double", n) for n in range(50))) == [
            2 * n for n in range(50)
        ]
        with pytest.raises(RateLimitError) as refused:
            await one.ask("refuse")
        with pytest.raises(Exception, match="fail failed in another process"):
            await one.ask("fail")
        hanging = asyncio.create_task(one.ask("double", 1))
        theirs.cancel()
        with pytest.raises(WorkerLostError):
            await hanging
        with pytest.raises(WorkerLostError):
            await one.ask("double", 1)
        one.tell("double", 1)

    assert refused.value.retry_after_seconds == 3.5


def test_counts_of_processes_add_up() -> None:
    def counted(number: int) -> CollectorRegistry:
        registry = CollectorRegistry()
        Counter("asked", "Requests.", ("route",), registry=registry).labels("a").inc(number)
        Gauge("retort_engine_up", "Engines.", registry=registry).set(1)
        Histogram("seconds", "Time.", buckets=(1, 2), registry=registry).observe(number)
        return registry

    first, second = counted(1), counted(3)
    text = exposition(first, worker_families(second)).decode()

    assert 'asked_total{route="a"} 4.0' in text
    assert "retort_engine_up 1.0" in text
    assert 'seconds_bucket{le="1.0"} 1.0' in text
    assert 'seconds_bucket{le="+Inf"} 2.0' in text
    assert "seconds_sum 4.0" in text
    assert [family.name for family in add_up([])] == []


async def test_a_replica_keeps_the_pools_that_stay() -> None:
    teacher = Deployment("teacher", Pool(["http://127.0.0.1:9"]), "m", "rev", capture=True)
    student = Deployment("student", Pool(["http://127.0.0.1:8"]), "s", None, capture=False)
    configs = {"support": RouteConfig(url="http://127.0.0.1:9")}
    replica = Replica()
    alone = replica.take(describe(RouteTable({"support": Route(teacher)})), configs)
    kept = alone.routes["support"].incumbent
    kept.pool.members[0].outstanding = 2

    teacher.pool.set_up("http://127.0.0.1:9", is_up=False)
    tried = describe(RouteTable({"support": Route(teacher, student, 0.25, 1.0)}))
    both = replica.take(tried, configs).routes["support"]
    assert both.incumbent is kept
    assert (both.incumbent.pool.members[0].state, both.canary_share) == ("down", 0.25)
    assert both.candidate is not None
    assert (both.candidate.name, both.candidate.capture) == ("student", False)

    after = replica.take(describe(RouteTable({"support": Route(student)})), configs)
    assert after.routes["support"].incumbent is both.candidate
    assert list(replica.pools()) == ["student"]
    await replica.close()


async def test_what_a_lost_worker_had_reserved_is_given_back() -> None:
    key, _ = made(quota=Quota(token_budget=100))
    gate = Gate()
    async with channels({}, {}) as (channel, _, _):
        worker = _Running(channel, gate)
        await worker.reserve((1, key, 60))
        await worker.reserve((2, key, 30))
        await worker.settle((2, key.id, 20, True))
        with pytest.raises(BudgetError):
            gate.limiter.reserve(key, 30, time.monotonic())
        worker.let_go()
        gate.limiter.reserve(key, 80, time.monotonic())
        await asyncio.sleep(0)  # both ends run before they are ended

    assert (gate.requests[key.id], gate.tokens[key.id]) == (1, 20)
