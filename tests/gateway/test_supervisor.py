import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import pytest

from capture.engine import Engine, EngineSpec, free_port
from capture.errors import EngineError
from gateway.supervisor import LONGEST_PAUSE_SECONDS, pause_seconds, supervise
from tests.support import fake_vllm
from tests.support.killable import wait_for


def make_engine(folder: Path) -> Engine:
    env = fake_vllm.installed(folder)
    spec = EngineSpec(fake_vllm.model(folder / "model"), "m", folder / "engine.log", env=env)
    return Engine(spec, free_port())


def pids(engine: Engine) -> list[int]:
    return [int(line.split()[1]) for line in engine.spec.log_path.read_text().splitlines()]


def test_pauses_double_up_to_a_limit() -> None:
    pauses = [pause_seconds(starts) for starts in range(10)]

    assert pauses[:5] == [0, 1, 3, 7, 15]
    assert max(pauses) == pause_seconds(10_000) == LONGEST_PAUSE_SECONDS


async def test_a_killed_engine_serves_again_at_its_address_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway.supervisor")
    health: asyncio.Queue[str] = asyncio.Queue()
    with make_engine(tmp_path) as engine:
        await asyncio.to_thread(engine.launch)
        await asyncio.to_thread(engine.wait_ready, 30)
        watching = asyncio.create_task(supervise(engine, 30, health.put_nowait))
        os.killpg(pids(engine)[0], signal.SIGKILL)
        heard = [await asyncio.wait_for(health.get(), 30) for _ in range(2)]
        watching.cancel()
        await asyncio.to_thread(engine.wait_ready, 1)

    assert heard == ["down", "up"]
    first, second = pids(engine)
    assert f"process {first}\nstarting it again in 0 s" in caplog.text
    assert first != second


async def test_an_engine_that_does_not_come_up_is_tried_again_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    health: asyncio.Queue[str] = asyncio.Queue()
    with make_engine(tmp_path) as engine:
        await asyncio.to_thread(engine.launch)
        await asyncio.to_thread(engine.wait_ready, 30)
        (engine.spec.model / "config.json").unlink()
        watching = asyncio.create_task(supervise(engine, 30, health.put_nowait))
        os.killpg(pids(engine)[0], signal.SIGKILL)
        assert await asyncio.wait_for(health.get(), 30) == "down"
        await asyncio.to_thread(wait_for, lambda: "again in 1 s" in caplog.text)
        fake_vllm.model(engine.spec.model)
        assert await asyncio.wait_for(health.get(), 30) == "up"
        watching.cancel()

    assert "no config.json there" in caplog.text


def test_an_engine_that_was_stopped_is_not_launched_any_more(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    engine.stop()

    with pytest.raises(EngineError, match="has been stopped"):
        engine.launch()

    assert not engine.is_running
    assert not engine.spec.log_path.exists()
    assert sys.executable in engine.spec.command(1)
