"""``retort serve`` as a process, before engines that are fake: crashes, signals, reloads."""

import asyncio
import os
import re
import signal
from datetime import UTC, datetime
from pathlib import Path

import httpx
import openai
import pytest
from openai import AsyncStream

from capture.commit import Committer
from capture.config import load
from capture.log import Log, query
from capture.verify import verify
from gateway.rollout import Rollout
from gateway.state import StateStore
from quant.bundle import Lineage, publish
from tests.gateway.test_relay import chat
from tests.support import fake_vllm
from tests.support.gateway_process import Gateway, configure, processes, started
from tests.support.killable import wait_for
from tests.support.retort import is_ready

CHAT = "/v1/chat/completions"


async def test_an_engine_that_crashes_is_started_again_before_traffic_returns(
    tmp_path: Path,
) -> None:
    with started(configure(tmp_path, route="pool.queue_seconds = 0.2")) as gateway:
        gateway.wait_ready()
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            cut = await broken_off(gateway)
            down = await client.post(CHAT, json=chat("hi"))
            not_ready = await client.get("/readyz")
            metrics = [(await client.get("/metrics")).text]
            gateway.hold.unlink()
            await asyncio.to_thread(gateway.wait_ready)
            again = await client.post(CHAT, json=chat("hi"))
            metrics.append((await client.get("/metrics")).text)

    assert isinstance(cut, openai.APIError)
    assert "broke off" in str(cut)
    assert (down.status_code, down.json()["error"]["code"]) == (503, "engine_not_ready")
    assert int(down.headers["retry-after"]) > 0
    assert (not_ready.status_code, not_ready.json()["waiting"]) == (503, ["support"])
    assert again.status_code == 200
    assert len(gateway.engines()) == 2
    assert re.search(r"ended; end of .*:\n +.*process \d+", gateway.log)
    for text, is_up in zip(metrics, (0.0, 1.0), strict=True):
        assert f'retort_engine_up{{deployment="support-teacher"}} {is_up}' in text
        assert 'retort_engine_crashes_total{deployment="support-teacher"} 1.0' in text


async def test_a_crash_loses_nothing_that_was_captured_and_refuses_nobody(tmp_path: Path) -> None:
    config = configure(tmp_path)
    with started(config) as gateway:
        gateway.wait_ready()
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            before = await client.post(CHAT, json=chat("hi"))
            await broken_off(gateway)
            waiting = [asyncio.create_task(client.post(CHAT, json=chat("hi"))) for _ in range(8)]
            await asyncio.sleep(0.5)
            assert not any(task.done() for task in waiting)
            gateway.hold.unlink()
            answers = [before, *await asyncio.gather(*waiting)]

    assert {answer.status_code for answer in answers} == {200}
    ids = {answer.headers["x-retort-exchange-id"] for answer in answers}
    assert ids <= {row["exchange_id"] for row in logged(config, "from examples")}
    ends = logged(config, "select status, error_type from exchanges where status = 'failed'")
    assert [row["error_type"] for row in ends] == ["engine_failed"]
    assert verify(load(config)).problems == []


def logged(config: Path, sql: str) -> list[dict[str, object]]:
    """What the log holds once everything is committed."""
    settings = load(config)
    Committer(settings).commit()
    with Log(settings.log).connect() as connection:
        rows: list[dict[str, object]] = query(connection, sql).to_pylist()
    return rows


async def broken_off(gateway: Gateway) -> Exception:
    """Kill the engine in the middle of a stream, and see what the official client says."""
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="k") as client:
        stream = await client.chat.completions.create(
            model="support", messages=[{"role": "user", "content": "pause"}], stream=True
        )
        assert isinstance(stream, AsyncStream)
        await anext(stream)
        gateway.hold.touch()
        os.killpg(gateway.engines()[-1], signal.SIGKILL)
        with pytest.raises(openai.OpenAIError) as caught:
            await anext(stream)
        await asyncio.to_thread(gateway.wait_for_log, "starting it again")
        return caught.value


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_while_its_engines_start_and_starts_again(
    tmp_path: Path, number: signal.Signals
) -> None:
    config = configure(tmp_path)
    (tmp_path / "hold").touch()
    with started(config) as gateway:
        wait_for(lambda: bool(gateway.engines()))
        os.killpg(gateway.process.pid, number)
        assert gateway.process.wait(20) == 0
        assert processes(tmp_path) == []
    (tmp_path / "hold").unlink()
    with started(config) as gateway:
        gateway.wait_ready()


async def test_ctrl_c_lets_an_answer_finish_and_a_second_one_does_not(tmp_path: Path) -> None:
    with started(configure(tmp_path)) as gateway:
        gateway.wait_ready()
        async with (
            httpx.AsyncClient(base_url=gateway.url, timeout=30) as client,
            client.stream("POST", CHAT, json=chat("pause", stream=True)) as answer,
        ):
            lines = answer.aiter_lines()
            await anext(lines)
            gateway.press_ctrl_c()
            await asyncio.to_thread(gateway.wait_for_log, "ending")
            assert gateway.process.poll() is None
            gateway.press_ctrl_c()
            with pytest.raises(httpx.TransportError):
                [line async for line in lines]
        assert await asyncio.to_thread(gateway.process.wait, 15) == 0
        assert processes(tmp_path) == []


async def test_sighup_takes_what_can_change_and_names_what_cannot(tmp_path: Path) -> None:
    config = configure(tmp_path)
    text = config.read_text()
    with started(config) as gateway:
        gateway.wait_ready()
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            config.write_text(text + 'mas = 0.9\n[gateway.routes.support]\ncapture = "off"\n')
            gateway.process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(gateway.wait_for_log, "nothing was changed")
            before = await client.post(CHAT, json=chat("hi"))
            changed = text.replace("\nmodel =", '\ncapture = "text"\nmodel =') + "k_max = 7\n"
            config.write_text(changed)
            gateway.process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(gateway.wait_for_log, "need a restart")
            after = await client.post(CHAT, json=chat("hi"))

    assert "changed: [gateway].routes.support.capture\n" in gateway.log
    assert "need a restart: [capture].k_max\n" in gateway.log
    rows = logged(config, "select exchange_id, capture from exchanges")
    kept = {row["exchange_id"]: row["capture"] for row in rows}
    ids = [answer.headers["x-retort-exchange-id"] for answer in (before, after)]
    assert [kept[number] for number in ids] == ["tap", "off"]


async def test_a_candidate_whose_engine_ends_is_rolled_back(tmp_path: Path) -> None:
    draft = fake_vllm.model(tmp_path / "draft")
    publish(draft, tmp_path / "bundle", lineage=Lineage(), parameters=1, quality={})
    with started(configure(tmp_path)) as gateway:
        gateway.wait_ready()
        async with gateway.operator() as admin:
            body = {"route": "support", "bundle": str(tmp_path / "bundle")}
            rollout = (await admin.post("/admin/rollouts", json=body)).json()
            (candidate,) = gateway.engines(rollout["candidate"])
            os.killpg(candidate, signal.SIGKILL)
            await asyncio.to_thread(gateway.wait_for_log, "shadow -> rolled_back")
            moves = (await admin.get(f"/admin/rollouts/{rollout['id']}/history")).json()["data"]
            ready = await asyncio.to_thread(is_ready, gateway.config)

    assert (rollout["state"], ready) == ("shadow", True)
    assert [(move["by"], move["note"]) for move in moves] == [
        ("guards", "the candidate's engine ended")
    ]


async def test_it_ends_while_an_operator_waits_for_a_candidate(tmp_path: Path) -> None:
    draft = fake_vllm.model(tmp_path / "draft")
    publish(draft, tmp_path / "bundle", lineage=Lineage(), parameters=1, quality={})
    with started(configure(tmp_path)) as gateway:
        gateway.wait_ready()
        gateway.hold.touch()
        async with gateway.operator() as admin:
            body = {"route": "support", "bundle": str(tmp_path / "bundle")}
            asking = asyncio.create_task(admin.post("/admin/rollouts", json=body))
            engines = tmp_path / "run" / "engines"
            await asyncio.to_thread(wait_for, lambda: len(list(engines.iterdir())) == 2)
            gateway.press_ctrl_c()
            refused = await asking

    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "rollout_conflict")


def test_a_rollout_whose_bundle_has_gone_does_not_keep_the_gateway_from_starting(
    tmp_path: Path,
) -> None:
    config = configure(tmp_path)
    (tmp_path / "run").mkdir()
    store = StateStore(f"sqlite:///{tmp_path}/run/state.db")
    gone = str(tmp_path / "gone")
    store.save(Rollout("r1", "support", gone, "gone-1", (0.5,), datetime.now(UTC)), 0)

    with started(config) as gateway:
        gateway.wait_ready()
        gateway.wait_for_log("rollout r1 is rolled back")
        wait_for(lambda: store.load("r1").rollout.state == "rolled_back")

    (move,) = store.load("r1").rollout.history
    store.close()
    assert move.note == "the candidate did not start"
