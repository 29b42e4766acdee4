import asyncio

import pytest

from gateway.drain import UnderWay


async def test_drain_waits_for_the_last_request_of_its_deployment() -> None:
    under_way = UnderWay()
    for name in ("old", "old", "new"):
        under_way.begin(name)
    draining = asyncio.create_task(under_way.drain("old"))

    under_way.end("old")
    await asyncio.sleep(0)
    assert not draining.done()
    under_way.end("old")

    await asyncio.wait_for(draining, 1)


async def test_nothing_under_way_is_drained_at_once() -> None:
    await asyncio.wait_for(UnderWay().drain("old"), 1)


async def test_drain_goes_on_waiting_when_a_request_follows_the_last() -> None:
    under_way = UnderWay()
    under_way.begin("old")
    draining = asyncio.create_task(under_way.drain("old"))
    await asyncio.sleep(0)

    under_way.end("old")
    under_way.begin("old")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(draining), 0.02)
    under_way.end("old")
    await asyncio.wait_for(draining, 1)
