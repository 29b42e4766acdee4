"""Side by side, or alone."""

import asyncio

from gateway.turns import Turns


async def test_some_go_side_by_side_and_one_alone() -> None:
    turns, told = Turns(), list[str]()
    go_on = asyncio.Event()

    async def beside(name: str) -> None:
        async with turns.beside():
            told.append(f"{name} in")
            await go_on.wait()
            told.append(f"{name} out")

    async def alone(name: str) -> None:
        async with turns.alone():
            told.append(f"{name} in")
            await asyncio.sleep(0)
            told.append(f"{name} out")

    async with asyncio.TaskGroup() as group:
        group.create_task(beside("a"))
        group.create_task(beside("b"))
        await asyncio.sleep(0.01)
        group.create_task(alone("x"))
        group.create_task(alone("y"))
        await asyncio.sleep(0.01)
        late = group.create_task(beside("late"))
        await asyncio.sleep(0.01)
        before = list(told)
        go_on.set()

    assert before == ["a in", "b in"]
    assert late.done()
    middle, last = told[4:8], told[8:]
    assert told[2:4] == ["a out", "b out"]
    assert [word.split()[1] for word in middle] == ["in", "out", "in", "out"]
    assert last == ["late in", "late out"]


async def test_who_gives_up_waiting_holds_up_nobody() -> None:
    turns = Turns()

    async with turns.beside():
        waiting = asyncio.create_task(turns.alone().__aenter__())
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        async with asyncio.timeout(1), turns.beside():
            pass
    async with asyncio.timeout(1), turns.alone():
        pass
