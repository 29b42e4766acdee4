"""An ASGI app on an address, for as long as a context lasts."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

from gateway.config import host_and_port
from gateway.errors import PortTakenError

GRACE_SECONDS = 30


@asynccontextmanager
async def listening(
    asgi: ASGIApp, address: str, grace_seconds: int = GRACE_SECONDS
) -> AsyncIterator[None]:
    """Serve an app on an address; requests under way finish before the context is left.

    Raises:
        PortTakenError: If the address cannot be bound.
    """
    host, port = host_and_port(address)
    server = Listener(
        uvicorn.Config(
            *(asgi, host, port),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=grace_seconds,
        )
    )
    try:
        listener = server.config.bind_socket()
    except SystemExit as error:
        raise PortTakenError(f"cannot listen on {address}: is it taken? choose another") from error
    # Without it a small write waits for the client's delayed acknowledgement: 40 ms per answer.
    # Connections inherit it; asyncio sets it only where a socket's protocol is named.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


class Listener(uvicorn.Server):
    """A server that leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handler."""
        yield
