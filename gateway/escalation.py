"""A student's answer, held back until it is known whether its client gets it or the teacher's."""

import time
from dataclasses import dataclass, field

from starlette.types import Message

from gateway.errors import CaptureFullError
from gateway.exchange import Exchange, new_id
from gateway.keeper import Keeper
from gateway.routing import RouteTable

OK = 200
CONTENT_LENGTH = b"content-length"


@dataclass(slots=True)
class Held:
    """An answer that nobody has yet.

    Attributes:
        head: Its status and headers.
        pieces: Its body so far.
    """

    head: Message = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)

    async def take(self, message: Message) -> None:
        """Take what would have been sent."""
        if message["type"] == "http.response.start":
            self.head = message
        else:
            self.pieces.append(message["body"])

    @property
    def body(self) -> bytes:
        """All of its body."""
        return b"".join(self.pieces)

    @property
    def is_answer(self) -> bool:
        """Whether the engine answered at all, and did not refuse."""
        return bool(self.head["status"] == OK)

    def messages(self, body: bytes) -> tuple[Message, Message]:
        """The same answer with another body."""
        headers = [(k, v) for k, v in self.head["headers"] if k.lower() != CONTENT_LENGTH]
        headers.append((CONTENT_LENGTH, str(len(body)).encode()))
        return {**self.head, "headers": headers}, {"type": "http.response.body", "body": body}


async def keep_nothing(_: Exchange) -> None:
    """Record nothing: whether its client gets an answer is not known yet."""


def hand_over(exchange: Exchange, table: RouteTable, keeper: Keeper) -> Exchange | None:
    """Make an exchange with the teacher, of which the student's becomes a shadow.

    Args:
        exchange: The student's, answered.
        table: Where the teacher is.
        keeper: Of the log.

    Returns:
        None if the teacher does not serve, or the log has no room: the student's answer stands.
    """
    cascade = exchange.cascade
    name = "" if cascade is None else cascade.config.route
    route = table.routes.get(name)
    if route is None or not route.incumbent.pool.is_serving:
        return None
    try:
        keeper.begin()
    except CaptureFullError:
        return None
    teacher = route.incumbent
    is_captured = teacher.capture and exchange.keeping.allows_capture
    successor = Exchange(
        *(new_id(), exchange.request, teacher, "incumbent"),
        capture="tap" if is_captured else "off",
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
