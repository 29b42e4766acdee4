"""The hot path: take a request, let an engine answer it, pass the bytes on, keep a record.

Pure ASGI. A body is parsed once; the answer's chunks go to the client as they come and are kept
by reference for the record. The record is safe (as the route promises) before the client can
have received the whole answer.
"""

import asyncio
import time
from collections.abc import Mapping

import orjson
from starlette.types import Receive, Scope, Send

from gateway.asking import Asking
from gateway.body import conversation_key, read_body
from gateway.cascade import Cascade, CascadeConfig
from gateway.endpoints import ENDPOINTS
from gateway.errors import (
    GatewayError,
    NotReadyError,
    RequestError,
    RouteNotFoundError,
)
from gateway.escalation import HandedOverError, Held, hand_over, redirect
from gateway.exchange import Exchange, Request, new_id
from gateway.hold import Leaving
from gateway.http import LEAVING
from gateway.keys import ApiKey
from gateway.limits import Reservation
from gateway.privacy import Keeping, policy_of
from gateway.refusal import refusal
from gateway.serving import Serving
from gateway.timeouts import Timeouts
from gateway.upstream import Upstream, forwarded_headers
from gateway.wiring import Wire

TRACE = (b"traceparent", b"tracestate")


class Relay:
    """ASGI endpoint for one path of the engine's API."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a client that leaves stops the engine's work."""
        headers = dict(scope["headers"])
        try:
            request = await self._read(scope, receive, self._serving.gate.admit(headers))
            exchange = await self._begin(request, headers, scope[LEAVING])
        except GatewayError as error:
            self._serving.on_refused(error)
            await refusal(error)(scope, receive, send)
            return
        current: Exchange | None = exchange
        while current is not None:
            current = await self._answer(current, scope, receive, send)

    async def _answer(
        self, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> Exchange | None:
        """Let one engine answer, and keep what came of it; who is to answer instead, if any."""
        self._serving.on_begun(exchange)
        try:
            return await self._serve(exchange, scope, receive, send)
        finally:
            await self._record(exchange)
            self._serving.gate.settle(exchange.reservation, exchange)
            self._serving.on_ended(exchange)

    async def _serve(
        self, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> Exchange | None:
        """Relay until the answer is out or the client leaves, whichever comes first."""
        serving, leaving = asyncio.current_task(), scope[LEAVING]

        def on_left() -> None:
            if exchange.ended is None and serving is not None:
                exchange.aborted = True
                serving.cancel()

        leaving.add(on_left)
        try:
            return await self._relay(exchange, scope, receive, send)
        except asyncio.CancelledError:
            if not exchange.aborted or serving is None:
                raise
            serving.uncancel()
            return None
        finally:
            leaving.discard(on_left)

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

    async def _begin(
        self, request: Request, headers: dict[bytes, bytes], leaving: Leaving
    ) -> Exchange:
        """Choose who answers, once and for all, and whether the answer is captured.

        Between the choice and the engine nothing waits: whoever drains a deployment knows of all
        that it was chosen for.
        """
        route = self._serving.config.routes[request.route]
        allowed = "full" if route.capture == "wire" else route.capture
        of_key = "full" if request.key is None else request.key.capture
        policy = policy_of(allowed, of_key, headers, request.parsed)
        keeping = Keeping.decide(policy, self._serving.redactor, request.parsed)
        generates = ENDPOINTS[request.endpoint].generates
        reservation, held_seconds = await self._reserve(request, leaving)
        deployment, role = self._serving.table.routes[request.route].choose(request.conversation)
        captured = deployment.capture and keeping.allows_capture and generates
        exchange = Exchange(
            *(new_id(), request, deployment, role),
            capture="tap" if captured else "off",
            keeping=keeping,
            reservation=reservation,
            trace={
                name.decode(): headers[name].decode("latin-1") for name in TRACE if name in headers
            },
        )
        exchange.has_waited(held_seconds)
        wire = self._serving.wire
        if wire and route.capture == "wire" and role == "incumbent" and keeping.allows_capture:
            exchange.wire = wire.plan(exchange)
            exchange.capture = "wire" if exchange.wire else "off"
        if role == "incumbent":
            exchange.cascade = Cascade.of(route.cascade, request.endpoint, request.parsed)
            self._weigh_prompt(exchange, route.cascade)
        return exchange

    def _weigh_prompt(self, exchange: Exchange, cascade: CascadeConfig | None) -> None:
        """Give its teacher what is too far from all that the student was trained on."""
        serving, request = self._serving, exchange.request
        training = serving.trainings.get(request.route)
        if cascade is None or training is None:
            return
        is_far = cascade.is_far(training, request.endpoint, request.parsed)
        if is_far is None:
            return
        outcome = "student"
        if is_far:
            is_there = redirect(exchange, cascade.route, serving.table)
            outcome = "teacher" if is_there else "unavailable"
        serving.on_cascade(exchange, "distance", outcome)

    async def _reserve(
        self, request: Request, leaving: Leaving
    ) -> tuple[Reservation | None, float]:
        """Take room in its quotas and in the log, and wait while its route is held.

        Returns:
            What it holds of its quotas, and how many seconds it has waited.
        """
        serving, gate, name = self._serving, self._serving.gate, request.route
        reservation = await gate.reserve(request)
        try:
            held_seconds = await serving.hold.wait(
                name,
                lambda: serving.table.routes[name].is_held,
                serving.config.routes[name].pool,
                leaving,
            )
            serving.keeper.begin()
        except BaseException:
            gate.settle(reservation)
            raise
        return reservation, held_seconds

    async def _relay(
        self, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> Exchange | None:
        """Pass an engine's answer on; what fails before its first byte becomes an error body."""
        serving, key = self._serving, exchange.request.key
        headers = forwarded_headers(scope["headers"], trusted=key is None or key.trusted)
        timeouts = serving.config.routes[exchange.request.route].timeouts
        headers |= exchange.trace
        way = (serving.upstream, timeouts, serving.wire)
        try:
            if exchange.cascade is not None:
                return await self._relay_if_sure(exchange, exchange.cascade, way, headers, send)
            await Asking(exchange, *way, send, self._record).run(headers)
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
        return None

    async def _relay_if_sure(
        self,
        exchange: Exchange,
        cascade: Cascade,
        way: tuple[Upstream, Timeouts, Wire | None],
        headers: Mapping[str, str],
        send: Send,
    ) -> Exchange | None:
        """Pass a student's answer on, or return the exchange with its teacher."""
        serving = self._serving

        def decide(is_sure: bool) -> Exchange | None:  # noqa: FBT001 - it is called with nothing else
            successor = None if is_sure else hand_over(exchange, serving.table, serving.keeper)
            unsure = "teacher" if successor else "unavailable"
            serving.on_cascade(exchange, cascade.signal, "student" if is_sure else unsure)
            return successor

        held = Held(exchange, cascade, send, self._record, decide)
        try:
            await Asking(exchange, *way, held.take, held.keep).run(headers)
        except HandedOverError as error:
            return error.successor
        finally:
            if not held.is_released:
                exchange.has_begun = exchange.is_open_ended = False  # its client has nothing yet
        return None

    async def _record(self, exchange: Exchange) -> None:
        """Hand the ended exchange to the spool, once, and wait as long as the promise asks."""
        if exchange.ended is not None:
            return
        exchange.ended = time.monotonic()
        of_route = self._serving.config.routes[exchange.request.route].promise
        promised = "best_effort" if exchange.role == "shadow" else of_route
        await self._serving.keeper.keep(exchange, promised, self._serving.wire)
