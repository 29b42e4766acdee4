"""HTTP/1.1 with bounds on what a client sends: the size of a head, and the time until all is there.

A client that never finishes its request would otherwise hold memory and a socket for ever.
"""

import asyncio
from collections.abc import Callable

import httptools
import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.errors import RequestError

LEAVING = "retort.leaving"  # in a scope: what is called when the client is gone


class HttpConfig(uvicorn.Config):
    """A server's configuration with the bounds of heads.

    Attributes:
        max_head_bytes: Largest request line and headers together.
        request_seconds: Longest time that a request may take to arrive.
        linger_seconds: How long an idle connection may still bring a request when we end.
    """

    max_head_bytes: int
    request_seconds: float
    linger_seconds: float


class BoundedHttp(HttpToolsProtocol):
    """One connection; refuses what is no HTTP, or too much of it, in OpenAI's form.

    Attributes:
        leaving: Called when the client is gone: cheaper than a task per request that waits for it.
    """

    config: HttpConfig
    leaving: set[Callable[[], None]]
    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    _is_ending = False
    _head_bytes = 0  # of a head not yet whole

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self.leaving = set()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)
        for tell in list(self.leaving):
            tell()

    def data_received(self, data: bytes) -> None:
        """Take bytes, as long as the head they belong to is not too large."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.config.max_head_bytes and not self.transport.is_closing():
                self.send_400_response(self._too_large())

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of a request."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._timer is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """Let a request in if its head is not too large."""
        self._in_head = False
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self.config.max_head_bytes:
            raise httptools.HttpParserError(self._too_large())
        self.scope[LEAVING] = self.leaving  # type: ignore[literal-required]
        super().on_headers_complete()
        if self._is_ending:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Stop waiting: the request is whole."""
        self._stop_waiting()
        super().on_message_complete()

    def shutdown(self) -> None:
        """End after the request under way, or one that is on its way already.

        A connection that is closed just when its client begins to use it costs a request.
        """
        self._is_ending = True
        if not self._is_idle:
            self.cycle.keep_alive = False
        elif self.config.linger_seconds:
            self.loop.call_later(self.config.linger_seconds, self._close_if_idle)
        else:
            self.transport.close()

    def _close_if_idle(self) -> None:
        if self._is_idle:
            self.transport.close()

    @property
    def _is_idle(self) -> bool:
        """Whether no request is under way."""
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn's word for it is not quite true
        return cycle is None or cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """Refuse and close."""
        body = orjson.dumps(RequestError(msg).body())
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _too_large(self) -> str:
        return f"the request's head is larger than max_header_bytes ({self.config.max_head_bytes})"

    def _wait(self) -> None:
        self._timer = self.loop.call_later(self.config.request_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
