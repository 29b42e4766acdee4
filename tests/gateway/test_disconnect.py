"""Clients that leave, stall or crawl cost nobody else anything, and leave nothing behind."""

import asyncio
import resource
from pathlib import Path

import orjson
import pytest

from capture.account import read_counts
from tests.gateway.test_relay import Stand, chat, stand

pytestmark = pytest.mark.timeout(180)
NUM_LEAVING = 1000
FILES_EACH = 8  # of client, gateway and engine, all in this process


@pytest.fixture(autouse=True)
def many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, NUM_LEAVING * FILES_EACH)
    if wanted < NUM_LEAVING * FILES_EACH:
        pytest.skip(f"only {hard} files may be open at once here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def raw(word: str, *, stream: bool) -> bytes:
    body = orjson.dumps(chat(word, stream=stream))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def connected(s: Stand) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    where = s.client.base_url
    return await asyncio.open_connection(where.host, where.port)


def census() -> tuple[int, int]:
    """Tasks and open files."""
    return len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir()))


async def until_no_more_than(before: tuple[int, int], seconds: float) -> tuple[int, int]:
    deadline = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < deadline:
        now = census()
        if now[0] <= before[0] and now[1] <= before[1]:
            break
        await asyncio.sleep(0.05)
    return census()


@pytest.mark.parametrize(("word", "stream"), [("hang", False), ("pause", True)])
async def test_a_thousand_clients_that_leave_at_once_leave_nothing_behind(
    tmp_path: Path, word: str, stream: bool
) -> None:
    async with stand(tmp_path) as s:
        await s.client.post("/v1/chat/completions", json=chat("hi"))
        before = census()
        clients = []
        for number in range(NUM_LEAVING):
            clients.append(await connected(s))
            clients[-1][1].write(raw(word, stream=stream))
            if number % 50 == 0:
                await asyncio.sleep(0.1)
        async with asyncio.timeout(30):
            while len(s.engine.bodies) < NUM_LEAVING + 1:  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.05)
        for _, writer in clients:
            writer.transport.abort()
        after = await until_no_more_than(before, 30)
        statuses = [s.ended.get_nowait().status for _ in range(s.ended.qsize())]

    assert after[0] <= before[0]
    assert after[1] <= before[1]
    assert statuses.count("aborted") == NUM_LEAVING
    (counts,) = read_counts(tmp_path / "spool").values()
    assert (counts.started, counts.written) == (NUM_LEAVING + 1, NUM_LEAVING + 1)


async def test_a_reader_that_stalls_holds_back_only_itself(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        _, writer = await connected(s)
        writer.write(raw("flood", stream=True))
        held, flooded = 0, -1
        async with asyncio.timeout(30):
            while flooded != s.engine.flooded or not flooded:
                flooded = s.engine.flooded
                await asyncio.sleep(0.3)
                answer = await s.client.post("/v1/chat/completions", json=chat("hi"))
                held += not answer.is_success
        writer.transport.abort()
        exchange = await asyncio.wait_for(s.ended.get(), 10)
        while exchange.request.parsed["messages"] != chat("flood")["messages"]:
            exchange = await asyncio.wait_for(s.ended.get(), 10)

    assert held == 0
    assert flooded < 64_000_000  # socket buffers, no more
    assert exchange.status == "aborted"


async def test_an_engine_stops_within_a_second_of_its_client(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        _, writer = await connected(s)
        writer.write(raw("hang", stream=False))
        await asyncio.wait_for(s.engine.hanging.wait(), 5)
        writer.transport.abort()
        await asyncio.wait_for(s.engine.cancelled.wait(), 1)
