"""The hot path: take a request, let an engine answer it, pass the bytes on, keep a record.

Pure ASGI. A body is parsed once; the answer's chunks go to the client as they come and are kept
by reference for the record. The record is safe (as the route promises) before the client can
have received the whole answer.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from random import Random

import aiohttp
import orjson
from starlette.types import Message, Receive, Scope, Send

from capture.redaction import RedactConfig, Redactor
from capture.writer import Spool
from gateway.body import conversation_key, forwarded_body, read_body
from gateway.config import GatewayConfig
from gateway.endpoints import ENDPOINTS, StreamEnd
from gateway.errors import (
    GatewayError,
    NotReadyError,
    RequestError,
    RouteNotFoundError,
)
from gateway.exchange import Exchange, Request
from gateway.gate import Gate
from gateway.keeper import Keeper
from gateway.keys import ApiKey
from gateway.limits import Reservation
from gateway.privacy import Keeping, policy_of
from gateway.refusal import refusal
from gateway.routing import RouteTable
from gateway.upstream import Upstream, forwarded_headers, returned_headers
from gateway.wiring import REFUSALS, Wire, stripped

OK = 200
RANDOM = Random(os.urandom(32))  # noqa: S311  ids need to be unique, not secret
CONTENT_LENGTH = b"content-length"


@dataclass(slots=True)
class Serving:
    """What every request needs; ``table`` is replaced whole when a rollout moves.

    Attributes:
        on_begun: Called when an exchange goes to its engine.
        on_ended: Called once per exchange, when its client has been served.
        keeper: Takes ended exchanges into the spool.
        redactor: What is replaced in every text before it is written.
        wire: Takes rows from answers, for routes that ask for it.
        on_refused: Called when a request is refused before it becomes an exchange.
        gate: Lets requests in.
    """

    config: GatewayConfig
    table: RouteTable
    upstream: Upstream
    spool: Spool[Exchange]
    on_begun: Callable[[Exchange], None]
    on_ended: Callable[[Exchange], None]
    keeper: Keeper
    redactor: Redactor = field(default_factory=lambda: Redactor(RedactConfig()))
    wire: Wire | None = None
    on_refused: Callable[[GatewayError], None] = lambda _: None
    gate: Gate = field(default_factory=Gate)


class Relay:
    """ASGI endpoint for one path of the engine's API."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a client that leaves stops the engine's work."""
        headers = dict(scope["headers"])
        try:
            request = await self._read(scope, receive, self._serving.gate.admit(headers))
            exchange = self._begin(request, headers)
        except GatewayError as error:
            self._serving.on_refused(error)
            await refusal(error)(scope, receive, send)
            return
        self._serving.on_begun(exchange)
        try:
            await self._serve(exchange, scope, receive, send)
        finally:
            await self._record(exchange)
            self._serving.gate.settle(exchange.reservation, exchange)
            self._serving.on_ended(exchange)

    async def _serve(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay until the answer is out or the client leaves, whichever comes first."""
        serving = asyncio.current_task()

        def on_left(_: object) -> None:
            if exchange.ended is None and serving is not None:
                exchange.aborted = True
                serving.cancel()

        leaving = asyncio.ensure_future(receive())  # can only be the client's disconnect
        leaving.add_done_callback(on_left)
        try:
            await self._relay(exchange, scope, receive, send)
        except asyncio.CancelledError:
            if not exchange.aborted or serving is None:
                raise
            serving.uncancel()
        finally:
            leaving.cancel()

    async def _read(self, scope: Scope, receive: Receive, key: ApiKey | None) -> Request:
        """Read and check a body.

        Raises:
            RequestError: If it is too large, not a JSON object, says what it must not, or names
                no model of ours.
        """
        body = await read_body(receive, self._serving.config.max_body_bytes)
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise RequestError(f"the body is not valid JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise RequestError('the body is not a JSON object; expected {"model": ...}')
        model = self._model(parsed)
        self._serving.gate.check(key, parsed)
        return Request(
            endpoint=scope["path"],
            route=model,
            body=body,
            parsed=parsed,
            stream=parsed.get("stream") is True,
            conversation=conversation_key(parsed),
            key=key,
            salt=self._serving.gate.salt(key),
        )

    def _model(self, parsed: dict[str, object]) -> str:
        """The route that is asked for."""
        model, routes = parsed.get("model"), self._serving.config.routes
        if not isinstance(model, str):
            raise RequestError(f"model is {model!r}, expected the name of a model", "model")
        if model not in routes:
            known = ", ".join(sorted(routes))
            raise RouteNotFoundError(f"model {model!r} does not exist; known: {known}", "model")
        if model not in self._serving.table.routes:
            raise NotReadyError(f"the engine of {model!r} is starting; retry in a moment")
        return model

    def _begin(self, request: Request, headers: dict[bytes, bytes]) -> Exchange:
        """Choose who answers, once and for all, and whether the answer is captured."""
        deployment, role = self._serving.table.routes[request.route].choose(request.conversation)
        route = self._serving.config.routes[request.route]
        allowed = "full" if route.capture == "wire" else route.capture
        of_key = "full" if request.key is None else request.key.capture
        policy = policy_of(allowed, of_key, headers, request.parsed)
        keeping = Keeping.decide(policy, self._serving.redactor, request.parsed)
        generates = ENDPOINTS[request.endpoint].generates
        captured = deployment.capture and keeping.allows_capture and generates
        exchange = Exchange(
            *(f"{RANDOM.getrandbits(128):032x}", request, deployment, role),
            capture="tap" if captured else "off",
            keeping=keeping,
            reservation=self._reserve(request),
        )
        wire = self._serving.wire
        if wire and route.capture == "wire" and role == "incumbent" and keeping.allows_capture:
            exchange.wire = wire.plan(exchange)
            exchange.capture = "wire" if exchange.wire else "off"
        return exchange

    def _reserve(self, request: Request) -> Reservation | None:
        """Take room in its quotas and in the log for one exchange, or for none."""
        gate = self._serving.gate
        reservation = gate.reserve(request)
        try:
            self._serving.keeper.begin()
        except GatewayError:
            gate.settle(reservation)
            raise
        return reservation

    async def _relay(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the engine's answer on; what fails before its first byte becomes an error body."""
        url = exchange.deployment.url + exchange.request.endpoint
        key = exchange.request.key
        headers = forwarded_headers(scope["headers"], trusted=key is None or key.trusted)
        try:
            if exchange.deployment.name in self._serving.table.down:
                raise NotReadyError("the engine has ended and is being started again; retry")
            if exchange.wire is not None and await self._relay_heard(exchange, url, headers, send):
                return
            async with self._serving.upstream.post(
                url, forwarded_body(exchange), headers
            ) as response:
                await self._pass_on(exchange, response, send)
        except GatewayError as error:
            exchange.error_type = error.code
            if not exchange.has_begun:
                await refusal(error)(scope, receive, send)
            elif exchange.streams_events:
                await self._record(exchange)
                event = ENDPOINTS[exchange.request.endpoint].error_event(error)
                is_between = not exchange.chunks or exchange.chunks[-1].endswith(b"\n\n")
                body = event if is_between else b"\n\n" + event
                await send({"type": "http.response.body", "body": body})
            # else the answer had begun: returning now breaks the connection, as the engine did

    async def _relay_heard(
        self, exchange: Exchange, url: str, headers: dict[str, str], send: Send
    ) -> bool:
        """Ask for distributions too; whether the engine took that, else it is asked without."""
        body = forwarded_body(exchange)
        async with self._serving.upstream.post(url, body, headers) as response:
            if response.status not in REFUSALS:
                await self._pass_on(exchange, response, send)
                return True
        exchange.wire, exchange.capture = None, "off"
        if self._serving.wire is not None:
            self._serving.wire.refuse()
        return False

    async def _pass_on(
        self, exchange: Exchange, response: aiohttp.ClientResponse, send: Send
    ) -> None:
        headers = returned_headers(response)
        headers.append((b"x-retort-exchange-id", exchange.exchange_id.encode()))
        headers.append((b"x-retort-deployment", exchange.deployment.name.encode()))
        exchange.http_status = response.status
        chunks: AsyncIterator[bytes] = response.content.iter_any()
        missing = response.content_length
        if exchange.wire is not None and response.status == OK:
            headers = [(name, value) for name, value in headers if name.lower() != CONTENT_LENGTH]
            chunks = stripped(chunks, exchange.wire, stream=exchange.request.stream)
            missing = None
        start = {"type": "http.response.start", "status": response.status, "headers": headers}
        if missing is None:
            exchange.has_begun = exchange.is_open_ended = True
            await send(start)
            await self._pass_stream(exchange, chunks, send)
        else:
            await self._pass_body(exchange, chunks, missing, start, send)

    async def _pass_body(
        self,
        exchange: Exchange,
        chunks: AsyncIterator[bytes],
        missing: int,
        start: Message,
        send: Send,
    ) -> None:
        """Pass on a body of known length; its head goes with its first bytes, in one write."""
        async for chunk in chunks:
            self._take(exchange, chunk)
            missing -= len(chunk)
            if not missing:
                await self._record(exchange)
            if not exchange.has_begun:
                exchange.has_begun = True
                await send(start)
            await send({"type": "http.response.body", "body": chunk, "more_body": missing > 0})
        if not exchange.has_begun:
            exchange.has_begun = True
            await self._record(exchange)
            await send(start)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pass_stream(
        self, exchange: Exchange, chunks: AsyncIterator[bytes], send: Send
    ) -> None:
        """Pass on a body that ends when it ends."""
        end = StreamEnd(ENDPOINTS[exchange.request.endpoint])
        async for chunk in chunks:
            self._take(exchange, chunk)
            if end.is_reached(chunk):
                await self._record(exchange)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._record(exchange)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _take(self, exchange: Exchange, chunk: bytes) -> None:
        if exchange.first_byte is None:
            exchange.first_byte = time.monotonic()
        exchange.chunks.append(chunk)

    async def _record(self, exchange: Exchange) -> None:
        """Hand the ended exchange to the spool, once, and wait as long as the promise asks."""
        if exchange.ended is not None:
            return
        exchange.ended = time.monotonic()
        promise = self._serving.config.routes[exchange.request.route].promise
        await self._serving.keeper.keep(exchange, promise, self._serving.wire)
