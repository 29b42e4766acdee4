"""The engine's endpoints that the gateway offers; whatever else an engine has stays closed."""

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from gateway.errors import GatewayError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path of the engine's API.

    Attributes:
        path: Same before and behind the gateway.
        generates: Whether a model writes text: only then there is something to capture or shadow.
        endings: Lines one of which the last event of a stream holds. With their line end, which a
            JSON text cannot hold: no answer can be taken for them.
        names_events: Whether streams say each event's name, as an ``event:`` line.
    """

    path: str
    generates: bool = True
    endings: tuple[bytes, ...] = (b"data: [DONE]\n",)
    names_events: bool = False

    def error_event(self, error: GatewayError) -> bytes:
        """What ends a stream that can't go on, as this endpoint's clients read it."""
        body: dict[str, object] = {**error.body()}
        if not self.names_events:
            return b"data: " + orjson.dumps(body) + b"\n\n"
        return b"event: error\ndata: " + orjson.dumps({"type": "error", **body}) + b"\n\n"


ENDPOINTS: Mapping[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/v1/chat/completions"),
        Endpoint("/v1/completions"),
        Endpoint(
            "/v1/responses",
            endings=(
                b"event: response.completed\n",
                b"event: response.incomplete\n",
                b"event: response.failed\n",
            ),
            names_events=True,
        ),
        Endpoint("/v1/messages", endings=(b"event: message_stop\n",), names_events=True),
        Endpoint("/v1/messages/count_tokens", generates=False),
        Endpoint("/v1/embeddings", generates=False),
        Endpoint("/tokenize", generates=False),
        Endpoint("/detokenize", generates=False),
    )
}


class StreamEnd:
    """Watches for the end of a stream as its chunks pass, wherever they are cut."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endings = endpoint.endings
        self._longest = max(map(len, self._endings))
        self._tail = b""
        self._has_begun = False

    def is_reached(self, chunk: bytes) -> bool:
        """Whether the last event is complete with this chunk."""
        seen = self._tail + chunk
        if not self._has_begun:
            self._has_begun = any(ending in seen for ending in self._endings)
        self._tail = seen[-self._longest :]
        return self._has_begun and self._tail.endswith(b"\n\n")
