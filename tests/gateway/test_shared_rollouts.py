"""Gateways that share a state store agree on one rollout, and a killed one finds it again."""

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from quant.bundle import Lineage, publish
from tests.gateway.test_relay import chat
from tests.support import fake_vllm
from tests.support.gateway_process import Gateway, configure, started
from tests.support.killable import Killable
from tests.support.retort import RETORT, address

CHAT = "/v1/chat/completions"
ROUTE = """
[gateway.routes.support.rollout]
steps = [0.5]
[gateway.routes.support.guards]
error_rate_max = 0.2
agreement_min = 0.5
slow_share_max = 1
min_pairs = 60
min_canary = 20
"""
TEACHER = "support-teacher"

pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]


def bundle(folder: Path, name: str = "bundle", **behaviour: Any) -> str:
    draft = fake_vllm.model(folder / f"{name}-draft", **behaviour)
    publish(draft, folder / name, lineage=Lineage(), parameters=1, quality={})
    return str(folder / name)


async def ask(gateway: Gateway, number: int) -> set[str]:
    """Ask in as many conversations; who has answered."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        asked = [client.post(CHAT, json=chat(f"{n}", temperature=0)) for n in range(number)]
        answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} <= {200}
    return {answer.headers["x-retort-deployment"] for answer in answers}


async def show(gateway: Gateway, number: str) -> dict[str, Any]:
    async with gateway.operator() as admin:
        answer = await admin.get(f"/admin/rollouts/{number}")
        moves = await admin.get(f"/admin/rollouts/{number}/history")
    return {**answer.json(), "moves": moves.json().get("data")}


async def until(gateways: list[Gateway], number: str, state: str, asking: int = 0) -> None:
    """Wait until each has a rollout in a state, with some traffic meanwhile."""
    async with asyncio.timeout(60):
        for gateway in gateways:
            while (await show(gateway, number)).get("state") != state:
                for each in gateways:
                    await ask(each, asking)
                await asyncio.sleep(0.2)


async def until_tried(gateway: Gateway) -> None:
    """Wait until a gateway has a candidate of its own."""
    async with gateway.operator() as admin, asyncio.timeout(60):
        while "candidate" not in (await admin.get("/admin/deployments")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def until_answered_by(gateway: Gateway, deployment: str) -> None:
    async with asyncio.timeout(30):
        while await ask(gateway, 10) != {deployment}:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def start(gateway: Gateway, folder: str) -> dict[str, Any]:
    async with gateway.operator() as admin:
        answer = await admin.post("/admin/rollouts", json={"route": "support", "bundle": folder})
    assert answer.is_success, answer.text
    return dict(answer.json())


def two(stack: ExitStack, folder: Path, url: str) -> list[Gateway]:
    """Gateways on one state store."""
    running = []
    for name in ("first", "second"):
        (folder / name).mkdir()
        config = configure(folder / name, gateway=f'state_url = "{url}"', route=ROUTE)
        running.append(stack.enter_context(started(config)))
    for gateway in running:
        gateway.wait_ready()
    return running


async def test_two_gateways_add_up_what_they_see_and_move_together(
    tmp_path: Path, url: str
) -> None:
    with ExitStack() as stack:
        a, b = both = two(stack, tmp_path, url)
        rollout = await start(a, bundle(tmp_path))
        number, candidate = rollout["id"], rollout["candidate"]
        await until_tried(b)
        seen = [await ask(gateway, 40) for gateway in both]  # neither has 60 pairs alone
        await until(both, number, "canary")
        canary = [await ask(gateway, 40) for gateway in both]
        await until(both, number, "live", asking=10)
        for gateway in both:
            await until_answered_by(gateway, candidate)
        shown = [await show(gateway, number) for gateway in both]
        async with b.operator() as admin:
            back = await admin.post(f"/admin/rollouts/{number}/rollback", json={"reason": "no"})
        for gateway in both:
            await until_answered_by(gateway, TEACHER)

    assert seen == [{TEACHER}, {TEACHER}]
    assert canary == [{TEACHER, candidate}] * 2
    assert shown[0]["moves"] == shown[1]["moves"]
    assert [move["target"] for move in shown[0]["moves"]] == ["canary", "live"]
    assert shown[0]["moves"][0]["evidence"]["agreed"]["trials"] >= 60
    assert back.is_success


async def test_what_one_rolls_back_the_other_rolls_back(tmp_path: Path, url: str) -> None:
    with ExitStack() as stack:
        a, b = both = two(stack, tmp_path, url)
        rollout = await start(a, bundle(tmp_path, answer="something else"))
        await until_tried(b)
        await ask(b, 40)
        await until(both, rollout["id"], "rolled_back")
        async with a.operator() as admin:
            answer = await admin.post(
                "/admin/rollouts", json={"route": "support", "bundle": str(tmp_path / "bundle")}
            )
        await until_tried(b)
        async with b.operator() as admin:
            second = await admin.post(
                "/admin/rollouts", json={"route": "support", "bundle": str(tmp_path / "bundle")}
            )

    assert answer.is_success
    assert (second.status_code, second.json()["error"]["code"]) == (409, "rollout_conflict")


async def test_one_dies_and_the_other_goes_on(tmp_path: Path, url: str) -> None:
    with ExitStack() as stack:
        a_config = configure(tmp_path, gateway=f'state_url = "{url}"', route=ROUTE)
        a = Killable(
            [*RETORT, "serve", "-c", str(a_config)],
            address(a_config) + "/readyz",
            tmp_path / "a.log",
        )
        (tmp_path / "second").mkdir()
        b_config = configure(tmp_path / "second", gateway=f'state_url = "{url}"', route=ROUTE)
        b = stack.enter_context(started(b_config))
        b.wait_ready()
        rollout = await start(Gateway(tmp_path, a._process), bundle(tmp_path))
        await until_tried(b)
        a.kill()
        await until([b], rollout["id"], "canary", asking=20)
        await until([b], rollout["id"], "live", asking=20)
        await asyncio.to_thread(a.start)
        answered = await ask(Gateway(tmp_path, a._process), 10)
        a.end()

    assert answered == {rollout["candidate"]}


@pytest.mark.parametrize("state", ["shadow", "canary", "live", "rolled_back"])
async def test_a_gateway_killed_at_any_step_is_there_again(
    tmp_path: Path, url: str, state: str
) -> None:
    config = configure(tmp_path, gateway=f'state_url = "{url}"', route=ROUTE)
    ready = address(config) + "/readyz"
    process = Killable([*RETORT, "serve", "-c", str(config)], ready, tmp_path / "serve.log")
    gateway = Gateway(tmp_path, process._process)
    rollout = await start(gateway, bundle(tmp_path))
    moves = {"shadow": [], "canary": ["promote"], "live": ["promote"] * 2}.get(state, ["rollback"])
    async with gateway.operator() as admin:
        for move in moves:
            answer = await admin.post(f"/admin/rollouts/{rollout['id']}/{move}", json={})
            assert answer.json()["state"]
    process.kill()
    process.start()
    if state in {"shadow", "canary"}:
        await until_tried(gateway)
    shown = await show(gateway, rollout["id"])
    answered = await ask(gateway, 40)
    process.end()

    assert shown["state"] == state
    expected = {
        "canary": {TEACHER, rollout["candidate"]},
        "live": {rollout["candidate"]},
    }
    assert answered == expected.get(state, {TEACHER})
