"""The engine that answered before a rollout went live stays warm until another needs its place."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.test_relay import chat
from tests.gateway.test_shared_rollouts import CHAT, TEACHER, ask, bundle
from tests.support import fake_vllm
from tests.support.gateway_process import Gateway, configure, started

pytestmark = pytest.mark.timeout(120)
ROUTE = """
[gateway.routes.support.rollout]
steps = []
drain_seconds = 0.5
"""


async def post(gateway: Gateway, path: str, **body: str) -> httpx.Response:
    async with gateway.operator() as admin:
        return await admin.post(f"/admin/rollouts{path}", json=body)


async def make_live(gateway: Gateway, folder: Path) -> dict[str, Any]:
    """Let a bundle go live by an operator's word."""
    begun = await post(gateway, "", route="support", bundle=bundle(folder, "good"))
    live = await post(gateway, f"/{begun.json()['id']}/promote")
    assert live.json()["state"] == "live"
    return dict(live.json())


async def test_a_bundle_that_is_refused_leaves_the_way_back_open(tmp_path: Path) -> None:
    with started(configure(tmp_path, route=ROUTE)) as gateway:
        gateway.wait_ready()
        live = await make_live(gateway, tmp_path)
        (tmp_path / "empty").mkdir()
        refused = await post(gateway, "", route="support", bundle=str(tmp_path / "empty"))
        before = await ask(gateway, 3)
        back = await post(gateway, f"/{live['id']}/rollback", reason="worse than we thought")
        after = await ask(gateway, 3)

    assert refused.status_code == 400
    assert before == {live["candidate"]}
    assert back.json()["state"] == "rolled_back"
    assert after == {TEACHER}


async def test_there_is_no_way_back_to_an_engine_that_has_made_room(tmp_path: Path) -> None:
    bad = bundle(tmp_path, "bad", exits=True)
    with started(configure(tmp_path, route=ROUTE)) as gateway:
        gateway.wait_ready()
        live = await make_live(gateway, tmp_path)
        refused = await post(gateway, "", route="support", bundle=bad)
        back = await post(gateway, f"/{live['id']}/rollback", reason="worse than we thought")
        answered = await ask(gateway, 3)

    assert "out of memory" in refused.json()["error"]["message"]
    assert back.status_code == 409
    assert "no longer kept warm" in back.json()["error"]["message"]
    assert answered == {live["candidate"]}


async def test_nobody_goes_back_while_the_engine_makes_room(tmp_path: Path) -> None:
    other = bundle(tmp_path, "other")
    with started(configure(tmp_path, route=ROUTE)) as gateway:
        gateway.wait_ready()
        live = await make_live(gateway, tmp_path)
        gateway.hold.touch()  # engines take long to start
        starting = asyncio.create_task(post(gateway, "", route="support", bundle=other))
        async with asyncio.timeout(20):
            while TEACHER in await deployments(gateway):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        back = await post(gateway, f"/{live['id']}/rollback", reason="worse than we thought")
        answered = await ask(gateway, 3)
        gateway.hold.unlink()
        begun = await starting

    assert back.status_code == 409
    assert answered == {live["candidate"]}
    assert begun.json()["state"] == "shadow"


async def deployments(gateway: Gateway) -> str:
    async with gateway.operator() as admin:
        return (await admin.get("/admin/deployments")).text


async def test_a_stream_is_not_cut_off_to_make_room(tmp_path: Path) -> None:
    other, config = bundle(tmp_path, "other"), configure(tmp_path, route=ROUTE)
    fake_vllm.model(tmp_path / "model", answer=" ".join(["word"] * 120))
    with started(config) as gateway:
        gateway.wait_ready()
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            body = chat("slow", stream=True)
            async with client.stream("POST", CHAT, json=body) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                live = await make_live(gateway, tmp_path)
                refused = await post(gateway, "", route="support", bundle=other)
                rest = [line async for line in lines]
        begun = await post(gateway, "", route="support", bundle=other)
        answered = await ask(gateway, 3)

    assert answer.headers["x-retort-deployment"] == TEACHER
    assert "data: [DONE]" in rest
    assert refused.status_code == 409
    assert "is still answering" in refused.json()["error"]["message"]
    assert begun.json()["state"] == "shadow"
    assert answered == {live["candidate"]}
