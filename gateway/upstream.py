"""The connection pool to engines; the one place that knows aiohttp and its errors."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Self

import aiohttp

from gateway.errors import NotReadyError, UpstreamError

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer "
    b"transfer-encoding upgrade".split()
)
NOT_FORWARDED = HOP_BY_HOP | frozenset(
    b"host content-length accept-encoding authorization x-api-key cookie".split()
)
HARMLESS = frozenset(b"content-type accept user-agent traceparent tracestate".split())
KEEP_ALIVE_SECONDS = 3.0  # below the 5 s after which vLLM closes an idle connection


class Upstream:
    """Posts a body to an engine and hands its answer on as it comes, byte for byte."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._post = partial(session.post, allow_redirects=False)

    @classmethod
    def create(cls) -> Self:
        """Open a pool without a limit of its own; call it inside a running event loop."""
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            timeout=_waits(None),
            cookie_jar=aiohttp.DummyCookieJar(),  # what one client is given is no other's
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
        )
        return cls(session)

    @asynccontextmanager
    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], connect_seconds: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; leaving the context early closes the connection, so the engine stops.

        How long its answer may take is up to whoever reads it.

        Raises:
            NotReadyError: If nobody listens there, or nobody takes the connection in time.
            UpstreamError: If the engine breaks off.
        """
        waits = _waits(connect_seconds)
        try:
            async with await self._send(url, body, headers, waits) as response:
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotReadyError("the engine cannot be reached; retry in a moment") from error
        except aiohttp.ClientError as error:
            raise UpstreamError("the engine broke off its answer") from error

    async def _send(
        self, url: str, body: bytes, headers: Mapping[str, str], waits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        """Send once more if the engine closed an idle connection just as we took it."""
        try:
            return await self._post(url, data=body, headers=headers, timeout=waits)
        except aiohttp.ServerDisconnectedError:
            return await self._post(url, data=body, headers=headers, timeout=waits)

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()


@cache
def _waits(connect_seconds: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds)


def forwarded_headers(
    headers: Iterable[tuple[bytes, bytes]], *, trusted: bool = True
) -> dict[str, str]:
    """A client's headers for the engine; the key it gave us stays with us.

    Engines take orders from headers (request ids, which replica to use): from a client that is
    not trusted only harmless ones pass.
    """
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in headers
        if (trusted or name in HARMLESS)
        and name not in NOT_FORWARDED
        and not name.startswith(b"x-retort-")
    }


def returned_headers(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    """The engine's headers for the client."""
    return [(n, v) for n, v in response.raw_headers if n.lower() not in HOP_BY_HOP]
