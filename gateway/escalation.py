"""A student's answer, held back until it is known whether its client gets it or the teacher's."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.types import Message, Send

from gateway.cascade import Cascade
from gateway.errors import CaptureFullError
from gateway.exchange import Exchange, new_id
from gateway.keeper import Keeper
from gateway.routing import Deployment, RouteTable

OK = 200


class HandedOverError(Exception):
    """Raised to break off an answer that nobody will get.

    Attributes:
        successor: The exchange with the teacher.
    """

    def __init__(self, successor: Exchange) -> None:
        super().__init__("the teacher answers")
        self.successor = successor


@dataclass(slots=True)
class Held:
    """A student's answer, of which its client has nothing until it is released.

    A refusal of its engine goes on at once: there is nothing to weigh.

    Attributes:
        exchange: The student's.
        cascade: Listens to it.
        send: To its client.
        record: Keeps the exchange, as safe as promised.
        hand_over: Called once with whether the student is sure; the exchange with its teacher, or
            None if the answer stands.
        is_released: Whether what comes is passed on.
    """

    exchange: Exchange
    cascade: Cascade
    send: Send
    record: Callable[[Exchange], Awaitable[None]]
    hand_over: Callable[[bool], Exchange | None]
    is_released: bool = False
    _messages: list[Message] = field(default_factory=list)
    _is_whole: bool = False

    async def keep(self, exchange: Exchange) -> None:
        """Keep an exchange whose client gets its answer; else it is kept when it is handed over."""
        self._is_whole = True
        if self.is_released:
            await self.record(exchange)

    async def take(self, message: Message) -> None:
        """Take what would be sent, and release it as soon as the student is known to be sure.

        Raises:
            HandedOverError: If it is not, and the teacher is there.
        """
        self.is_released |= message.get("status", OK) != OK
        if self.is_released:
            await self.send(message)
            return
        self._messages.append(message)
        is_over = not message.get("more_body", True)
        is_sure = self.cascade.is_sure(is_over=is_over)
        if is_sure is None:
            return
        successor = self.hand_over(is_sure)
        if successor is not None:
            # From here to the teacher nothing waits: a client that leaves is not missed.
            self.exchange.aborted = not self._is_whole
            raise HandedOverError(successor)
        await self._release()

    async def _release(self) -> None:
        """Send what is held; the first byte that a client gets is the last that has come."""
        exchange = self.exchange
        exchange.first_byte = exchange.last_byte
        if self._is_whole:
            await self.record(exchange)
        self.is_released = True
        messages = self._messages if exchange.request.stream else _in_one(self._messages)
        for message in messages:
            await self.send(message)


def _in_one(messages: list[Message]) -> list[Message]:
    """A whole answer's messages, its length in the head."""
    head, *pieces = messages
    body = b"".join(piece["body"] for piece in pieces)
    headers = [*head["headers"], (b"content-length", str(len(body)).encode())]
    return [{**head, "headers": headers}, {"type": "http.response.body", "body": body}]


def hand_over(exchange: Exchange, table: RouteTable, keeper: Keeper) -> Exchange | None:
    """Make an exchange with the teacher, of which the student's becomes a shadow.

    Args:
        exchange: The student's, answered.
        table: Where the teacher is.
        keeper: Of the log.

    Returns:
        None if the teacher does not serve, or the log has no room: the student's answer stands.
    """
    name = "" if exchange.cascade is None else exchange.cascade.route
    teacher = _serving(name, table)
    if teacher is None:
        return None
    try:
        keeper.begin()
    except CaptureFullError:
        return None
    successor = Exchange(
        *(new_id(), exchange.request, teacher, "incumbent"),
        capture=_capture(exchange, teacher),
        asked_as=name,
        keeping=exchange.keeping,
        reservation=exchange.reservation,
        trace=dict(exchange.trace),
        started_at=exchange.started_at,
        started=exchange.started,
        queued_seconds=time.monotonic() - exchange.started,
    )
    exchange.reservation = None
    exchange.role, exchange.pair_id = "shadow", successor.exchange_id
    return successor


def redirect(exchange: Exchange, name: str, table: RouteTable) -> bool:
    """Let the teacher answer what no engine has been asked yet; whether it serves.

    Args:
        exchange: Changed, if so.
        name: Of the teacher's route.
        table: Where it is.
    """
    teacher = _serving(name, table)
    if teacher is None:
        return False
    exchange.capture, exchange.wire = _capture(exchange, teacher), None
    exchange.deployment, exchange.asked_as, exchange.cascade = teacher, name, None
    return True


def _serving(name: str, table: RouteTable) -> Deployment | None:
    route = table.routes.get(name)
    if route is None or route.is_held or not route.incumbent.pool.is_serving:
        return None
    return route.incumbent


def _capture(exchange: Exchange, teacher: Deployment) -> str:
    return "tap" if teacher.capture and exchange.keeping.allows_capture else "off"
