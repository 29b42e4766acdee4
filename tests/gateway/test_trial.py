"""Trials of one rollout in several gateways, on one state store."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson

from gateway.config import RouteConfig
from gateway.evidence import Count
from gateway.exchange import Exchange, Request
from gateway.pool import Pool
from gateway.rollout import Rollout, begin_watch, promote, roll_back
from gateway.routing import Deployment, Role, Route
from gateway.state import StateStore
from gateway.trial import Trial
from gateway.trials import is_over
from tests.gateway.test_mirror import mirrored
from tests.support.fake_engine import FakeEngine

NOW = datetime(2026, 1, 2, tzinfo=UTC)
CONFIG = RouteConfig.model_validate(
    {
        "url": "http://127.0.0.1:1",
        "rollout": {"mirror_share": 0.0},
        "guards": {"min_canary": 20, "error_rate_max": 0.3},
    }
)
MIRRORING = CONFIG.model_copy(
    update={"rollout": CONFIG.rollout.model_copy(update={"mirror_share": 1.0})}
)
SHADOW = Rollout("r1", "support", "b", "student", (0.5,), NOW)
REPLACING = Rollout("r1", "support", "b", "student", (), NOW, "replacing")
CANARY = promote(SHADOW, NOW)


@dataclass
class Side:
    """One gateway's trial, and whom its route gives requests to."""

    trial: Trial
    routes: list[Route]
    engine: FakeEngine

    async def until_paired(self, number: int) -> None:
        """Wait until so many mirrored requests have been compared."""
        async with asyncio.timeout(20):
            while self.trial.rollout.evidence.failed.trials < number:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def fail(self, number: int) -> None:
        """The candidate answers so many clients with an error of its own."""
        self.answer(number, status=500)

    def answer(self, number: int, role: Role = "candidate", status: int = 200) -> None:
        """The candidate, or the incumbent, answers so many clients."""
        by = self.trial.candidate if role == "candidate" else self.trial.incumbent
        messages = [{"role": "user", "content": "hello"}]
        body: dict[str, object] = {"model": "support", "messages": messages, "temperature": 0}
        for _ in range(number):
            request = Request(
                *("/v1/chat/completions", "support", orjson.dumps(body), body),
                stream=False,
                conversation="c",
            )
            exchange = Exchange("x", request, by, role, http_status=status)
            exchange.asked = exchange.started
            exchange.take(b'{"choices": [{"index": 0, "message": {"content": "yes"}}]}')
            self.trial.observe(exchange)


@asynccontextmanager
async def sides(
    folder: Path, number: int = 2, rollout: Rollout = CANARY, config: RouteConfig = CONFIG
) -> AsyncIterator[list[Side]]:
    url = f"sqlite:///{folder / 'state.db'}"
    store = StateStore(url)
    store.save(rollout, 0)
    incumbent, candidate = (
        Deployment(name, Pool(()), name, None, capture=False) for name in ("teacher", "student")
    )
    async with mirrored(folder / "spool") as m:
        made = []
        for _ in range(number):
            routes: list[Route] = []
            args = (store.load("r1"), (incumbent, candidate), StateStore(url), config)
            made.append(Side(Trial(*args, routes.append, m.mirror), routes, m.engine))
        yield made


async def test_what_each_has_seen_is_added_up(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        a.answer(15)
        b.answer(4)
        await a.trial.save()
        await b.trial.save()
        b.answer(3)
        for side in (a, b):
            await side.trial.follow()

    assert a.trial.rollout.evidence.candidate_failed == Count(0, 19)
    assert b.trial.rollout.evidence.candidate_failed == Count(0, 22)


async def test_of_a_crowd_one_pair_stands_for_its_moment(tmp_path: Path) -> None:
    async with sides(tmp_path, 1, SHADOW, MIRRORING) as (a,):
        a.answer(10, "incumbent")
        await a.until_paired(10)
        seen = a.trial.rollout.evidence

    assert sum(seen.ttft_ratios.values()) == sum(seen.duration_ratios.values()) == 10
    assert sum(seen.spaced_ttft_ratios.values()) == sum(seen.spaced_duration_ratios.values()) == 1


async def test_pairs_that_had_to_wait_stand_for_the_moment_in_which_they_are_asked(
    tmp_path: Path,
) -> None:
    async with sides(tmp_path, 1, SHADOW, MIRRORING) as (a,):
        a.engine.answer_seconds = 0.6
        a.answer(4, "incumbent")  # all at once, to be asked one after the other
        await a.until_paired(4)
        seen = a.trial.rollout.evidence

    assert sum(seen.spaced_ttft_ratios.values()) == 2


async def test_where_one_replaces_the_other_one_answer_stands_for_its_moment(
    tmp_path: Path,
) -> None:
    async with sides(tmp_path, 1, begin_watch(REPLACING, NOW, "")) as (a,):
        a.answer(10)
        seen = a.trial.rollout.evidence

    assert sum(seen.candidate_ttfts.values()) == sum(seen.candidate_durations.values()) == 10
    assert sum(seen.spaced_candidate_ttfts.values()) == 1
    assert sum(seen.spaced_candidate_durations.values()) == 1


async def test_the_one_that_has_enough_moves_and_the_other_follows(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        a.answer(15)
        await a.trial.save()
        b.answer(15)
        await b.trial.follow()
        await asyncio.wait_for(b.trial.run(), 10)
        a.answer(2)
        await a.trial.follow()

    assert a.trial.rollout == b.trial.rollout
    assert a.trial.rollout.state == "live"
    assert a.trial.rollout.history[-1].evidence.candidate_failed == Count(0, 30)
    assert a.routes[-1].incumbent.name == "student"


async def test_a_way_back_is_found_although_another_was_first_to_write(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        a.answer(1)
        await a.trial.save()
        moved = await b.trial.decide(lambda rollout: roll_back(rollout, NOW, "no"))
        await a.trial.follow()

    assert moved.state == "rolled_back"
    assert moved.history[-1].evidence.candidate_failed == Count(0, 1)
    assert a.trial.rollout == moved
    assert a.routes[-1].incumbent.name == "teacher"


async def test_a_way_back_that_the_store_refused_is_written_later(tmp_path: Path) -> None:
    async with sides(tmp_path, 1) as (a,):
        other = sqlite3.connect(tmp_path / "state.db")
        other.execute(
            "CREATE TRIGGER full BEFORE INSERT ON decisions BEGIN SELECT RAISE(FAIL, 'full'); END"
        )
        await a.trial.give_up("its engine ended")
        refused, routes = StateStore(f"sqlite:///{tmp_path}/state.db").load("r1"), list(a.routes)
        other.execute("DROP TRIGGER full")
        other.close()
        await a.trial.follow()

    written = StateStore(f"sqlite:///{tmp_path}/state.db").load("r1")
    assert routes[-1].incumbent.name == "teacher"
    assert refused.rollout.state == "canary"
    assert written.rollout.state == "rolled_back"


async def test_where_one_replaces_the_other_clients_wait_until_the_right_one_is_up(
    tmp_path: Path,
) -> None:
    async with sides(tmp_path, 1, REPLACING) as (a,):

        def answering() -> str | None:
            route = a.routes[-1]
            return None if route.is_held else route.choose("any")[0].name

        a.trial.switch("teacher")
        seen = [answering()]
        a.trial.switch(None)
        await a.trial.decide(lambda rollout: begin_watch(rollout, NOW, ""))
        seen.append(answering())
        a.trial.switch("student")
        seen.append(answering())
        a.answer(5)
        assert a.routes[-1].choose("any")[1] == "candidate"
        await a.trial.give_up("its engine ended")
        seen.append(answering())
        over = [is_over(a.trial)]
        a.trial.switch("teacher")
        seen.append(answering())
        over.append(is_over(a.trial))

    assert seen == [None, None, "student", None, "teacher"]
    assert over == [False, True]
    assert a.trial.ended.is_set()
    assert a.trial.rollout.history[-1].evidence.candidate_failed == Count(0, 5)


async def test_without_the_store_the_candidate_goes_on_where_there_is_nobody_else(
    tmp_path: Path,
) -> None:
    watched = begin_watch(REPLACING, NOW, "")
    async with sides(tmp_path, 1, watched) as (a,):
        a.trial.switch("student")
        other = sqlite3.connect(tmp_path / "state.db")
        other.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON rollouts BEGIN SELECT RAISE(FAIL, 'full'); END"
        )
        other.close()
        running = asyncio.create_task(a.trial.run())
        a.answer(300)
        for _ in range(200):
            await asyncio.sleep(0.01)
            assert not a.routes[-1].is_held
        running.cancel()

    assert a.routes[-1].choose("any")[0].name == "student"
    assert a.trial.rollout.state == "watch"
