"""vLLM's sleep endpoints over a socket; the real ones are asked in ``tests/integration``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from capture.engine import free_port
from capture.errors import EngineError
from gateway.errors import RolloutError
from gateway.sleep import check_sleeps, put_to_sleep, wake_up
from tests.support.fake_engine import FakeEngine
from tests.support.fake_sleep import Gpu, Sleep
from tests.support.serving import served


@asynccontextmanager
async def engine(sleep: Sleep) -> AsyncIterator[str]:
    async with served(FakeEngine(sleep=sleep).app) as url:
        yield url


async def test_an_engine_falls_asleep_and_wakes_however_often_it_is_asked() -> None:
    sleep = Sleep(has_endpoints=True, has_mode=True)
    async with engine(sleep) as url:
        await check_sleeps(url)
        await put_to_sleep(url)
        await put_to_sleep(url)
        slept = not sleep.awake.is_set()
        await wake_up(url)
        await wake_up(url)

    assert slept
    assert sleep.awake.is_set()


async def test_one_that_cannot_sleep_is_known_before_anything_is_changed() -> None:
    sleep = Sleep(has_endpoints=True)
    async with engine(sleep) as url:
        with pytest.raises(RolloutError, match="runs without --enable-sleep-mode"):
            await check_sleeps(url)
    assert sleep.awake.is_set()
    async with engine(Sleep()) as url:
        with pytest.raises(RolloutError, match=r"has no sleep mode.*VLLM_SERVER_DEV_MODE=1"):
            await check_sleeps(url)
    with pytest.raises(RolloutError, match="has no sleep mode"):
        await check_sleeps(f"http://127.0.0.1:{free_port()}")


async def test_one_that_has_ended_holds_no_memory_and_cannot_be_woken() -> None:
    url = f"http://127.0.0.1:{free_port()}"

    await put_to_sleep(url)

    with pytest.raises(EngineError, match="does not wake"):
        await wake_up(url)


async def test_one_that_finds_its_memory_taken_does_not_wake(tmp_path: Path) -> None:
    gpu, other = Gpu(tmp_path / "gpu"), Gpu(tmp_path / "gpu")
    gpu.take()
    async with engine(Sleep(has_endpoints=True, has_mode=True, gpu=gpu)) as url:
        await put_to_sleep(url)
        assert other.take()
        with pytest.raises(EngineError, match="CUDA out of memory"):
            await wake_up(url)
        other.free()
        await wake_up(url)
