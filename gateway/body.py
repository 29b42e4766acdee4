"""A request's body: read from the client, and as it goes on to the engine."""

import uuid

import orjson
from starlette.types import Receive

from gateway.errors import BodyTooLargeError, RequestError
from gateway.exchange import Exchange
from gateway.gate import TAG
from gateway.wiring import asked_body


async def read_body(receive: Receive, limit: int) -> bytes:
    """Collect a request's body.

    Raises:
        BodyTooLargeError: If it exceeds ``limit`` bytes.
        RequestError: If the client leaves, or is cut off, before its end.
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
    """The client's own bytes, with what we ask of the engine added at their end."""
    request = exchange.request
    if exchange.wire is not None:
        return asked_body(request.parsed, exchange.wire)
    added: dict[str, object] = {} if exchange.cascade is None else {**exchange.cascade.fields}
    if exchange.asked_as is not None:
        added["model"] = exchange.asked_as
    if request.salt is not None:
        added["cache_salt"] = request.salt
    if exchange.capture == "tap":
        own = request.parsed.get("vllm_xargs")
        tags = {**(own if isinstance(own, dict) else {}), TAG: exchange.exchange_id}
        added["vllm_xargs"] = tags
    if not added:
        return request.body
    if added.keys() & request.parsed.keys():
        return orjson.dumps({**request.parsed, **added})
    beginning, _, _ = request.body.rpartition(b"}")
    return beginning + b"," + orjson.dumps(added)[1:]


def conversation_key(parsed: dict[str, object]) -> str:
    """What stays the same from turn to turn: the user if named, else how it all began.

    A conversation begins with its instructions and ends its beginning with the user's first turn,
    whichever endpoint it is at. A body that has neither belongs to no conversation.
    """
    metadata = parsed.get("metadata")
    of_messages = metadata.get("user_id") if isinstance(metadata, dict) else None  # Anthropic's
    for user in (parsed.get("user"), of_messages):
        if isinstance(user, str):
            return user
    told = [parsed.get(name) for name in ("system", "instructions")]
    begun = next(
        (parsed[name] for name in ("messages", "input", "prompt") if parsed.get(name)), None
    )
    if begun is None:
        return uuid.uuid4().hex
    return orjson.dumps([*told, _first_turn(begun)]).decode()


def _first_turn(begun: object) -> object:
    """Up to what the user said first; all of it, where nobody has a role."""
    if not isinstance(begun, list):
        return [{"role": "user", "content": begun}]
    for number, turn in enumerate(begun, start=1):
        if isinstance(turn, dict) and turn.get("role") == "user":
            return begun[:number]
    return begun
