import asyncio

import pytest

from gateway.errors import NotReadyError, OverloadedError
from gateway.health import Member, PoolConfig
from gateway.pool import Pool


def pool(number: int = 2, **settings: float) -> Pool:
    names = [f"engine {n}" for n in range(number)]
    return Pool(names, PoolConfig.model_validate(settings))


async def test_requests_go_to_the_engine_with_least_under_way() -> None:
    engines = pool(3)
    taken = [await engines.acquire() for _ in range(7)]
    engines.release(taken[1], "served")

    assert [member.outstanding for member in engines.members] == [3, 1, 2]
    assert await engines.acquire() is taken[1]


async def test_idle_engines_take_turns() -> None:
    engines = pool(3)
    names = []
    for _ in range(6):
        member = await engines.acquire()
        names.append(member.url)
        engines.release(member, "served")

    assert sorted(names[:3]) == sorted(names[3:]) == [member.url for member in engines.members]


async def test_an_engine_that_failed_a_request_is_tried_last() -> None:
    engines = pool(2)
    first = await engines.acquire()
    engines.release(first, "failed")

    assert await engines.acquire([first]) is not first


async def test_a_request_waits_for_an_engine_that_is_coming_back() -> None:
    engines = pool(1)
    engines.set_up("engine 0", is_up=False)
    waiting = [asyncio.create_task(engines.acquire()) for _ in range(3)]
    await asyncio.sleep(0)
    assert engines.num_waiting == 3
    engines.set_up("engine 0", is_up=True)
    members = await asyncio.gather(*waiting)

    assert [member.url for member in members] == ["engine 0"] * 3
    assert engines.members[0].outstanding == 3
    assert engines.num_waiting == 0


async def test_one_that_is_closed_refuses_who_waits_and_who_comes() -> None:
    engines = pool(1)
    engines.set_aside()
    waiting = asyncio.create_task(engines.acquire())
    await asyncio.sleep(0)
    engines.close()

    for refused in (waiting, asyncio.create_task(engines.acquire())):
        with pytest.raises(NotReadyError, match="has been ended"):
            await refused
    assert engines.num_waiting == 0


async def test_an_engine_in_doubt_is_asked_before_it_serves() -> None:
    engines = pool(1)
    engines.set_aside()
    set_aside = engines.due()
    engines.doubt()

    assert set_aside == []
    assert engines.due() == list(engines.members)
    assert engines.take() is None
    engines.probed(engines.members[0], is_well=True)
    assert engines.take() is engines.members[0]


async def test_requests_are_served_in_their_order() -> None:
    engines = pool(1, max_outstanding=1)
    first = await engines.acquire()
    served: list[int] = []

    async def ask(number: int) -> None:
        member = await engines.acquire()
        served.append(number)
        engines.release(member, "served")

    asking = [asyncio.create_task(ask(number)) for number in range(5)]
    await asyncio.sleep(0)
    engines.release(first, "served")
    await asyncio.gather(*asking)

    assert served == [0, 1, 2, 3, 4]
    assert engines.members[0].outstanding == 0


async def test_who_waits_in_vain_is_told() -> None:
    engines = pool(1, queue_seconds=0.01)
    engines.set_up("engine 0", is_up=False)

    with pytest.raises(NotReadyError, match="does not serve"):
        await engines.acquire()
    assert engines.num_waiting == 0


async def test_a_full_queue_refuses_at_once() -> None:
    engines = pool(1, max_outstanding=1, queue=1)
    await engines.acquire()
    waiting = asyncio.create_task(engines.acquire())
    await asyncio.sleep(0)

    with pytest.raises(OverloadedError, match="busy"):
        await engines.acquire()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_who_leaves_the_queue_leaves_its_place_to_others() -> None:
    engines = pool(1, max_outstanding=1)
    busy = await engines.acquire()
    leaving, staying = (asyncio.create_task(engines.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    engines.release(busy, "served")  # before the one that leaves has noticed
    member = await staying

    assert member.outstanding == 1
    assert leaving.cancelled() or (await asyncio.gather(leaving, return_exceptions=True))
    assert engines.num_waiting == 0


async def test_an_engine_given_to_one_that_has_just_left_is_free_again() -> None:
    engines = pool(1, max_outstanding=1)
    busy = await engines.acquire()
    leaving = asyncio.create_task(engines.acquire())
    await asyncio.sleep(0)
    engines.release(busy, "served")  # gives it the engine
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)

    assert engines.members[0].outstanding == 0


async def test_a_retry_needs_another_engine_or_one_to_wait_for() -> None:
    engines = pool(2)
    first, second = engines.members

    assert engines.may_retry([first])
    assert not engines.may_retry([first, second])
    for member in (first, second):
        engines.set_up(member.url, is_up=False)
    assert engines.may_retry([first, second])
    assert not engines.may_retry([first, second, first])  # retries = 2
    assert engines.counts.retries == 2


async def test_retries_come_out_of_a_budget() -> None:
    engines = pool(2, retry_share=0)
    tried = [engines.members[0]]

    granted = [engines.may_retry(tried) for _ in range(100)]

    assert granted == [True] * 64 + [False] * 36


async def test_an_ejected_engine_gets_nothing_until_it_generates() -> None:
    engines = pool(2)
    gone = await engines.acquire()
    engines.release(gone, "gone")
    others: set[Member] = {await engines.acquire() for _ in range(4)}
    assert gone not in others
    assert engines.due() == [gone]
    assert engines.due() == []  # it is being asked
    engines.probed(gone, is_well=True)

    assert await engines.acquire() is gone
    assert engines.counts.ejections == 1


async def test_engines_that_have_yet_to_prove_themselves_are_asked_first() -> None:
    engines = Pool(["a", "b"], PoolConfig(queue_seconds=0.01), "ejected")

    with pytest.raises(NotReadyError):
        await engines.acquire()
    assert engines.due() == list(engines.members)
