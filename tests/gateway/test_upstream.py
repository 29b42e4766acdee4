import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.errors import UpstreamError
from gateway.upstream import Upstream

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@asynccontextmanager
async def engine(answers_per_connection: int) -> AsyncIterator[str]:
    """A server that closes a connection, without a word, at the next request after some."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # the client closed first
            for _ in range(answers_per_connection):
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                writer.write(ANSWER)
            await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        yield f"http://{host}:{port}/"


async def ask(upstream: Upstream, url: str) -> bytes:
    async with upstream.post(url, b"{}", {}, 1.0) as response:
        return await response.read()


async def test_a_connection_that_the_engine_closed_while_idle_costs_no_request() -> None:
    async with engine(answers_per_connection=1) as url:
        upstream = Upstream.create()

        answers = [await ask(upstream, url) for _ in range(4)]

        await upstream.close()
    assert answers == [b"ok"] * 4


async def test_an_engine_that_closes_every_connection_has_failed() -> None:
    async with engine(answers_per_connection=0) as url:
        upstream = Upstream.create()

        with pytest.raises(UpstreamError, match="broke off"):
            await ask(upstream, url)

        await upstream.close()
