"""An exchange's way to an engine and back: whom to ask, how long to wait, what to pass on.

What fails before the client has the first byte may be tried on another engine; after that nothing
is ever sent twice.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

import aiohttp
from starlette.types import Message, Send

from gateway.body import forwarded_body
from gateway.endpoints import ENDPOINTS, StreamEnd
from gateway.errors import GatewayError, NotReadyError, UpstreamError
from gateway.exchange import Exchange, new_id
from gateway.health import Member, Verdict
from gateway.timeouts import Timeouts, Watch
from gateway.upstream import Upstream, returned_headers
from gateway.wiring import REFUSALS, Wire, stripped

OK = 200
UNSERVED = (502, 503)  # how a server says that it has not begun
FAILURES = (500, 502, 503, 504)
CONTENT_LENGTH = b"content-length"
GONE = (NotReadyError, UpstreamError)


@dataclass(slots=True)
class Asking:
    """One exchange on its way.

    Attributes:
        exchange: Filled with the answer as it passes.
        upstream: Connections to engines.
        timeouts: How long they may take.
        wire: Takes rows from the answer, where it has been asked to.
        send: Takes the answer.
        record: Keeps the exchange, as safe as promised; called before the answer's last bytes.
    """

    exchange: Exchange
    upstream: Upstream
    timeouts: Timeouts
    wire: Wire | None
    send: Send
    record: Callable[[Exchange], Awaitable[None]]

    async def run(self, headers: Mapping[str, str]) -> None:
        """Ask engines until one answers, and pass that on.

        Raises:
            GatewayError: If none does, or one breaks off in the middle.
        """
        exchange, tried = self.exchange, list[Member]()
        pool = exchange.deployment.pool
        while True:
            arrived = time.monotonic()
            member = await pool.acquire(tried)
            exchange.asked = time.monotonic()
            exchange.queued_seconds += exchange.asked - arrived
            tried.append(member)
            try:
                if await self._ask(member, headers, tried):
                    return
            except GONE:
                if exchange.has_begun or not pool.may_retry(tried):
                    raise
            # The engine may have recorded a beginning under the old name.
            exchange.exchange_id = new_id()

    async def _ask(self, member: Member, headers: Mapping[str, str], tried: list[Member]) -> bool:
        """Ask one engine; whether its answer was passed on, else another is to be asked."""
        exchange, pool = self.exchange, self.exchange.deployment.pool
        url, body = member.url + exchange.request.endpoint, forwarded_body(exchange)
        verdict: Verdict | None = None
        try:
            with Watch(self.timeouts, stream=exchange.request.stream) as watch:
                connect_seconds = self.timeouts.connect_seconds
                async with self.upstream.post(url, body, headers, connect_seconds) as response:
                    verdict = "failed" if response.status in FAILURES else "served"
                    if response.status in UNSERVED and pool.may_retry(tried):
                        return False
                    if exchange.wire is not None and response.status in REFUSALS:
                        tried.remove(member)
                        self._forget_wire(exchange)
                        return False
                    await self._pass_on(response, watch)
        except GatewayError as error:
            verdict = "gone" if isinstance(error, GONE) else "failed"
            raise
        finally:
            pool.release(member, verdict)
        return True

    def _forget_wire(self, exchange: Exchange) -> None:
        """Ask without distributions: the engine does not know the fields that ask for them."""
        exchange.wire, exchange.capture = None, "off"
        if self.wire is not None:
            self.wire.refuse()

    async def _pass_on(self, response: aiohttp.ClientResponse, watch: Watch) -> None:
        exchange = self.exchange
        headers = returned_headers(response)
        headers.append((b"x-retort-exchange-id", exchange.exchange_id.encode()))
        headers.append((b"x-retort-deployment", exchange.deployment.name.encode()))
        exchange.http_status = response.status
        chunks: AsyncIterator[bytes] = response.content.iter_any()
        missing = response.content_length
        listener = exchange.wire or exchange.cascade
        if listener is not None and response.status == OK:
            headers = [(name, value) for name, value in headers if name.lower() != CONTENT_LENGTH]
            chunks = stripped(chunks, listener, stream=exchange.request.stream)
            missing = None
        start = {"type": "http.response.start", "status": response.status, "headers": headers}
        if missing is None:
            exchange.has_begun = exchange.is_open_ended = True
            await self.send(start)
            await self._pass_stream(chunks, watch)
        else:
            await self._pass_body(chunks, missing, start)

    async def _pass_body(self, chunks: AsyncIterator[bytes], missing: int, start: Message) -> None:
        """Pass on a body of known length; its head goes with its first bytes, in one write."""
        exchange = self.exchange
        async for chunk in chunks:
            exchange.take(chunk)
            missing -= len(chunk)
            if not missing:
                await self.record(exchange)
            if not exchange.has_begun:
                exchange.has_begun = True
                await self.send(start)
            await self.send(_piece(chunk, more=missing > 0))
        if not exchange.has_begun:
            exchange.has_begun = True
            await self.record(exchange)
            await self.send(start)
            await self.send(_piece(b"", more=False))

    async def _pass_stream(self, chunks: AsyncIterator[bytes], watch: Watch) -> None:
        """Pass on a body that ends when it ends."""
        exchange = self.exchange
        end = StreamEnd(ENDPOINTS[exchange.request.endpoint])
        async for chunk in chunks:
            watch.pause()
            exchange.take(chunk)
            if end.is_reached(chunk):
                await self.record(exchange)
            await self.send(_piece(chunk, more=True))
            watch.resume()
        await self.record(exchange)
        await self.send(_piece(b"", more=False))


def _piece(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
