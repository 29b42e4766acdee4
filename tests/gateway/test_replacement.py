"""A bundle takes the incumbent's place where a GPU has room for one: fakes with one such GPU."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from capture.engine import Engine, EngineSpec
from gateway.sleep import ARGS, ENV
from tests.gateway.test_relay import chat
from tests.gateway.test_shared_rollouts import (
    CHAT,
    ask,
    bundle,
    show,
    until,
    until_answered_by,
)
from tests.support import fake_vllm
from tests.support.clients import steady
from tests.support.gateway_process import Gateway, configure, started
from tests.support.killable import wait_for

TEACHER, EXTERNAL = "support-teacher", "support-external"
SLEEPS = "[gateway.routes.support.engine]\nsleep_mode = true\n"
ROUTE = """
capture = "text"
[gateway.routes.support.pool]
queue_seconds = {queue_seconds}
queue = {queue}
[gateway.routes.support.rollout]
drain_seconds = {drain_seconds}
[gateway.routes.support.guards]
error_rate_max = 0.2
min_pairs = 60
"""

pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]


def route(
    *, sleeps: bool = False, queue_seconds: float = 60, queue: int = 1000, drain: float = 20
) -> str:
    limits = ROUTE.format(queue_seconds=queue_seconds, queue=queue, drain_seconds=drain)
    return limits + (SLEEPS if sleeps else "")


@contextmanager
def gateway(
    folder: Path, teacher: dict[str, Any] | None = None, **options: Any
) -> Iterator[Gateway]:
    """A gateway whose engines share a GPU."""
    config = configure(folder, route=route(**options), gpu=folder / "gpu")
    fake_vllm.model(folder / "model", **(teacher or {}))
    with started(config) as running:
        running.wait_ready()
        yield running


async def start(gateway: Gateway, folder: str) -> httpx.Response:
    body = {"route": "support", "bundle": folder, "replace": True}
    async with gateway.operator() as admin:
        return await admin.post("/admin/rollouts", json=body, timeout=90)


async def last(gateway: Gateway) -> dict[str, Any]:
    """The rollout begun last, with its history."""
    async with gateway.operator() as admin:
        data = (await admin.get("/admin/rollouts")).json()["data"]
    return await show(gateway, data[0]["id"])


async def metrics(gateway: Gateway) -> str:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        return (await client.get("/metrics")).text


def counted(text: str, outcome: str) -> int:
    name = f'retort_held_total{{outcome="{outcome}",route="support"}} '
    return int(float(text.split(name)[1].split("\n", maxsplit=1)[0])) if name in text else 0


@pytest.mark.parametrize("sleeps", [False, True])
async def test_a_good_bundle_takes_the_place_and_nobody_is_refused(
    tmp_path: Path, *, sleeps: bool
) -> None:
    with gateway(tmp_path, sleeps=sleeps) as running:
        await ask(running, 20)
        async with steady(running.url, "support", 50) as load:
            begun = await start(running, bundle(tmp_path))
            candidate = begun.json()["candidate"]
            await until([running], begun.json()["id"], "live")
        shown, told = await last(running), await metrics(running)

    assert begun.json()["state"] in {"watch", "live"}
    assert load.statuses == {200}
    assert load.deployments == [TEACHER, candidate]
    assert [move["target"] for move in shown["moves"]] == ["watch", "live"]
    assert "its engine has answered after" in shown["moves"][0]["note"]
    assert shown["moves"][1]["evidence"]["candidate_failed"]["trials"] >= 60
    assert shown["moves"][1]["evidence"]["incumbent_failed"]["trials"] >= 20
    assert counted(told, "let_in") >= 10
    assert counted(told, "refused") == 0


@pytest.mark.parametrize("sleeps", [False, True])
async def test_a_bundle_that_does_not_start_gives_the_place_back(
    tmp_path: Path, *, sleeps: bool
) -> None:
    with gateway(tmp_path, sleeps=sleeps) as running:
        engines = running.engines()
        async with steady(running.url, "support", 50) as load:
            refused = await start(running, bundle(tmp_path, exits=True))
            await until_answered_by(running, TEACHER)
        shown = await last(running)
        again = await start(running, bundle(tmp_path, "second"))
        started_since = len(running.engines()) - len(engines)

    assert refused.status_code == 502
    assert "out of memory" in refused.json()["error"]["message"]
    assert load.statuses == {200}
    assert load.deployments == [TEACHER]
    assert shown["state"] == "rolled_back"
    assert "ended before it was ready" in shown["moves"][0]["note"]
    assert started_since == (0 if sleeps else 1)  # one that sleeps is woken
    assert again.is_success


@pytest.mark.parametrize("sleeps", [False, True])
async def test_a_bundle_that_fails_is_rolled_back_by_what_clients_got(
    tmp_path: Path, *, sleeps: bool
) -> None:
    with gateway(tmp_path, sleeps=sleeps) as running:
        async with steady(running.url, "support", 50) as load:
            begun = (await start(running, bundle(tmp_path, spells=["fail"]))).json()
            await until([running], begun["id"], "rolled_back")
            await until_answered_by(running, TEACHER)
        shown = await last(running)

    assert load.deployments == [TEACHER, begun["candidate"], TEACHER]
    assert load.statuses == {200, 500}
    assert [move["target"] for move in shown["moves"]] == ["watch", "rolled_back"]
    # What fails is no JSON either; which of the two is seen first is a matter of moments.
    first = "breached: canary_error_rate"
    assert shown["moves"][1]["note"] in {first, f"{first}, canary_format"}


async def test_one_that_is_slow_is_rolled_back(tmp_path: Path) -> None:
    with gateway(tmp_path) as running:
        await ask(running, 40)
        slow = bundle(tmp_path, answer_seconds=0.2)
        begun = (await start(running, slow)).json()
        async with steady(running.url, "support", 20):
            await until([running], begun["id"], "rolled_back")
            await until_answered_by(running, TEACHER)
        shown = await last(running)

    assert "canary_slow_ttft" in shown["moves"][1]["note"]


async def test_whoever_waits_too_long_or_finds_no_place_is_told_to_come_again(
    tmp_path: Path,
) -> None:
    with gateway(tmp_path, queue_seconds=4, queue=2) as running:
        running.hold.touch()
        starting = asyncio.create_task(start(running, bundle(tmp_path)))
        await asyncio.to_thread(wait_for, lambda: "process" in engine_log(running))
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(CHAT, json=chat("impatient"), timeout=0.2)
            began = time.monotonic()
            waiting = [asyncio.create_task(client.post(CHAT, json=chat("a"))) for _ in range(2)]
            await asyncio.sleep(1)
            third = await client.post(CHAT, json=chat("b"))
            took_third = time.monotonic() - began
            first = await asyncio.gather(*waiting)
            took_first = time.monotonic() - began
            ready = await client.get("/readyz")
        running.hold.unlink()
        begun, told = await starting, await metrics(running)
        answered = await ask(running, 2)

    for answer in (*first, third):
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_not_ready"
        assert int(answer.headers["retry-after"]) > 0
    assert took_third < 3
    assert 3.9 < took_first < 8
    assert ready.json() == {"status": "waiting", "waiting": ["support"]}
    assert [counted(told, outcome) for outcome in ("left", "refused")] == [1, 3]
    assert answered == {begun.json()["candidate"]}


def engine_log(running: Gateway) -> str:
    """What candidates' engines have said."""
    found = (running.folder / "run" / "engines").glob("bundle-*.log")
    return "".join(path.read_text() for path in found)


@pytest.mark.parametrize(("drain", "status"), [(1.0, 409), (20.0, 201)])
async def test_a_stream_under_way_finishes_or_nothing_is_changed(
    tmp_path: Path, drain: float, status: int
) -> None:
    with gateway(tmp_path, {"answer": " ".join(["word"] * 30)}, drain=drain) as running:
        streaming = asyncio.create_task(stream(running))
        await asyncio.sleep(0.3)
        async with steady(running.url, "support", 50) as load:
            answer = await start(running, bundle(tmp_path))
        seen = await streaming
        shown = await last(running)

    assert seen.count("data: ") == 31
    assert seen.endswith("data: [DONE]\n\n")
    assert load.statuses == {200}
    assert answer.status_code == status
    if status == 409:
        assert "requests under way after 1 s" in answer.json()["error"]["message"]
        assert shown["state"] == "rolled_back"
        assert load.deployments == [TEACHER]


async def stream(running: Gateway) -> str:
    """Read a stream that takes about three seconds."""
    body = chat("slow", stream=True)
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
        return (await client.post(CHAT, json=body)).text


async def test_an_operator_can_end_it_at_every_step(tmp_path: Path) -> None:
    with gateway(tmp_path, sleeps=True) as running:
        running.hold.touch()
        starting = asyncio.create_task(start(running, bundle(tmp_path)))
        await asyncio.to_thread(wait_for, lambda: "process" in engine_log(running))
        number = (await last(running))["id"]
        async with running.operator() as admin:
            early = await admin.post(f"/admin/rollouts/{number}/promote", json={})
            back = await admin.post(f"/admin/rollouts/{number}/rollback", json={"reason": "no"})
            running.hold.unlink()
            refused = await starting
            await until_answered_by(running, TEACHER)
            ids = []
            for promotes in (0, 1):
                begun = (await start(running, bundle(tmp_path, f"again{promotes}"))).json()
                ids.append(begun["id"])
                for _ in range(promotes):
                    await admin.post(f"/admin/rollouts/{begun['id']}/promote", json={})
                    assert await ask(running, 3) == {begun["candidate"]}
                await admin.post(f"/admin/rollouts/{begun['id']}/rollback", json={})
                await until_answered_by(running, TEACHER)
        shown = [await show(running, number) for number in ids]
        engines = running.engines()

    assert early.status_code == 409
    assert back.json()["state"] == "rolled_back"
    assert refused.status_code in {409, 502}
    moves = [[move["target"] for move in each["moves"]] for each in shown]
    assert moves == [["watch", "rolled_back"], ["watch", "live", "rolled_back"]]
    assert len(engines) == 1


@contextmanager
def elsewhere(
    folder: Path, args: tuple[str, ...] = ARGS, *, endpoints: bool = True
) -> Iterator[Engine]:
    """An engine that somebody else runs, on the same GPU."""
    (home := folder / "elsewhere").mkdir()
    environment = fake_vllm.installed(home) | {"GPU": str(folder / "gpu")}
    environment |= ENV if endpoints else {}
    spec = EngineSpec(
        fake_vllm.model(home / "model"), "support", home / "engine.log", args, environment
    )
    with Engine.start(spec) as engine:
        engine.wait_ready()
        yield engine


async def test_an_engine_elsewhere_sleeps_and_is_woken(tmp_path: Path) -> None:
    with elsewhere(tmp_path) as engine:
        (home := tmp_path / "gateway").mkdir()
        config = configure(home, route=route(), gpu=tmp_path / "gpu", url=engine.url)
        with started(config) as running:
            running.wait_ready()
            async with steady(running.url, "support", 50) as load:
                begun = (await start(running, bundle(tmp_path))).json()
                await until([running], begun["id"], "live")
                async with httpx.AsyncClient(base_url=engine.url) as client:
                    sleeping = (await client.get("/is_sleeping")).json()
                async with running.operator() as admin:
                    await admin.post(f"/admin/rollouts/{begun['id']}/rollback", json={})
                await until_answered_by(running, EXTERNAL)

    assert sleeping == {"is_sleeping": True}
    assert load.statuses == {200}
    assert load.deployments == [EXTERNAL, begun["candidate"], EXTERNAL]


@pytest.mark.parametrize(
    ("args", "endpoints", "reason"),
    [(ARGS, False, "has no sleep mode"), ((), True, "would free no memory")],
)
async def test_an_engine_elsewhere_that_cannot_sleep_is_left_alone(
    tmp_path: Path, *, args: tuple[str, ...], endpoints: bool, reason: str
) -> None:
    with elsewhere(tmp_path, args, endpoints=endpoints) as engine:
        (home := tmp_path / "gateway").mkdir()
        config = configure(home, route=route(), url=engine.url)
        with started(config) as running:
            running.wait_ready()
            async with steady(running.url, "support", 50) as load:
                refused = await start(running, bundle(tmp_path))
            async with running.operator() as admin:
                rollouts = (await admin.get("/admin/rollouts")).json()["data"]
            told = await metrics(running)

    assert refused.status_code == 409
    assert reason in refused.json()["error"]["message"]
    assert rollouts == []
    assert load.deployments == [EXTERNAL]
    assert counted(told, "let_in") == 0
