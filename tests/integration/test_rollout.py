"""Rollouts on real engines under traffic: one that goes live, one that is rolled back."""

import asyncio
import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from capture.engine import free_port
from gateway.demo.weights import scramble
from quant.bundle import Lineage, publish
from tests.integration.conftest import ARGS, ONE_THREAD
from tests.support.retort import RETORT, address, serving

PAUSE_SECONDS = 0.4  # leaves the cores to the engine that is being started

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]


def configure(folder: Path, model: Path) -> Path:
    path = folder / "retort.toml"
    env = "\n".join(f'{key} = "{value}"' for key, value in ONE_THREAD.items())
    path.write_text(
        f"""\
[gateway]
listen = "127.0.0.1:{free_port()}"
admin_listen = "127.0.0.1:{free_port()}"

[gateway.routes.tiny]
model = "{model}"
[gateway.routes.tiny.pool]
queue_seconds = 300
[gateway.routes.tiny.engine]
args = {json.dumps(ARGS)}
[gateway.routes.tiny.engine.env]
{env}
[gateway.routes.tiny.rollout]
steps = [0.5]
[gateway.routes.tiny.guards]
error_rate_max = 0.2
agreement_min = 0.5
worst_slice_agreement_min = 0.3
duration_ratio_max = 100
ttft_ratio_max = 100
min_pairs = 40
min_canary = 20
""",
        encoding="utf-8",
    )
    return path


def bundle(model: Path, out: Path, *, broken: bool) -> Path:
    draft = out.with_suffix(".draft")
    if broken:
        scramble(model, draft, seed=1)
    else:
        shutil.copytree(model, draft)
    publish(draft, out, lineage=Lineage(), parameters=1, quality={})
    return out


@dataclass
class Traffic:
    """Unhurried clients that ask until they are told to stop, and what they got."""

    url: str
    answers: list[tuple[int, str]] = field(default_factory=list)
    stopped: bool = False

    async def client(self, number: int) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=300) as client:
            turn = 0
            while not self.stopped:
                turn += 1
                messages = [{"role": "user", "content": f"hello {number} {turn}"}]
                body = {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0}
                await asyncio.sleep(PAUSE_SECONDS)
                answer = await client.post("/v1/chat/completions", json=body)
                self.answers.append(
                    (answer.status_code, answer.headers.get("x-retort-deployment", "none"))
                )


async def rollout(config: Path, folder: Path) -> dict[str, object]:
    words = ["rollout", "start", str(folder), "--route", "tiny", "--wait", "--json"]
    process = await asyncio.create_subprocess_exec(
        *RETORT, *words, "-c", str(config), stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    result: dict[str, object] = json.loads(output)
    return result


async def test_a_good_bundle_goes_live_and_a_broken_one_does_not(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = configure(tmp_path, tiny_model)
    good = bundle(tiny_model, tmp_path / "good", broken=False)
    bad = bundle(tiny_model, tmp_path / "bad", broken=True)
    with serving(config):
        traffic = Traffic(address(config))
        clients = [asyncio.create_task(traffic.client(number)) for number in range(4)]
        first = await rollout(config, good)
        during_bad = len(traffic.answers)
        second = await rollout(config, bad)
        traffic.stopped = True
        await asyncio.gather(*clients)

    deployments = [deployment for _, deployment in traffic.answers]
    assert {status for status, _ in traffic.answers} == {200}
    assert first["state"] == "live"
    assert second["state"] == "rolled_back"
    assert deployments[0] == "tiny-teacher"
    assert deployments[-1] == first["candidate"]
    assert set(deployments[during_bad + 4 :]) == {first["candidate"]}
