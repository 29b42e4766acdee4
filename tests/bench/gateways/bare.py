"""The least that a gateway of these libraries can be: uvicorn takes a body, aiohttp passes it on.

``python -m tests.bench.gateways.bare PORT ENGINE`` checks, counts and records nothing.
"""

import sys

import aiohttp
import uvicorn
from starlette.types import Receive, Scope, Send

HOP_BY_HOP = (b"connection", b"transfer-encoding", b"keep-alive")


class Bare:
    """ASGI app in front of one engine."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, and its answer back."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        body = (await receive())["body"]
        headers = {"content-type": "application/json"}
        url = self._engine + scope["path"]
        async with self._session.post(url, data=body, headers=headers) as answer:
            kept = [(n, v) for n, v in answer.raw_headers if n.lower() not in HOP_BY_HOP]
            head = {"type": "http.response.start", "status": answer.status, "headers": kept}
            await send(head)
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    uvicorn.run(
        Bare(sys.argv[2]),
        port=int(sys.argv[1]),
        access_log=False,
        log_level="warning",
        lifespan="off",
    )
