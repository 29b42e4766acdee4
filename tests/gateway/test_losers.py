"""Whoever has lost makes room, and clients are with a model that is up and has not been lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.driver import RolloutDriver
from gateway.errors import RolloutError, StateStoreError
from gateway.metrics import Metrics
from gateway.rollout import Rollout, promote, roll_back
from gateway.routing import Route
from gateway.state import StateStore
from tests.gateway.test_relay import stand
from tests.gateway.test_shared_rollouts import bundle
from tests.gateway.test_way_back import hanging, refusing
from tests.support.idle_fleet import IdleFleet

TEACHER = "support-external"
NOW = datetime(2026, 1, 2, tzinfo=UTC)


@dataclass
class Side:
    """One gateway of several on a store; the others only write into it."""

    driver: RolloutDriver
    fleet: IdleFleet
    store: StateStore
    bundle: str

    @property
    def route(self) -> Route:
        return self.driver.serving.table.routes["support"]

    @property
    def answering(self) -> str:
        """Whom clients are given to; empty while they wait."""
        return "" if self.route.is_held else self.route.incumbent.name

    async def start(self, *, replace: bool = False) -> Rollout:
        return await self.driver.start("support", self.bundle, replace=replace)

    async def live(self, *, replace: bool = False) -> Rollout:
        """Let a bundle go live."""
        rollout = await self.start(replace=replace)
        while rollout.state != "live":
            rollout = await self.driver.promote(rollout.id)
        await asyncio.sleep(0.3)  # until nobody judges it any more
        return rollout

    def others_roll_back(self, rollout: Rollout) -> None:
        saved = self.store.load(rollout.id)
        self.store.save(roll_back(saved.rollout, NOW, "others"), saved.version)

    async def until_up(self, *names: str) -> None:
        async with asyncio.timeout(5):
            while self.fleet.up != set(names):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@asynccontextmanager
async def side(folder: Path, *, is_up: bool = True) -> AsyncIterator[Side]:
    made, fleet = bundle(folder, "good"), IdleFleet(folder)
    store = StateStore(f"sqlite:///{folder / 'state.db'}")
    async with stand(folder) as s:
        driver = RolloutDriver(s.serving, fleet, store, Metrics.create(None))
        if is_up:
            driver.runner.assign("support", Route(fleet.put(TEACHER)))
        yield Side(driver, fleet, store, made)
        await driver.runner.close()


@pytest.mark.parametrize("replace", [True, False])
async def test_a_live_model_that_the_store_would_not_roll_back_makes_room(
    tmp_path: Path, replace: bool
) -> None:
    async with side(tmp_path) as a:
        live = await a.live(replace=replace)
        with refusing(tmp_path), pytest.raises(StateStoreError):
            await a.driver.roll_back(live.id, "bad")
        await a.until_up(TEACHER)
        answering = a.answering
        await a.driver._follow("support")

    assert answering == TEACHER
    assert a.store.load(live.id).rollout.state == "rolled_back"


async def test_the_incumbent_is_brought_back_while_the_store_hangs(tmp_path: Path) -> None:
    async with side(tmp_path) as a:
        watched = await a.start(replace=True)
        with hanging(tmp_path):
            a.driver.on_health(watched.candidate, "down")
            await a.until_up(TEACHER)
            answering = a.answering

    assert watched.state == "watch"
    assert answering == TEACHER


async def test_a_stream_of_a_model_that_others_have_rolled_back_keeps_nobody_waiting(
    tmp_path: Path,
) -> None:
    async with side(tmp_path) as a:
        live = await a.live()
        a.driver.runner.under_way.begin(live.candidate)
        a.others_roll_back(live)
        await asyncio.wait_for(a.driver._follow("support"), 5)
        answering, before = a.answering, set(a.fleet.up)
        a.driver.runner.under_way.end(live.candidate)
        await a.until_up(TEACHER)

    assert answering == TEACHER
    assert before == {TEACHER, live.candidate}


async def test_an_engine_that_clients_have_gone_back_to_does_not_make_room(tmp_path: Path) -> None:
    async with side(tmp_path) as a:
        live = await a.live()
        a.driver.runner.under_way.begin(TEACHER)  # so that it does not make room at once
        starting = asyncio.create_task(a.start())
        await asyncio.sleep(0.2)
        a.others_roll_back(live)
        await a.driver._follow("support")
        a.driver.runner.under_way.end(TEACHER)
        with pytest.raises(RolloutError, match="was rolled back meanwhile"):
            await starting
        await a.until_up(TEACHER)

    assert a.answering == TEACHER


async def test_nothing_is_tried_against_a_model_that_others_have_rolled_back(
    tmp_path: Path,
) -> None:
    async with side(tmp_path) as a:
        live = await a.live()
        a.fleet.may_start.clear()
        starting = asyncio.create_task(a.start())
        await asyncio.sleep(0.2)
        a.others_roll_back(live)
        a.fleet.may_start.set()
        begun = await starting
        for _ in range(2):
            await a.driver._follow("support")
        await a.until_up(TEACHER)

    rollout = a.store.load(begun.id).rollout
    assert a.answering == TEACHER
    assert rollout.history[-1].note == f"{live.candidate}, its incumbent, was rolled back"


async def test_a_rollout_that_goes_on_after_a_restart_is_not_ended_by_the_start_of_another(
    tmp_path: Path,
) -> None:
    async with side(tmp_path, is_up=False) as a:
        rollout = Rollout("r1", "support", a.bundle, "student", (0.5,), NOW)
        a.store.save(promote(rollout, NOW), 0)
        await a.driver.bring_up()
        a.fleet.may_start.clear()
        going = asyncio.create_task(a.driver.go_on())
        await asyncio.sleep(0.2)
        with pytest.raises(RolloutError, match="under way"):
            await a.start()
        a.fleet.may_start.set()
        await going
        up = set(a.fleet.up)

    assert a.store.load("r1").rollout.state == "canary"
    assert up == {TEACHER, "student"}


async def test_an_engine_that_finishes_its_streams_can_be_gone_back_to(
    tmp_path: Path,
) -> None:
    async with side(tmp_path) as a:
        rollout = Rollout("r1", "support", a.bundle, "student", (), NOW)
        a.driver.runner.under_way.begin(TEACHER)
        a.store.save(promote(rollout, NOW), 0)  # elsewhere, before our engine of it was up
        await a.driver._follow("support")
        first = a.answering
        a.others_roll_back(rollout)
        await a.driver._follow("support")
        a.driver.runner.under_way.end(TEACHER)
        await a.until_up(TEACHER)
        await asyncio.sleep(0.1)

    assert first == "student"
    assert a.answering == TEACHER
    assert a.fleet.kept == [TEACHER]
