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

GRACE_SECONDS = 30.0
BACKLOG = 2048


@asynccontextmanager
async def listening(
    asgi: ASGIApp, address: str, grace_seconds: float = GRACE_SECONDS
) -> AsyncIterator["Listener"]:
    """Serve an app on an address; requests under way finish before the context is left.

    Those that take longer than the grace are cut off.

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
        )
    )
    with bound(host, port) as listener:
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield server
        finally:
            server.should_exit = True
            await asyncio.wait({task}, timeout=grace_seconds)
            server.hang_up()
            await task


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Open a socket that listens on an address.

    Raises:
        PortTakenError: If the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Without it a small write waits for the client's delayed acknowledgement: 40 ms per
        # answer. Connections inherit it; asyncio sets it only where the protocol is named.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind((host.strip("[]"), port))
            listener.listen(BACKLOG)  # who connects from now on waits for the server
        except OSError as error:
            raise PortTakenError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another address"
            ) from error
        yield listener


class Listener(uvicorn.Server):
    """A server that leaves signals to us."""

    def hang_up(self) -> None:
        """Cut every connection, as if all clients had left."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handler."""
        yield
