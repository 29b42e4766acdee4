"""``retort serve --workers``: several processes behind one address, and one truth about them."""

import asyncio
import os
import re
import signal
import time
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest

from capture.account import read_counts
from capture.config import load
from capture.verify import verify
from gateway.keys import Quota
from gateway.keystore import KeyStore, Used
from gateway.secret_files import key_pepper
from quant.bundle import Lineage, publish
from tests.gateway.test_keys import made
from tests.gateway.test_relay import chat
from tests.gateway.test_serve import logged
from tests.support import fake_vllm
from tests.support.gateway_process import Gateway, configure, started
from tests.support.killable import wait_for

pytestmark = pytest.mark.long
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
                body = chat(word or f"message {n}", stream=n % 2 == 0, temperature=0)
                answers.append(await client.post(CHAT, json=body, headers=headers))
            return answers

        asked = (ask(range(first, number, 8)) for first in range(8))
        return list(chain(*await asyncio.gather(*asked)))


def writers(config: Path) -> set[str]:
    """Who has relayed something: a name per process."""
    counts = read_counts(load(config).spool).items()
    return {name for (table, name), count in counts if table == "exchanges" and count.started}


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
            while len(writers(config)) < NUM_WORKERS:
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
            while len(writers(config)) < NUM_WORKERS:
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
            while len(writers(config)) < NUM_WORKERS:
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
            while len(writers(config)) < NUM_WORKERS:
                await ask_on_new_connections(gateway, 80)
        asking = asyncio.create_task(ask_on_new_connections(gateway, 8, "slow"))
        await asyncio.sleep(0.5)
        gateway.process.send_signal(signal.SIGTERM)
        answers = await asking

    assert {answer.status_code for answer in answers} == {200}


async def test_a_worker_that_is_started_later_knows_what_was_reloaded(tmp_path: Path) -> None:
    config = configure(tmp_path, gateway="max_body_bytes = 100_000")
    with started(config, *WORKERS) as gateway:
        wait_for_workers(gateway)
        config.write_text(config.read_text().replace("100_000", "1_000"))
        gateway.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(gateway.wait_for_log, "changed: [gateway].max_body_bytes")
        async with asyncio.timeout(40):
            while len(writers(config)) < NUM_WORKERS:
                await ask_on_new_connections(gateway, 40)
        before = writers(config)
        os.kill(children(gateway)[0], signal.SIGKILL)
        async with asyncio.timeout(40):
            while not writers(config) - before:  # the new one has a spool, and relays
                await ask_on_new_connections(gateway, 40)
        answers = await ask_on_new_connections(gateway, 160, "x" * 2_000)

    assert {answer.status_code for answer in answers} == {413}
