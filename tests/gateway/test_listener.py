import asyncio
import statistics

import httpx
from starlette.types import Receive, Scope, Send

from tests.support.serving import served

NUM_ASKED = 20
DELAYED_ACK_SECONDS = 0.04


async def in_three_writes(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for body, more in ((b"a", True), (b"b", True), (b"", False)):
        await send({"type": "http.response.body", "body": body, "more_body": more})


async def test_small_writes_do_not_wait_for_an_acknowledgement() -> None:
    seconds = []
    loop = asyncio.get_running_loop()
    async with served(in_three_writes) as url, httpx.AsyncClient(base_url=url) as client:
        for _ in range(NUM_ASKED):
            began = loop.time()
            await client.get("/")
            seconds.append(loop.time() - began)

    assert statistics.median(seconds) < DELAYED_ACK_SECONDS / 2
