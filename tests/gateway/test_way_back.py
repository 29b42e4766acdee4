"""A way back takes effect at once and is written down in the end, whatever the store does."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.errors import RolloutError
from gateway.evidence import Count
from gateway.rollout import Rollout, promote, roll_back
from gateway.state import StateStore
from tests.gateway.test_trial import NOW, Side, sides


def written(folder: Path) -> Rollout:
    return StateStore(f"sqlite:///{folder / 'state.db'}").load("r1").rollout


@contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """A store that takes no moves meanwhile."""
    other = sqlite3.connect(folder / "state.db")
    full = "BEGIN SELECT RAISE(FAIL, 'full'); END"
    other.execute(f"CREATE TRIGGER full BEFORE INSERT ON decisions {full}")
    try:
        yield
    finally:
        other.execute("DROP TRIGGER full")
        other.close()


@contextmanager
def hanging(folder: Path) -> Iterator[None]:
    """A store whose writers wait meanwhile."""
    other = sqlite3.connect(folder / "state.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def until_back(side: Side) -> None:
    async with asyncio.timeout(3):
        while side.routes[-1].candidate is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_breach_stands_although_another_gateway_has_written_meanwhile(
    tmp_path: Path,
) -> None:
    async with sides(tmp_path) as (a, b):
        running = asyncio.create_task(a.trial.run())
        await asyncio.sleep(0)
        b.answer(1)
        await b.trial.save()
        a.fail(60)
        await asyncio.wait_for(running, 10)

    moved = written(tmp_path)
    assert a.trial.rollout == moved
    assert moved.state == "rolled_back"
    assert moved.history[-1].evidence.candidate_failed == Count(60, 61)
    back = [route.candidate for route in a.routes].index(None)
    assert {route.candidate for route in a.routes[back:]} == {None}


async def test_a_way_back_that_was_refused_stands_though_others_have_gone_on_to_live(
    tmp_path: Path,
) -> None:
    async with sides(tmp_path) as (a, b):
        with refusing(tmp_path):
            await a.trial.give_up("its engine ended")
        b.answer(3)
        await b.trial.save()
        await b.trial.decide(lambda rollout: promote(rollout, NOW))
        await a.trial.follow()
        await b.trial.follow()

    moved = written(tmp_path)
    assert [(move.source, move.target) for move in moved.history[-2:]] == [
        ("canary", "live"),
        ("live", "rolled_back"),
    ]
    assert moved.history[-1].note == "its engine ended"
    assert a.trial.rollout == b.trial.rollout == moved
    assert {a.routes[-1].incumbent.name, b.routes[-1].incumbent.name} == {"teacher"}
    assert "student" not in {route.incumbent.name for route in a.routes}


async def test_one_way_back_is_enough(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        with refusing(tmp_path):
            await a.trial.give_up("its engine ended")
        await b.trial.give_up("mine too")
        await a.trial.follow()

    assert [move.note for move in a.trial.rollout.history[1:]] == ["mine too"]
    assert a.trial.rollout == written(tmp_path)


async def test_a_breach_takes_effect_while_the_store_hangs(tmp_path: Path) -> None:
    async with sides(tmp_path, 1) as (a,):
        running = asyncio.create_task(a.trial.run())
        with hanging(tmp_path):
            saving = asyncio.create_task(a.trial.save())
            await asyncio.sleep(0.2)
            a.fail(60)
            await until_back(a)
        await saving
        await asyncio.wait_for(running, 10)

    assert written(tmp_path).state == "rolled_back"
    assert written(tmp_path).history[-1].evidence.candidate_failed == Count(60, 60)


async def test_a_breach_while_a_move_forward_is_being_written_comes_after_it(
    tmp_path: Path,
) -> None:
    async with sides(tmp_path, 1) as (a,):
        running = asyncio.create_task(a.trial.run())
        with hanging(tmp_path):
            moving = asyncio.create_task(a.trial.decide(lambda rollout: promote(rollout, NOW)))
            await asyncio.sleep(0.2)
            a.fail(60)
            await until_back(a)
        moved = await moving
        await asyncio.wait_for(running, 10)

    assert [move.target for move in moved.history[-2:]] == ["live", "rolled_back"]
    assert moved == a.trial.rollout == written(tmp_path)


async def test_an_operators_word_takes_effect_while_the_store_hangs(tmp_path: Path) -> None:
    async with sides(tmp_path, 1) as (a,):
        running = asyncio.create_task(a.trial.run())
        with hanging(tmp_path):
            saving = asyncio.create_task(a.trial.save())
            await asyncio.sleep(0.2)
            back = asyncio.create_task(a.trial.decide(lambda each: roll_back(each, NOW, "no")))
            await until_back(a)
            with pytest.raises(RolloutError, match="rolled back already"):
                await a.trial.decide(lambda each: roll_back(each, NOW, "again"))
        await saving
        moved = await back
        await asyncio.wait_for(running, 10)

    assert moved == written(tmp_path)
    assert [move.note for move in moved.history[1:]] == ["no"]


async def test_an_operators_word_that_a_look_into_the_store_writes_down_is_theirs(
    tmp_path: Path,
) -> None:
    async with sides(tmp_path, 1) as (a,):
        following = asyncio.create_task(a.trial.follow())
        await asyncio.sleep(0)
        moved = await a.trial.decide(lambda each: roll_back(each, NOW, "no"))
        await following

    assert moved == written(tmp_path)
    assert [move.note for move in moved.history[1:]] == ["no"]
