"""``retort serve --workers``: several processes behind one address, and one truth about them."""

import asyncio
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from capture.account import read_counts
from capture.config import load
from capture.verify import verify
from gateway.channel import Channel, Handler
from gateway.collectors import add_up, exposition, worker_families
from gateway.config import RouteConfig
from gateway.errors import RateLimitError, WorkerLostError
from gateway.keys import Quota
from gateway.keystore import KeyStore, Used
from gateway.pool import Pool
from gateway.replica import Replica, describe
from gateway.routing import Deployment, Route, RouteTable
from gateway.secret_files import key_pepper
from quant.bundle import Lineage, publish
from tests.gateway.test_keys import made
from tests.gateway.test_relay import chat
from tests.gateway.test_serve import logged
from tests.support import fake_vllm
from tests.support.gateway_process import Gateway, configure, started
from tests.support.killable import wait_for

CHAT = "/v1/chat/completions"
NUM_WORKERS = 2
WORKERS = ("--workers", str(NUM_WORKERS))
QUICK = """
guards = {error_rate_max = 0.3, agreement_min = 0, worst_slice_agreement_min = 0, \
format_validity_min = 0, ttft_ratio_max = 100, duration_ratio_max = 100, slow_share_max = 1, \
min_pairs = 60, min_canary = 20}
rollout = {steps = [0.5], mirror_concurrency = 8}
"""


async def ask_on_new_connections(
    gateway: Gateway, number: int, word: str = "", **headers: str
) -> list[httpx.Response]:
    """Eight requests at a time, each on a connection and in a conversation of its own."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30, limits=limits) as client:

        async def ask(numbers: range) -> list[httpx.Response]:
            answers = []
            for n in numbers:
                body = chat(word or f"message {n}", stream=n % 2 == 0)
                answers.append(await client.post(CHAT, json=body, headers=headers))
            return answers

        asked = (ask(range(first, number, 8)) for first in range(8))
        return list(chain(*await asyncio.gather(*asked)))


def writers_with_rows(config: Path) -> int:
    """How many processes have relayed something."""
    counts = read_counts(load(config).spool).items()
    return sum(table == "exchanges" and bool(count.started) for (table, _), count in counts)


def children(gateway: Gateway) -> list[int]:
    """Workers of a gateway."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes()
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == gateway.process.pid and b"multiprocessing.spawn" in line:
            found.append(int(path.name))
    return found


def wait_for_workers(gateway: Gateway) -> None:
    """Until each has a spool of its own, so takes connections in a moment."""
    wait_for(lambda: len(children(gateway)) == NUM_WORKERS - 1)
    gateway.wait_ready()


async def test_processes_share_the_work_and_show_one_sum(tmp_path: Path) -> None:
    config = configure(tmp_path)
    with started(config, *WORKERS) as gateway:
        wait_for_workers(gateway)
        answers: list[httpx.Response] = []
        async with asyncio.timeout(60):
            while writers_with_rows(config) < NUM_WORKERS:
                answers += await ask_on_new_connections(gateway, 80)
        sums: set[tuple[object, ...]] = set()
        async with asyncio.timeout(30):
            while len(sums) < 2:  # asked of whichever process takes the connection
                async with httpx.AsyncClient(base_url=gateway.url) as client:
                    text = (await client.get("/metrics")).text
                found = re.findall(r'^retort_requests_total\{.*"completed"\} (.*)', text, re.M)
                sums.add((*found, text.count('retort_engine_up{deployment="support-teacher"} 1.0')))
                if found == [f"{len(answers)}.0"]:
                    break

    assert {answer.status_code for answer in answers} == {200}
    assert (f"{len(answers)}.0", 1) in sums
    ids = {row["exchange_id"] for row in logged(config, "from examples")}
    assert ids == {answer.headers["x-retort-exchange-id"] for answer in answers}
    assert verify(load(config)).problems == []


async def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    config = configure(tmp_path)
    with started(config, *WORKERS) as gateway:
        wait_for_workers(gateway)
        before = children(gateway)
        os.kill(before[0], signal.SIGKILL)
        await asyncio.to_thread(gateway.wait_for_log, "a worker has ended")
        answers = await ask_on_new_connections(gateway, 40)
        await asyncio.to_thread(wait_for, lambda: children(gateway) != [])
        after = children(gateway)

    assert {answer.status_code for answer in answers} == {200}
    assert len(after) == 1
    assert after != before


async def test_a_quota_holds_whichever_process_is_asked(tmp_path: Path) -> None:
    config = configure(tmp_path, gateway='auth = "keys"')
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    store = KeyStore(f"sqlite:///{run_dir / 'state.db'}")
    limited, text = made(quota=Quota(requests_per_minute=24), pepper=key_pepper(run_dir, None))
    free, other = made(pepper=key_pepper(run_dir, None))
    store.add(limited)
    store.add(free)
    with started(config, *WORKERS) as gateway:
        wait_for_workers(gateway)
        async with asyncio.timeout(60):
            while writers_with_rows(config) < NUM_WORKERS:
                await ask_on_new_connections(gateway, 80, authorization=f"Bearer {other}")
        begun = time.monotonic()
        answers = await ask_on_new_connections(gateway, 80, authorization=f"Bearer {text}")
        refilled = (time.monotonic() - begun) * 24 / 60
    used = store.keys()
    store.close()

    statuses = [answer.status_code for answer in answers]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 24 <= statuses.count(200) <= 24 + refilled
    assert statuses.count(200) + statuses.count(429) == 80
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(refused.headers["retry-after"]) >= 1
    assert used[limited].requests == statuses.count(200)
    assert used[free] != Used()


async def test_a_rollout_learns_from_all_of_them_and_moves_all_of_them(tmp_path: Path) -> None:
    draft = fake_vllm.model(tmp_path / "draft")
    publish(draft, tmp_path / "bundle", lineage=Lineage(), parameters=1, quality={})
    config = configure(tmp_path, route=QUICK)
    with started(config, *WORKERS) as gateway:
        wait_for_workers(gateway)
        async with asyncio.timeout(120), gateway.operator() as admin:
            while writers_with_rows(config) < NUM_WORKERS:
                await ask_on_new_connections(gateway, 80)
            body = {"route": "support", "bundle": str(tmp_path / "bundle")}
            rollout = (await admin.post("/admin/rollouts", json=body)).json()
            mirrored = await ask_on_new_connections(gateway, 40)
            async with asyncio.timeout(20):
                while (shown := await show(admin, rollout))["evidence"]["agreed"]["trials"] < 40:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            seen = list(mirrored)
            while shown["state"] != "live":
                seen += await ask_on_new_connections(gateway, 40)
                shown = await show(admin, rollout)
            after = await ask_on_new_connections(gateway, 80)
            back = await admin.post(f"/admin/rollouts/{rollout['id']}/rollback", json={})
            again = await ask_on_new_connections(gateway, 80)

    assert back.is_success, back.text
    answers = [*seen, *after, *again]
    assert {answer.status_code for answer in answers} == {200}
    assert answered(mirrored) == answered(again) == {"support-teacher"}
    assert answered(after) == {rollout["candidate"]}


async def show(admin: httpx.AsyncClient, rollout: dict[str, str]) -> Any:
    return (await admin.get(f"/admin/rollouts/{rollout['id']}")).json()


def answered(answers: list[httpx.Response]) -> set[str]:
    return {answer.headers["x-retort-deployment"] for answer in answers}


async def test_streams_of_every_process_end_before_the_gateway_does(tmp_path: Path) -> None:
    config = configure(tmp_path)
    with started(config, *WORKERS) as gateway:
        wait_for_workers(gateway)
        async with asyncio.timeout(60):
            while writers_with_rows(config) < NUM_WORKERS:
                await ask_on_new_connections(gateway, 80)
        asking = asyncio.create_task(ask_on_new_connections(gateway, 8, "slow"))
        await asyncio.sleep(0.5)
        gateway.process.send_signal(signal.SIGTERM)
        answers = await asking

    assert {answer.status_code for answer in answers} == {200}


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
