"""An ASGI app on an address, for as long as a context lasts."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

from gateway.config import GatewayConfig, host_and_port
from gateway.errors import PortTakenError
from gateway.http import BoundedHttp, HttpConfig

GRACE_SECONDS = 30.0
MAX_HEAD_BYTES = 65_536
REQUEST_SECONDS = 60.0
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}  # seconds, seconds, times
BACKLOG = 2048
LINGER_SECONDS = 2.0  # clients use a connection again within that time, or have gone
KEEP_ALIVE_SECONDS = 75  # longer than clients keep theirs, so that they close first


@asynccontextmanager
async def listening(
    asgi: ASGIApp,
    door: socket.socket,
    *,
    grace_seconds: float = GRACE_SECONDS,
    max_head_bytes: int = MAX_HEAD_BYTES,
    request_seconds: float = REQUEST_SECONDS,
    linger_seconds: float = 0.0,
) -> AsyncIterator["Listener"]:
    """Serve an app at a socket; requests under way finish before the context is left.

    Those that take longer than the grace are cut off.

    Args:
        asgi: The app.
        door: What ``bound`` gave, or another process left us; closed on the way out.
        grace_seconds: How long requests under way have to finish.
        max_head_bytes: Largest request line and headers.
        request_seconds: Longest time that a request may take to arrive.
        linger_seconds: How long an idle connection may still bring a request when we end.
    """
    config = HttpConfig(
        asgi,
        http=BoundedHttp,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        log_level="warning",
        proxy_headers=False,
        access_log=False,
        lifespan="off",
        server_header=False,
        date_header=False,
    )
    config.max_head_bytes, config.request_seconds = max_head_bytes, request_seconds
    config.linger_seconds = linger_seconds
    server = Listener(config)
    with door:
        task = asyncio.create_task(server.serve([door]))
        try:
            yield server
        finally:
            server.should_exit = True
            await asyncio.wait({task}, timeout=grace_seconds)
            server.hang_up()
            await task


def for_apps(
    asgi: ASGIApp, door: socket.socket, config: GatewayConfig
) -> AbstractAsyncContextManager["Listener"]:
    """Serve apps at a socket, as configured, for as long as the context lasts."""
    return listening(
        asgi,
        door,
        max_head_bytes=config.max_header_bytes,
        request_seconds=config.request_timeout_seconds,
        linger_seconds=LINGER_SECONDS,
    )


def bound(address: str) -> socket.socket:
    """Open a socket that listens at ``host:port``; who connects from now on waits for the server.

    Raises:
        PortTakenError: If the address cannot be bound.
    """
    host, port = host_and_port(address)
    door = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Without it a small write waits for the client's delayed acknowledgement: 40 ms per answer.
    # Connections inherit it; asyncio sets it only where the protocol is named.
    door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A peer that is gone without a word is noticed within two minutes.
    door.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        door.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    try:
        door.bind((host.strip("[]"), port))
        door.listen(BACKLOG)
    except OSError as error:
        door.close()
        raise PortTakenError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another address"
        ) from error
    return door


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
