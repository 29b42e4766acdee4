"""An operator's start beside the gateway's own looks into the state store."""

import asyncio
import threading
from pathlib import Path

import pytest

from capture.config import CaptureConfig
from gateway.driver import RolloutDriver
from gateway.fleet import Fleet
from gateway.metrics import Metrics
from gateway.pool import Pool
from gateway.routing import Deployment
from gateway.state import Saved, StateStore
from gateway.timeouts import Timeouts
from quant.bundle import BundleError
from tests.gateway.test_relay import stand


class SlowStore(StateStore):
    """Lets a look for what is under way take as long as ``may_answer`` says."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.is_asked, self.may_answer = threading.Event(), threading.Event()

    def active(self, route: str) -> Saved | None:
        self.is_asked.set()
        assert self.may_answer.wait(10)
        return super().active(route)


async def test_a_start_is_not_refused_because_the_gateway_looks_for_other_rollouts(
    tmp_path: Path,
) -> None:
    capture = CaptureConfig(log=tmp_path / "log", spool=tmp_path / "spool")
    store = SlowStore(f"sqlite:///{tmp_path / 'state.db'}")
    async with stand(tmp_path) as s:
        driver = RolloutDriver(s.serving, Fleet(tmp_path, capture), store, Metrics.create(None))
        store.may_answer.set()
        await driver.go_on()
        store.may_answer.clear()
        store.is_asked.clear()
        assert await asyncio.to_thread(store.is_asked.wait, 10)

        starting = asyncio.create_task(driver.start("support", str(tmp_path / "nothing")))
        await asyncio.sleep(0)
        store.may_answer.set()

        with pytest.raises(BundleError, match="nothing"):
            await starting
        await driver.runner.close()


async def test_an_engine_that_has_lost_may_finish_what_an_answer_may_take(tmp_path: Path) -> None:
    capture = CaptureConfig(log=tmp_path / "log", spool=tmp_path / "spool")
    store = StateStore(f"sqlite:///{tmp_path / 'state.db'}")
    async with stand(tmp_path) as s:
        routes, timeouts = s.serving.config.routes, Timeouts(total_seconds=1)
        routes["support"] = routes["support"].model_copy(update={"timeouts": timeouts})
        runner = RolloutDriver(
            s.serving, Fleet(tmp_path, capture), store, Metrics.create(None)
        ).runner
        student = Deployment("student", Pool(()), "student", None, capture=False)
        runner.under_way.begin(student.name)
        stopping = asyncio.create_task(runner.drain(student, "support"))
        await asyncio.sleep(0.5)
        is_waiting = not stopping.done()
        async with asyncio.timeout(10):
            await stopping

    assert is_waiting
