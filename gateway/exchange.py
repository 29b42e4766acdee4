"""One request and its answer, from the first byte to the row in the log."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from random import Random

from capture.frames import Rows
from capture.rows import ExchangeRow, encode_exchanges
from capture.wire import WireAnswer
from gateway.answer import Answer, Json
from gateway.cascade import Cascade
from gateway.keys import ApiKey
from gateway.limits import Reservation
from gateway.privacy import Keeping, KeptText
from gateway.reading import read_answer
from gateway.routing import Deployment, Role

RANDOM = Random(os.urandom(32))  # noqa: S311  ids need to be unique, not secret


def new_id() -> str:
    """An id that no other exchange has."""
    return f"{RANDOM.getrandbits(128):032x}"


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for.

    Attributes:
        endpoint: Path, such as ``/v1/chat/completions``.
        route: Model name asked for.
        body: The body's bytes.
        parsed: The body as JSON.
        stream: Whether server-sent events were asked for.
        conversation: Key that keeps a conversation with one deployment.
        key: Whose request it is, where keys are asked for.
        salt: What keeps a tenant's cached prefixes its own.
    """

    endpoint: str
    route: str
    body: bytes
    parsed: Json
    stream: bool
    conversation: str
    key: ApiKey | None = None
    salt: str | None = None


@dataclass
class Exchange:
    """An exchange under way; the relay fills it, the spool's thread turns it into a row.

    Attributes:
        exchange_id: Unique; the tap's rows carry it too.
        capture: ``tap`` if the engine was asked to record this exchange, ``wire`` if its answer is
            recorded as it passes, else ``off``; the row says ``redacted`` where what was recorded
            must not be kept.
        wire: What the answer told of its distributions, for ``wire``.
        asked_as: What its engine calls the model, if that is not the route's name.
        cascade: How its answer is weighed, if its teacher may answer instead.
        pair_id: The exchange that a shadow mirrors.
        keeping: What of it may be written.
        reservation: What it holds of its key's quotas.
        trace: Headers that say which trace it belongs to: the client's, then ours for the engine.
        chunks: The answer's bytes as the client gets them.
        http_status: The engine's status, None if it never answered.
        error_type: Why there is no whole answer, where known.
        aborted: Whether the client left first, or the rollout that a shadow was for.
        has_begun: Whether the client has the answer's head.
        is_open_ended: Whether its body ends when it ends, its length unknown.
        asked: Monotonic seconds at which an engine was asked (the last of them, if several).
        queued_seconds: How long it waited for an engine.
        first_byte: Monotonic seconds of the answer's first byte.
        last_byte: Monotonic seconds of the last that came so far.
        ended: Monotonic seconds of its end, however it ended.
    """

    exchange_id: str
    request: Request
    deployment: Deployment
    role: Role
    capture: str = "off"
    wire: WireAnswer | None = None
    asked_as: str | None = None
    cascade: Cascade | None = None
    pair_id: str | None = None
    keeping: Keeping = field(default_factory=Keeping)
    reservation: Reservation | None = None
    trace: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    http_status: int | None = None
    error_type: str | None = None
    aborted: bool = False
    has_begun: bool = False
    is_open_ended: bool = False
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.monotonic)
    asked: float | None = None
    queued_seconds: float = 0.0
    first_byte: float | None = None
    last_byte: float | None = None
    ended: float | None = None
    _answer_bytes: int = 0

    def has_waited(self, seconds: float) -> None:
        """Count the time that it waited before anybody was chosen to answer it."""
        self.started_at -= timedelta(seconds=seconds)
        self.started -= seconds
        self.queued_seconds += seconds

    def take(self, chunk: bytes) -> None:
        """Keep a piece of the answer."""
        self.last_byte = time.monotonic()
        if self.first_byte is None:
            self.first_byte = self.last_byte
        self.chunks.append(chunk)
        self._answer_bytes += len(chunk)

    @cached_property
    def answer(self) -> Answer:
        """The parsed answer; read it only when the exchange has ended."""
        return read_answer(self.chunks, stream=self.request.stream)

    @property
    def status(self) -> str:
        """``completed``, ``aborted`` (by whoever asked), ``rejected`` (4xx) or ``failed``."""
        if self.aborted:
            return "aborted"
        if self.http_status is not None and 400 <= self.http_status < 500:  # noqa: PLR2004
            return "rejected"
        return "completed" if self.http_status == 200 and self.answer.is_whole else "failed"  # noqa: PLR2004

    @property
    def streams_events(self) -> bool:
        """Whether the client is reading server-sent events."""
        is_stream = self.request.stream and self.is_open_ended
        return is_stream and self.http_status == 200  # noqa: PLR2004

    @property
    def ttft_seconds(self) -> float | None:
        """Time to the answer's first byte."""
        return None if self.first_byte is None else self.first_byte - self.started

    @property
    def duration_seconds(self) -> float:
        """Time to the answer's last byte."""
        return (time.monotonic() if self.ended is None else self.ended) - self.started

    @property
    def inter_token_seconds(self) -> float | None:
        """Mean time between the pieces of a stream; None without two."""
        num_waits = len(self.chunks) - 1
        if not self.streams_events or self.first_byte is None or num_waits < 1:
            return None
        return ((self.last_byte or self.first_byte) - self.first_byte) / num_waits

    @property
    def overhead_seconds(self) -> float | None:
        """What we have added up to now: before an engine was asked, and since its last byte."""
        if self.asked is None or self.last_byte is None:
            return None
        before = self.asked - self.started - self.queued_seconds
        return before + time.monotonic() - self.last_byte

    @property
    def num_bytes(self) -> int:
        """Rough size in memory, for the spool's bound."""
        return 512 + len(self.request.body) + self._answer_bytes

    def to_row(self) -> ExchangeRow:
        """The exchange as the log keeps it."""
        answer, ttft = self.answer, self.ttft_seconds
        text = self.keeping.text(self.request.body, self.request.parsed, answer)
        return ExchangeRow(
            exchange_id=self.exchange_id,
            day=self.started_at.date().isoformat(),
            started_at=self.started_at,
            route=self.request.route,
            deployment=self.deployment.name,
            role=self.role,
            model=self.deployment.model,
            model_revision=self.deployment.revision,
            tenant=None if self.request.key is None else self.request.key.tenant,
            key_id=None if self.request.key is None else self.request.key.id,
            endpoint=self.request.endpoint,
            stream=self.request.stream,
            request=text.request,
            response_text=text.response_text,
            tool_calls=text.tool_calls,
            params=text.params,
            finish_reason=answer.finish_reasons,
            status=self.status,
            http_status=self.http_status,
            error_type=self.error_type or answer.error_type,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            ttft_ms=None if ttft is None else ttft * 1e3,
            duration_ms=self.duration_seconds * 1e3,
            capture="redacted" if self._is_withheld(text) else self.capture,
            pair_id=self.pair_id,
        )

    @property
    def is_withheld(self) -> bool:
        """Whether what was recorded must go, as the row says; looks through the whole text."""
        if self.capture == "off" or not self.keeping.redactor.is_active:
            return False
        request = self.request
        return self._is_withheld(self.keeping.text(request.body, request.parsed, self.answer))

    def _is_withheld(self, text: KeptText) -> bool:
        """Whether the recorded distributions must go: their ids spell what was redacted.

        Where something is redacted at all, so must those of an answer that we did not see whole.
        """
        if self.capture == "off" or not self.keeping.redactor.is_active:
            return False
        return text.is_redacted or self.status != "completed"


def encode(exchanges: Sequence[Exchange]) -> Rows:
    """Encode ended exchanges for the spool."""
    return encode_exchanges([exchange.to_row() for exchange in exchanges])
