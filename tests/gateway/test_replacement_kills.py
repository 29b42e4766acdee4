"""Gateways that are killed, several at once, or of several processes, while one engine replaces
another: fakes on a GPU with room for one model."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.gateway.test_replacement import (
    EXTERNAL,
    TEACHER,
    elsewhere,
    engine_log,
    last,
    route,
    start,
)
from tests.gateway.test_shared_rollouts import ask, bundle, show, until, until_answered_by
from tests.support.clients import steady
from tests.support.gateway_process import Gateway, configure, started
from tests.support.killable import Killable, wait_for
from tests.support.retort import RETORT, address

pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]


async def is_at(gateway: Gateway, folder: Path, state: str) -> None:
    """Bring a rollout into a state; the last it reaches is the one asked for."""
    replacing = asyncio.create_task(start(gateway, bundle(folder)))
    await asyncio.to_thread(wait_for, lambda: "process" in engine_log(gateway))
    if state == "replacing":
        replacing.cancel()  # its engine does not answer: there is the file that holds it
        return
    gateway.hold.unlink()
    number = (await replacing).json()["id"]
    async with gateway.operator() as admin:
        if state == "live":
            await admin.post(f"/admin/rollouts/{number}/promote", json={})
        if state == "rolled_back":  # and the incumbent not there yet
            gateway.hold.touch()
            await admin.post(f"/admin/rollouts/{number}/rollback", json={})


@pytest.mark.parametrize("is_elsewhere", [False, True])
@pytest.mark.parametrize("state", ["replacing", "watch", "live", "rolled_back"])
async def test_a_gateway_killed_at_any_step_goes_on_or_back(
    tmp_path: Path, *, state: str, is_elsewhere: bool
) -> None:
    with ExitStack() as stack:
        url = stack.enter_context(elsewhere(tmp_path)).url if is_elsewhere else None
        config = configure(tmp_path, route=route(), gpu=tmp_path / "gpu", url=url)
        ready = address(config) + "/readyz"
        process = Killable([*RETORT, "serve", "-c", str(config)], ready, tmp_path / "serve.log")
        gateway = Gateway(tmp_path, process._process)
        gateway.hold.touch()
        await is_at(gateway, tmp_path, state)
        process.kill()
        gateway.hold.unlink(missing_ok=True)
        process.start()
        shown = await last(gateway)
        answered = await ask(gateway, 20)
        process.end()

    incumbent = EXTERNAL if is_elsewhere else TEACHER
    is_back = state == "rolled_back"
    assert answered == {incumbent if is_back else shown["candidate"]}
    assert shown["state"] == ("watch" if state == "replacing" else state)


async def test_a_killed_gateway_whose_candidate_is_gone_goes_back(tmp_path: Path) -> None:
    config = configure(tmp_path, route=route(), gpu=tmp_path / "gpu")
    ready = address(config) + "/readyz"
    process = Killable([*RETORT, "serve", "-c", str(config)], ready, tmp_path / "serve.log")
    gateway = Gateway(tmp_path, process._process)
    folder = Path(bundle(tmp_path))
    number = (await start(gateway, str(folder))).json()["id"]
    process.kill()
    (folder / "config.json").unlink()
    process.start()
    shown = await show(gateway, number)
    answered = await ask(gateway, 5)
    process.end()

    assert answered == {TEACHER}
    assert shown["state"] == "rolled_back"
    assert "config.json" in shown["moves"][-1]["note"]


async def test_processes_of_one_gateway_hold_requests_together(tmp_path: Path) -> None:
    config = configure(tmp_path, route=route(), gpu=tmp_path / "gpu")
    with started(config, "--workers", "3") as gateway:
        gateway.wait_ready()
        async with steady(gateway.url, "support", 50) as load:
            begun = (await start(gateway, bundle(tmp_path))).json()
            await until([gateway], begun["id"], "live")
            await until_answered_by(gateway, begun["candidate"])
            async with gateway.operator() as admin:
                await admin.post(f"/admin/rollouts/{begun['id']}/rollback", json={})
            await until_answered_by(gateway, TEACHER)

    assert load.statuses == {200}
    assert load.deployments[0] == TEACHER
    assert set(load.deployments) == {TEACHER, begun["candidate"]}


async def test_gateways_of_one_store_replace_each_their_own(tmp_path: Path, url: str) -> None:
    with ExitStack() as stack:
        both = []
        for name in ("first", "second"):
            (folder := tmp_path / name).mkdir()
            store = f'state_url = "{url}"'
            config = configure(folder, gateway=store, route=route(), gpu=folder / "gpu")
            both.append(stack.enter_context(started(config)))
        for gateway in both:
            gateway.wait_ready()
        begun = (await start(both[0], bundle(tmp_path))).json()
        for gateway in both:
            await until_answered_by(gateway, begun["candidate"])
        async with both[1].operator() as admin:
            await admin.post(f"/admin/rollouts/{begun['id']}/rollback", json={})
        for gateway in both:
            await until_answered_by(gateway, TEACHER)
        shown = await show(both[0], begun["id"])

    assert [move["target"] for move in shown["moves"]] == ["watch", "rolled_back"]
