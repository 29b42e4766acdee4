"""The hot path: take a request, let an engine answer it, pass the bytes on, keep a record.

Pure ASGI. A body is parsed once; the answer's chunks go to the client as they come and are kept
by reference for the record. The record is safe (as the route promises) before the client can
have received the whole answer.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import aiohttp
import orjson
from starlette.types import Receive, Scope, Send

from capture.redaction import RedactConfig, Redactor
from capture.writer import Spool
from gateway.config import GatewayConfig
from gateway.errors import (
    BodyTooLargeError,
    GatewayError,
    NotReadyError,
    RequestError,
    RouteNotFoundError,
)
from gateway.exchange import Exchange, Request
from gateway.keeper import Keeper
from gateway.privacy import Keeping, policy_of
from gateway.refusal import refusal
from gateway.routing import RouteTable
from gateway.upstream import Upstream, forwarded_headers, returned_headers
from gateway.wiring import REFUSALS, Wire, asked_body, stripped

DONE = b"data: [DONE]\n\n"
TAG = "retort"
OK = 200
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


class Relay:
    """ASGI endpoint for one path of the engine's API."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a client that leaves stops the engine's work."""
        try:
            request = await self._read(scope, receive)
            exchange = self._begin(request, dict(scope["headers"]))
        except GatewayError as error:
            self._serving.on_refused(error)
            await refusal(error)(scope, receive, send)
            return
        self._serving.on_begun(exchange)
        relaying = asyncio.ensure_future(self._relay(exchange, scope, receive, send))
        leaving = asyncio.ensure_future(receive())  # can only be the client's disconnect
        try:
            await asyncio.wait({relaying, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not relaying.done():
                exchange.aborted = True
                relaying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await relaying
        finally:
            relaying.cancel()
            leaving.cancel()
            await self._record(exchange)
            self._serving.on_ended(exchange)

    async def _read(self, scope: Scope, receive: Receive) -> Request:
        """Read and check a body.

        Raises:
            RequestError: If it is too large, not a JSON object, or names no model of ours.
        """
        body = await read_body(receive, self._serving.config.max_body_bytes)
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise RequestError(f"the body is not valid JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise RequestError('the body is not a JSON object; expected {"model": ...}')
        model = self._model(parsed)
        return Request(
            endpoint=scope["path"],
            route=model,
            body=body,
            parsed=parsed,
            stream=parsed.get("stream") is True,
            conversation=conversation_key(parsed),
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
        policy = policy_of(
            "full" if route.capture == "wire" else route.capture, headers, request.parsed
        )
        keeping = Keeping.decide(policy, self._serving.redactor, request.parsed)
        captured = deployment.capture and keeping.allows_capture
        self._serving.keeper.begin()
        exchange = Exchange(
            *(uuid.uuid4().hex, request, deployment, role),
            capture="tap" if captured else "off",
            keeping=keeping,
        )
        wire = self._serving.wire
        if wire and route.capture == "wire" and role == "incumbent" and keeping.allows_capture:
            exchange.wire = wire.plan(exchange)
            exchange.capture = "wire" if exchange.wire else "off"
        return exchange

    async def _relay(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the engine's answer on; what fails before its first byte becomes an error body."""
        url = exchange.deployment.url + exchange.request.endpoint
        headers = forwarded_headers(scope["headers"])
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
            if exchange.http_status is None:
                await refusal(error)(scope, receive, send)
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
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        async for chunk in chunks:
            if exchange.first_byte is None:
                exchange.first_byte = time.monotonic()
            exchange.chunks.append(chunk)
            missing = None if missing is None else missing - len(chunk)
            if missing == 0 or ends_stream(exchange.chunks):
                await self._record(exchange)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._record(exchange)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _record(self, exchange: Exchange) -> None:
        """Hand the ended exchange to the spool, once, and wait as long as the promise asks."""
        if exchange.ended is not None:
            return
        exchange.ended = time.monotonic()
        promise = self._serving.config.routes[exchange.request.route].promise
        await self._serving.keeper.keep(exchange, promise, self._serving.wire)


async def read_body(receive: Receive, limit: int) -> bytes:
    """Collect a request's body.

    Raises:
        BodyTooLargeError: If it exceeds ``limit`` bytes.
        RequestError: If the client leaves before its end.
    """
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError("the client left before its request was complete")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise BodyTooLargeError(f"the body is larger than max_body_bytes ({limit})")
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def forwarded_body(exchange: Exchange) -> bytes:
    """The client's own bytes, or, for a captured exchange, the request with what we ask for."""
    if exchange.wire is not None:
        return asked_body(exchange.request.parsed, exchange.wire)
    if exchange.capture != "tap":
        return exchange.request.body
    parsed = exchange.request.parsed
    own = parsed.get("vllm_xargs")
    tags = {**(own if isinstance(own, dict) else {}), TAG: exchange.exchange_id}
    return orjson.dumps({**parsed, "vllm_xargs": tags})


def conversation_key(parsed: dict[str, object]) -> str:
    """What stays the same from turn to turn: the user if named, else how it all began."""
    user = parsed.get("user")
    if isinstance(user, str):
        return user
    messages = parsed.get("messages")
    beginning = messages[:2] if isinstance(messages, list) else parsed.get("prompt")
    return orjson.dumps(beginning).decode()


def ends_stream(chunks: list[bytes]) -> bool:
    """Whether the last event of a stream is complete."""
    if chunks[-1].endswith(DONE):
        return True
    return len(chunks[-1]) < len(DONE) and b"".join(chunks[-len(DONE) :]).endswith(DONE)
