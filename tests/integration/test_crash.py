"""A real engine killed with its whole group under load: the route comes back by itself."""

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest

from capture.commit import Committer
from capture.config import load
from capture.engine import SERVER
from capture.log import Log, query
from capture.verify import verify
from tests.integration.test_rollout import Traffic, configure
from tests.support.killable import command, wait_for
from tests.support.retort import address, serving
from tests.support.tiny_model import make_tiny_model

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

CLIENTS = 4
PATIENCE_SECONDS = 300.0


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


async def test_a_killed_engine_comes_back_and_no_answered_exchange_is_lost(
    tmp_path: Path,
) -> None:
    model = make_tiny_model(tmp_path / "tiny")  # its own: other tests' engines live on
    config = configure(tmp_path, model)
    with serving(config):
        traffic = Traffic(address(config))
        clients = [asyncio.create_task(traffic.client(number)) for number in range(CLIENTS)]
        await answers(traffic, 200, 20)
        (before,) = engines(model)
        os.killpg(before, signal.SIGKILL)
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
    Committer(settings).commit()
    with Log(settings.log).connect() as connection:
        sql = "select count(*) as n from exchanges where status = 'completed'"
        (completed,) = query(connection, sql).to_pylist()
    assert completed["n"] == sum(status == 200 for status, _ in traffic.answers)
    assert verify(settings).problems == []
