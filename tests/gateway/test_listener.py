import asyncio
import contextlib
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from capture.engine import free_port
from gateway.errors import PortTakenError
from gateway.listener import bound, listening
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
        async with listening(never_ending, bound(address), grace_seconds=0.05):
            asking = asyncio.create_task(client.get(f"http://{address}/"))
            await asyncio.wait_for(begun.wait(), 5)
        with pytest.raises(httpx.TransportError):
            await asking

    assert left.is_set()
    assert not caplog.records


async def test_an_address_of_ip_version_6_is_listened_on() -> None:
    address = f"[::1]:{free_port()}"

    async with listening(in_three_writes, bound(address)), httpx.AsyncClient() as client:
        answer = await client.get(f"http://{address}/")

    assert answer.text == "ab"


async def test_a_host_that_does_not_exist_is_named() -> None:
    with pytest.raises(PortTakenError, match=r"cannot listen on nowhere\.invalid:8080: .*choose"):
        async with listening(in_three_writes, bound("nowhere.invalid:8080")):
            pass


async def answered(url: str, *parts: bytes) -> bytes:
    """What a raw connection is answered, once the server closes it."""
    where = httpx.URL(url)
    reader, writer = await asyncio.open_connection(where.host, where.port)
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer


@asynccontextmanager
async def bounded(**limits: Any) -> AsyncIterator[str]:
    address = f"127.0.0.1:{free_port()}"
    async with listening(in_three_writes, bound(address), grace_seconds=1, **limits):
        yield f"http://{address}"


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"x" * 5000 + b"\r\n\r\n"],
        [b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nhost: a\r\n\r\n"],
        [b"GET / HTTP/1.1\r\n", *[b"x-%d: 1\r\n" % number for number in range(1000)]],
        [b"GET / HTTP/1.1\r\nx: ", *[b"x" * 500] * 20],
    ],
)
async def test_a_head_without_bounds_is_refused_in_openais_form(parts: list[bytes]) -> None:
    async with bounded(max_head_bytes=4096) as url:
        try:
            answer = await answered(url, *parts)
        except ConnectionResetError:
            return  # it was refused while we still sent
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"max_header_bytes (4096)" in answer or b"Invalid HTTP request" in answer
    assert b'"invalid_request_error"' in answer


async def test_what_is_no_http_is_refused_in_openais_form() -> None:
    async with bounded() as url:
        answer = await answered(url, b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
    assert b'"invalid_request_error"' in answer


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"GET / HT"],
        [b"GET / HTTP/1.1\r\nhost: a\r\n"],
    ],
)
async def test_a_head_that_never_comes_whole_is_not_waited_for(parts: list[bytes]) -> None:
    async with bounded(request_seconds=0.2) as url:
        assert await answered(url, *parts) == b""


async def test_requests_in_time_keep_their_connection_for_as_long_as_they_ask() -> None:
    async with (
        bounded(request_seconds=0.2, max_head_bytes=300) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        for _ in range(6):
            assert (await client.get("/")).content == b"ab"
            await asyncio.sleep(0.1)


async def test_a_body_that_never_comes_whole_is_not_waited_for() -> None:
    ended = asyncio.Event()

    async def reads(_: Scope, receive: Receive, __: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        ended.set()

    address = f"127.0.0.1:{free_port()}"
    async with listening(reads, bound(address), grace_seconds=1, request_seconds=0.2):
        head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{"
        assert await answered(f"http://{address}", head) == b""
        await asyncio.wait_for(ended.wait(), 5)
