"""Requests over connections kept open, one after the other on each, timed byte by byte."""

import asyncio
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import numpy as np
import orjson

from tests.bench.gateways.mock_engine import content_length

LIMIT_SECONDS = 60.0  # for what is under way when the time is up


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask, and with which headers."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self, **more: object) -> bytes:
        """A request as it goes over the wire."""
        messages = [{"role": "user", "content": "Where is my parcel with the number 4711?"}]
        body = orjson.dumps({"model": "support", "messages": messages, **more})
        headers = {
            "host": urlsplit(self.url).netloc,
            "content-type": "application/json",
            "content-length": str(len(body)),
            **self.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + body


@dataclass(slots=True)
class Measured:
    """What a run saw.

    Attributes:
        seconds: From the first request to the last answer.
        answers: Whole ones.
        failed: Others: not 200, or a stream without its end.
        latency_ms: Of each whole answer, first byte sent to last byte received.
        first_ms: Of each, up to the first byte of its body.
        gaps_ms: Between the events of streams.
    """

    seconds: float = 0.0
    answers: int = 0
    failed: int = 0
    latency_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Whole answers per second."""
        return self.answers / self.seconds


def percentile(values: list[float], percent: float) -> float:
    """A percentile; not a number of nothing."""
    return float(np.percentile(values, percent)) if values else float("nan")


class Connection(asyncio.Protocol):
    """Asks the same again and again until told to stop."""

    def __init__(self, request: bytes, measured: Measured, *, stream: bool) -> None:
        self._request = request
        self._measured = measured
        self._stream = stream
        self.is_stopping = False
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is of another family
        self._ask()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.ended.done():
            self._measured.failed += 1
            self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._data += data
        if not self._body_from:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            self._read_head(bytes(self._data[:end]), end + 4)
        if len(self._data) > self._body_from:
            self._arrivals.append(now)
        if self._is_whole():
            self._end(now)

    def _read_head(self, head: bytes, body_from: int) -> None:
        self._body_from = body_from
        self._is_ok = head.split(b" ", 2)[1] == b"200"
        is_chunked = b"transfer-encoding: chunked" in head.lower()
        self._length = -1 if is_chunked else content_length(head)

    def _is_whole(self) -> bool:
        if self._length < 0:
            return self._data.endswith(b"0\r\n\r\n")
        return len(self._data) - self._body_from >= self._length

    def _ask(self) -> None:
        self._data = bytearray()
        self._body_from = 0  # until the head is whole
        self._length = 0  # of the body; negative if it is chunked
        self._is_ok = False
        self._arrivals: list[float] = []
        self._asked = time.perf_counter()
        self._transport.write(self._request)

    def _end(self, now: float) -> None:
        measured = self._measured
        if self._is_ok and (not self._stream or b"data: [DONE]" in self._data[-64:]):
            measured.answers += 1
            measured.latency_ms.append(1000 * (now - self._asked))
            measured.first_ms.append(1000 * (self._arrivals[0] - self._asked))
            arrivals = self._arrivals if self._stream else []
            measured.gaps_ms += [1000 * (b - a) for a, b in itertools.pairwise(arrivals)]
        else:
            measured.failed += 1
        if self.is_stopping:
            self.ended.set_result(None)
            self._transport.close()
        else:
            self._ask()


async def run(
    target: Target,
    *,
    connections: int,
    seconds: float = 0.0,
    answers: int = 0,
    stream: bool = False,
    paced: bool = False,
) -> Measured:
    """Ask on every connection for so long, or until there are so many answers.

    Raises:
        OSError: If nobody listens.
    """
    more: dict[str, object] = {"stream": True} if stream else {}
    request = target.request(**more, **({"user": "paced"} if paced else {}))
    measured = Measured()
    where = urlsplit(target.url)
    address = where.hostname or "", where.port or 80
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    opened = []
    for _ in range(connections):
        connection = Connection(request, measured, stream=stream)
        await loop.create_connection(lambda one=connection: one, *address)  # type: ignore[misc]
        opened.append(connection)
    until = began + seconds
    while time.perf_counter() < until or measured.answers < answers:
        await asyncio.sleep(0.01)
        if measured.failed > 1000 or all(connection.ended.done() for connection in opened):
            break
    for connection in opened:
        connection.is_stopping = True
    await asyncio.wait({connection.ended for connection in opened}, timeout=LIMIT_SECONDS)
    measured.seconds = time.perf_counter() - began
    return measured
