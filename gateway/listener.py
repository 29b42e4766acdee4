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
from gateway.http import BoundedHttp, HttpConfig

GRACE_SECONDS = 30.0
MAX_HEAD_BYTES = 65_536
REQUEST_SECONDS = 60.0
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}  # seconds, seconds, times
BACKLOG = 2048


@asynccontextmanager
async def listening(
    asgi: ASGIApp,
    address: str,
    *,
    grace_seconds: float = GRACE_SECONDS,
    max_head_bytes: int = MAX_HEAD_BYTES,
    request_seconds: float = REQUEST_SECONDS,
) -> AsyncIterator["Listener"]:
    """Serve an app on an address; requests under way finish before the context is left.

    Those that take longer than the grace are cut off.

    Args:
        asgi: The app.
        address: ``host:port``.
        grace_seconds: How long requests under way have to finish.
        max_head_bytes: Largest request line and headers.
        request_seconds: Longest time that a request may take to arrive.

    Raises:
        PortTakenError: If the address cannot be bound.
    """
    host, port = host_and_port(address)
    config = HttpConfig(
        *(asgi, host, port),
        http=BoundedHttp,
        log_level="warning",
        proxy_headers=False,
        access_log=False,
        lifespan="off",
        server_header=False,
        date_header=False,
    )
    config.max_head_bytes, config.request_seconds = max_head_bytes, request_seconds
    server = Listener(config)
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
        # A peer that is gone without a word is noticed within two minutes.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
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
