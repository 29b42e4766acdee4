import asyncio

import pytest

from gateway.errors import ClientLeftError, NotReadyError
from gateway.health import PoolConfig
from gateway.hold import Hold, Leaving

LIMITS = PoolConfig(queue=2, queue_seconds=30)
SHORT = PoolConfig(queue=2, queue_seconds=0.05)


class Door:
    """A route that is held or not, and what came of those that waited."""

    def __init__(self) -> None:
        self.is_held = True
        self.ends: list[str | None] = []
        self.leaving: Leaving = set()
        self.hold = Hold(lambda _, outcome: self.ends.append(outcome))

    def wait(self, limits: PoolConfig = LIMITS) -> "asyncio.Task[float]":
        waiting = self.hold.wait("support", lambda: self.is_held, limits, self.leaving)
        return asyncio.create_task(waiting)

    def open(self) -> None:
        self.is_held = False
        self.hold.let_in(["support", "sales"])


async def test_nobody_waits_for_a_route_that_is_not_held() -> None:
    door = Door()
    door.is_held = False

    assert await door.wait() == 0.0
    assert door.ends == []


async def test_who_waits_is_let_in_when_it_is_held_no_more() -> None:
    door = Door()
    waiting = [door.wait(), door.wait()]
    await asyncio.sleep(0)
    door.hold.let_in(["support"])  # held again at once: nobody is let in
    await asyncio.sleep(0.02)
    are_done = [task.done() for task in waiting]
    door.open()
    seconds = await asyncio.gather(*waiting)

    assert are_done == [False, False]
    assert min(seconds) >= 0.02
    assert door.ends == [None, None, "let_in", "let_in"]
    assert door.leaving == set()


async def test_the_wait_is_bounded_in_time_and_number() -> None:
    door = Door()
    waiting = [door.wait(SHORT), door.wait(SHORT)]
    await asyncio.sleep(0)
    with pytest.raises(NotReadyError, match="too many") as refused:
        await door.wait(SHORT)
    for task in waiting:
        with pytest.raises(NotReadyError, match="in vain"):
            await task

    assert refused.value.retry_after_seconds
    assert door.ends == [None, None, None, "refused", "refused", "refused"]
    assert door.leaving == set()


async def test_a_client_that_leaves_leaves_the_queue() -> None:
    door = Door()
    waiting = door.wait()
    await asyncio.sleep(0)
    for leave in list(door.leaving):
        leave()
    with pytest.raises(ClientLeftError):
        await waiting

    assert door.ends == [None, "left"]
    door.open()
