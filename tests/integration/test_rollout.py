"""Real engines under traffic, one gateway: an engine is killed with its whole group and comes back
by itself; a good bundle goes live; a broken one is rolled back."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from capture.config import CaptureConfig, load
from capture.engine import SERVER, free_port
from capture.host import SMALL_ENGINE_ENV
from capture.log import Log, query
from capture.verify import verify
from gateway.demo.weights import scramble
from quant.bundle import Lineage, publish
from tests.integration.conftest import ARGS
from tests.support.killable import command, wait_for
from tests.support.retort import RETORT, address, serving
from tests.support.tiny_model import make_tiny_model

CLIENTS = 4
PATIENCE_SECONDS = 300.0
PAUSE_SECONDS = 0.8  # leaves the cores to the engine that is being started

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(1800)]


def configure(folder: Path, model: Path) -> Path:
    path = folder / "retort.toml"
    env = "\n".join(f'{key} = "{value}"' for key, value in SMALL_ENGINE_ENV.items())
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


def engines(model: Path) -> list[int]:
    """Processes that lead the group of an engine of this model."""
    lines = {int(path.name): command(path) for path in Path("/proc").glob("[0-9]*")}
    return [
        pid for pid, line in lines.items() if line[1:3] == ["-m", SERVER] and str(model) in line
    ]


async def answers(traffic: Traffic, status: int, number: int) -> None:
    """Wait until so many more requests have ended with a status."""
    seen = len(traffic.answers)

    def has_come() -> bool:
        return sum(s == status for s, _ in traffic.answers[seen:]) >= number

    await asyncio.to_thread(wait_for, has_come, PATIENCE_SECONDS)


def num_completed(settings: CaptureConfig) -> int:
    """Completed exchanges in the log."""
    with Log(settings.log).connect() as connection:
        sql = "select count(*) as n from exchanges where status = 'completed'"
        (row,) = query(connection, sql).to_pylist()
    return int(row["n"])


def pairs(settings: CaptureConfig) -> dict[str, tuple[float, float]]:
    """Agreement and mean KL of each candidate's shadow answers in the log."""
    sql = (
        "select candidate, avg(agrees::int) as agreement, avg(kl_nats) as kl from pairs "
        "where kl_nats is not null group by candidate"
    )
    with Log(settings.log).connect() as connection:
        rows = query(connection, sql).to_pylist()
    return {row["candidate"]: (row["agreement"], row["kl"]) for row in rows}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A gateway's configuration, and the model that it serves: no other test's engine has that."""
    folder = tmp_path_factory.mktemp("rollout")
    model = make_tiny_model(folder / "tiny")
    config = configure(folder, model)
    with serving(config):
        yield config, model


async def test_a_killed_engine_comes_back_and_no_answered_exchange_is_lost(
    running: tuple[Path, Path],
) -> None:
    config, model = running
    traffic = Traffic(address(config))
    clients = [asyncio.create_task(traffic.client(number)) for number in range(CLIENTS)]
    await answers(traffic, 200, 20)
    (before,) = engines(model)
    os.killpg(before, signal.SIGKILL)
    await asyncio.sleep(1)
    await answers(traffic, 200, 20)
    traffic.stopped = True
    await asyncio.gather(*clients)
    (after,) = engines(model)
    async with httpx.AsyncClient(base_url=address(config)) as client:
        metrics = (await client.get("/metrics")).text

    assert after != before
    assert {status for status, _ in traffic.answers} == {200}  # what broke off was asked again
    assert 'retort_engine_crashes_total{deployment="tiny-teacher"} 1.0' in metrics
    settings = load(config)
    answered = len(traffic.answers)
    await asyncio.to_thread(wait_for, lambda: num_completed(settings) == answered, 60)
    assert verify(settings).problems == []


async def test_a_good_bundle_goes_live_and_a_broken_one_does_not(
    running: tuple[Path, Path], tmp_path: Path
) -> None:
    config, model = running
    good = bundle(model, tmp_path / "good", broken=False)
    bad = bundle(model, tmp_path / "bad", broken=True)
    traffic = Traffic(address(config))
    clients = [asyncio.create_task(traffic.client(number)) for number in range(CLIENTS)]
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
    settings = load(config)
    await asyncio.to_thread(wait_for, lambda: bool(pairs(settings)), 60)
    measured = pairs(settings)
    assert set(measured) == {first["candidate"]}  # beside the second nobody's tap was asked
    agreement, kl_nats = measured[str(first["candidate"])]
    assert agreement == 1.0
    assert kl_nats < 1e-3
