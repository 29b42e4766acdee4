import asyncio
import statistics

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from capture.engine import free_port
from gateway.errors import PortTakenError
from gateway.listener import listening
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


async def test_requests_that_outlast_the_grace_are_cut_off_without_an_error_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun = asyncio.Event()
    left = asyncio.Event()

    async def never_ending(_: Scope, receive: Receive, __: Send) -> None:
        begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    address = f"127.0.0.1:{free_port()}"
    async with httpx.AsyncClient() as client:
        async with listening(never_ending, address, grace_seconds=0.05):
            asking = asyncio.create_task(client.get(f"http://{address}/"))
            await asyncio.wait_for(begun.wait(), 5)
        with pytest.raises(httpx.TransportError):
            await asking

    assert left.is_set()
    assert not caplog.records


async def test_an_address_of_ip_version_6_is_listened_on() -> None:
    address = f"[::1]:{free_port()}"

    async with listening(in_three_writes, address), httpx.AsyncClient() as client:
        answer = await client.get(f"http://{address}/")

    assert answer.text == "ab"


async def test_a_host_that_does_not_exist_is_named() -> None:
    with pytest.raises(PortTakenError, match=r"cannot listen on nowhere\.invalid:8080: .*choose"):
        async with listening(in_three_writes, "nowhere.invalid:8080"):
            pass
