"""Real engines, one at a time: a good bundle takes the incumbent's place, a bad one gives it back.

Also vLLM's own sleep endpoints, which a CPU build has too: there they pause and free nothing.
"""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from capture.engine import Engine, EngineSpec
from capture.host import SMALL_ENGINE_ENV
from gateway.errors import RolloutError
from gateway.sleep import ENV, check_sleeps, put_to_sleep, wake_up
from quant.bundle import Lineage, publish
from tests.integration.conftest import ARGS
from tests.integration.test_bad_bundles import with_nan
from tests.integration.test_rollout import PATIENCE_SECONDS, bundle, configure, engines
from tests.support.clients import steady
from tests.support.killable import Killable, wait_for
from tests.support.retort import RETORT, address, serving
from tests.support.tiny_model import make_tiny_model

PER_SECOND = 4.0
TEACHER = "tiny-teacher"

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(900)]


async def replace(config: Path, folder: Path) -> tuple[int, dict[str, object]]:
    """Roll out as an operator does, to the end; exit status and what was printed."""
    words = ["rollout", "start", str(folder), "--route", "tiny", "--replace", "--wait", "--json"]
    process = await asyncio.create_subprocess_exec(
        *RETORT, *words, "-c", str(config), stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    return process.returncode or 0, json.loads(output) if output else {}


def bad_bundle(folder: Path) -> Path:
    """One whose engine starts and computes no numbers."""
    draft = make_tiny_model(folder / "draft")
    with_nan(draft)
    publish(draft, folder / "bad", lineage=Lineage(), parameters=1, quality={})
    return folder / "bad"


@asynccontextmanager
async def counted(*models: Path) -> AsyncIterator[list[int]]:
    """Count the engines of some models again and again, for as long as the context lasts."""
    counts: list[int] = []

    async def count() -> None:
        while True:
            found = [await asyncio.to_thread(engines, model) for model in models]
            counts.append(sum(map(len, found)))
            await asyncio.sleep(0.2)

    counting = asyncio.create_task(count())
    yield counts
    counting.cancel()


async def metric(config: Path, outcome: str) -> int:
    async with httpx.AsyncClient(base_url=address(config)) as client:
        text = (await client.get("/metrics")).text
    name = f'retort_held_total{{outcome="{outcome}",route="tiny"}} '
    return int(float(text.split(name)[1].split("\n")[0])) if name in text else 0


async def test_one_engine_takes_anothers_place_and_back_and_nobody_is_refused(
    tmp_path: Path,
) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    config = configure(tmp_path, model)
    good, bad = bundle(model, tmp_path / "good", broken=False), bad_bundle(tmp_path)
    with serving(config):
        async with (
            steady(address(config), "tiny", PER_SECOND) as load,
            counted(model, good, bad) as counts,
        ):
            status, refused = await replace(config, bad)
            async with asyncio.timeout(PATIENCE_SECONDS):  # the teacher is on its way back
                while not (held_bad := await metric(config, "let_in")):  # noqa: ASYNC110  a process
                    await asyncio.sleep(0.2)
            good_status, ended = await replace(config, good)
            held = await metric(config, "let_in")
        failed = await metric(config, "refused")
    print(f"held {held}, refused {failed}, longest {load.longest_seconds:.1f} s")  # noqa: T201

    assert (status, refused) == (1, {})
    assert (good_status, ended["state"]) == (0, "live")
    assert load.statuses == {200}
    assert load.deployments == [TEACHER, ended["candidate"]]
    assert max(counts) == 1
    assert held > held_bad > 0
    assert failed == 0


async def test_a_gateway_killed_while_an_engine_starts_lets_it_take_the_place(
    tmp_path: Path,
) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    config = configure(tmp_path, model)
    good = bundle(model, tmp_path / "good", broken=False)
    process = Killable(
        [*RETORT, "serve", "-c", str(config)],
        address(config) + "/readyz",
        tmp_path / "serve.log",
        seconds=PATIENCE_SECONDS,
    )
    replacing = asyncio.create_task(replace(config, good))
    await asyncio.to_thread(wait_for, lambda: bool(engines(good)), PATIENCE_SECONDS)
    process.kill()
    await replacing
    await asyncio.to_thread(process.start)
    async with httpx.AsyncClient(base_url=address(config), timeout=60) as client:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 2}
        answer = await client.post("/v1/completions", json=body)
    running = (len(engines(model)), len(engines(good)))
    process.end()

    assert answer.headers["x-retort-deployment"].startswith("good-")
    assert running == (0, 1)


async def test_vllms_own_endpoints_are_spoken_and_a_cpu_is_known_to_free_nothing(
    tiny_model: Path, tmp_path: Path
) -> None:
    spec = EngineSpec(tiny_model, "tiny", tmp_path / "log", ARGS, {**SMALL_ENGINE_ENV, **ENV})
    body = {"model": "tiny", "prompt": "hello there", "max_tokens": 8, "temperature": 0}
    with Engine.start(spec) as engine:
        await asyncio.to_thread(engine.wait_ready)
        async with httpx.AsyncClient(base_url=engine.url, timeout=60) as client:
            before = (await client.post("/v1/completions", json=body)).json()
            with pytest.raises(RolloutError, match="would free no memory"):
                await check_sleeps(engine.url)
            await put_to_sleep(engine.url)
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/v1/completions", json=body, timeout=2)
            await put_to_sleep(engine.url)
            await wake_up(engine.url)
            await wake_up(engine.url)
            after = (await client.post("/v1/completions", json=body)).json()

    assert before["choices"][0]["text"] == after["choices"][0]["text"]
