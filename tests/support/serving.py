"""ASGI apps behind real sockets, for as long as a test needs them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp

from capture.engine import free_port
from gateway.listener import bound, listening


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an app on a free loopback port; gives its address."""
    address = f"127.0.0.1:{free_port()}"
    async with listening(app, bound(address), grace_seconds=1):
        yield f"http://{address}"
