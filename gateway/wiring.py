"""Capture from the answers themselves, for routes whose engine has no tap (``capture = "wire"``).

The forwarded request asks for logprobs and token ids; they are taken out of the answer again as
it passes, event by event, and become rows of the log. Only such a route's answers are parsed.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from capture.config import CaptureConfig
from capture.rows import LogitRow
from capture.spelling import Spelling
from capture.wire import Origin, WireAnswer, WireRequest
from capture.writer import Spool, Written
from gateway.answer import Json
from gateway.exchange import Exchange

UNKNOWN = "unknown"
REFUSALS = (400, 422)  # how a server says that it does not know our fields
MAX_EVENT_BYTES = 4 * 1024 * 1024  # a longer line is passed on as it is


class Listener(Protocol):
    """Hears the documents of an answer whose engine was asked for more than its client wants."""

    @property
    def hides(self) -> bool:
        """Whether it changes documents."""

    def take(self, document: Json) -> Json | None:
        """Change a document to what the client asked for; None if nothing is left of it."""


@dataclass(frozen=True, slots=True)
class Wire:
    """Where rows from answers go.

    Attributes:
        spool: Of the ``logits`` table.
        config: What is kept of each distribution.
        tokenizers: Hash of each route's tokenizer, where known.
        spellings: What tokens look like in text, of each route that says where its tokenizer is.
    """

    spool: Spool[LogitRow]
    config: CaptureConfig
    tokenizers: Mapping[str, str]
    spellings: Mapping[str, Spelling] = field(default_factory=dict)

    def plan(self, exchange: Exchange) -> WireAnswer | None:
        """Prepare to listen to an answer; None if it could not be recorded."""
        request = WireRequest.of(exchange.request.endpoint, exchange.request.parsed)
        spelling = self.spellings.get(exchange.request.route)
        return WireAnswer(request, spelling) if request else None

    async def find_prompt(self, exchange: Exchange, answer: WireAnswer) -> None:
        """Read a prompt whose ids its server does not tell; in a thread, it may be long."""
        if answer.spelling is not None and answer.lacks_prompt:
            parsed = exchange.request.parsed
            answer.tell_prompt(await asyncio.to_thread(answer.spelling.prompt_ids, parsed))

    def refuse(self) -> None:
        """Count a request refused with our fields in it, be they or its own the reason."""
        self.spool.account.start()
        self.spool.account.drop("refused")

    def offer(
        self,
        exchange: Exchange,
        answer: WireAnswer,
        *,
        written: Written | None = None,
        synced: Written | None = None,
    ) -> bool:
        """Hand an ended answer's rows to the spool and count what cannot be recorded.

        Returns:
            Whether the two will be called, once for all rows (see ``Spool.offer``).
        """
        origin = Origin(
            exchange_id=exchange.exchange_id,
            day=exchange.started_at.strftime("%Y-%m-%d"),
            model_revision=exchange.deployment.revision or UNKNOWN,
            tokenizer_hash=self.tokenizers.get(exchange.request.route, UNKNOWN),
            k_min=self.config.k_min,
            k_max=self.config.k_max,
            mass=self.config.mass,
        )
        rows, num_unidentified = answer.rows(origin)
        for _ in range(num_unidentified):
            self.spool.account.start()
            self.spool.account.drop("unidentified")
        taken = False
        for number, row in enumerate(rows, 1):
            self.spool.account.start()
            is_last = number == len(rows)  # rows are written in order
            told = {"written": written, "synced": synced} if is_last else {}
            taken = self.spool.offer(row, row.num_bytes, **told)
        return taken


def asked_body(parsed: Json, answer: WireAnswer) -> bytes:
    """A client's request with what we ask for beside it."""
    return orjson.dumps({**parsed, **answer.request.added})


async def stripped(
    chunks: AsyncIterator[bytes], listener: Listener, *, stream: bool
) -> AsyncIterator[bytes]:
    """Pass an answer on as the client asked for it."""
    if not stream:
        body = b"".join([chunk async for chunk in chunks])
        yield _document(body, listener) or b""
        return
    lines = _Lines(listener)
    async for chunk in chunks:
        passed = lines.take(chunk)
        if passed:
            yield passed
    if lines.rest:
        yield lines.rest


class _Lines:
    """A stream of server-sent events, cut at its lines."""

    def __init__(self, listener: Listener) -> None:
        self.rest = b""
        self._listener = listener
        self._drops_blank = False

    def take(self, chunk: bytes) -> bytes:
        """Return what may go on to the client; an unfinished line stays here."""
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        passed = [passed for line in lines for passed in self._line(line + b"\n")]
        if len(self.rest) > MAX_EVENT_BYTES:
            passed.append(self.rest)
            self.rest = b""
        return b"".join(passed)

    def _line(self, line: bytes) -> Iterator[bytes]:
        data = line.removeprefix(b"data:")
        if data == line:
            if not (self._drops_blank and not line.strip()):
                yield line
            self._drops_blank = False
            return
        changed = _document(data.strip(), self._listener)
        self._drops_blank = changed is None
        if changed is not None:
            yield line if changed == data.strip() else b"data: " + changed + b"\n"


def _document(body: bytes, listener: Listener) -> bytes | None:
    """One document for the client; None if nothing is left of it."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    if not isinstance(parsed, dict):
        return body
    kept = listener.take(parsed)
    if not listener.hides:
        return body
    return None if kept is None else orjson.dumps(kept)
