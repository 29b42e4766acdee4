"""A mock engine, faster than what stands before it; its only argument is a port.

Answers every POST like ``/v1/chat/completions`` does: one document, or 64 events if the body asks
for a stream, 20 ms apart if its ``user`` is "paced". Reads nothing else of what it is asked.
"""

import asyncio
import sys
from typing import cast

import uvloop

NUM_EVENTS = 64
PACE_SECONDS = 0.02
DOCUMENT = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"support",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"It is on its way."},'
    b'"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":6,"total_tokens":15}}'
)
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"support","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,'
    b'"finish_reason":%s}]}\n\n'
)
EVENTS = [*[EVENT % b"null"] * (NUM_EVENTS - 1), EVENT % b'"stop"']
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    """One chunk of chunked transfer coding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    % len(DOCUMENT)
) + DOCUMENT
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
STREAM_END = chunk(DONE) + b"0\r\n\r\n"
CHUNKS = [chunk(event) for event in EVENTS]


class Mock(asyncio.Protocol):
    """One connection: a request at a time, each answered as soon as it is whole."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is of another family
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            length = content_length(head)
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._answer(head, rest[:length])

    def _answer(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"POST") or b'"stream":true' not in body.replace(b" ", b""):
            self._transport.write(ANSWER)
        elif b'"paced"' in body:
            self._transport.write(STREAM_HEAD)
            self._paced(0)
        else:
            self._transport.write(STREAM_HEAD)
            for event in CHUNKS:
                self._transport.write(event)
            self._transport.write(STREAM_END)

    def _paced(self, number: int) -> None:
        if self._transport.is_closing():
            return
        if number == NUM_EVENTS:
            self._transport.write(STREAM_END)
            return
        self._transport.write(CHUNKS[number])
        asyncio.get_running_loop().call_later(PACE_SECONDS, self._paced, number + 1)


def content_length(head: bytes) -> int:
    """Length of a body; 0 where the head does not say."""
    for line in head.split(b"\r\n"):
        if line[:15].lower() == b"content-length:":
            return int(line[15:])
    return 0


async def serve(port: int) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
