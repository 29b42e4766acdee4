import asyncio

import pytest

from gateway.errors import UpstreamTimeoutError
from gateway.timeouts import Timeouts, Watch

SHORT = Timeouts(first_token_seconds=0.2, between_tokens_seconds=0.1, total_seconds=10)


async def test_an_engine_that_sends_nothing_is_given_up() -> None:
    said = r"first_token_seconds is 0\.2"
    with pytest.raises(UpstreamTimeoutError, match=said), Watch(SHORT, stream=True):
        await asyncio.sleep(5)


async def test_a_stream_that_stalls_is_given_up() -> None:
    watch = Watch(SHORT, stream=True)
    said = r"between_tokens_seconds is 0\.1"
    with pytest.raises(UpstreamTimeoutError, match=said), watch:
        await piece(watch, then=5)


async def piece(watch: Watch, then: float) -> None:
    watch.pause()
    watch.resume()
    await asyncio.sleep(then)


async def test_a_stream_may_take_long_as_long_as_it_goes_on() -> None:
    with Watch(SHORT, stream=True) as watch:
        for _ in range(10):
            await piece(watch, then=0.05)


async def test_a_client_that_reads_slowly_is_not_the_engines_fault() -> None:
    with Watch(SHORT, stream=True) as watch:
        watch.pause()
        await asyncio.sleep(0.5)
        watch.resume()


async def test_an_answer_in_one_piece_is_bounded_as_a_whole() -> None:
    with Watch(SHORT, stream=False):
        await asyncio.sleep(0.5)
    total = Timeouts(total_seconds=0.1)
    said = r"total_seconds is 0\.1"
    with pytest.raises(UpstreamTimeoutError, match=said), Watch(total, stream=False):
        await asyncio.sleep(5)


async def test_who_is_cancelled_by_somebody_else_is_cancelled() -> None:
    async def ask() -> None:
        with Watch(SHORT, stream=True):
            await asyncio.sleep(5)

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_the_task_goes_on_after_a_timeout() -> None:
    with pytest.raises(UpstreamTimeoutError), Watch(SHORT, stream=True):
        await asyncio.sleep(5)
    task = asyncio.current_task()

    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)
