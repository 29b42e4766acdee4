"""OpenTelemetry spans of exchanges, with the names of its conventions for generative AI.

A span is a child of the client's (``traceparent``) and the parent of the engine's. It holds no
text unless that is asked for, and then only what the log may hold too.
Source: OpenTelemetry, semantic conventions for generative AI, client spans.
"""

from collections.abc import Sequence
from datetime import datetime

import orjson
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.config import TracingConfig
from gateway.exchange import Exchange

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
PARAMS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "seed": "seed",
    "n": "choice.count",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
Attribute = str | int | float | Sequence[str]


class Tracing:
    """Makes a span of each exchange and sends it on, from a thread of its own."""

    def __init__(self, config: TracingConfig) -> None:
        resource = Resource.create({"service.name": config.service})
        sampler = ParentBased(TraceIdRatioBased(config.share))
        self._provider = TracerProvider(resource=resource, sampler=sampler)
        exporter = OTLPSpanExporter(endpoint=config.endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("retort")
        self._context = TraceContextTextMapPropagator()
        self._has_content = config.content
        self._spans: dict[int, Span] = {}

    def begin(self, exchange: Exchange) -> None:
        """Begin a span; the engine is told of it."""
        parent = self._context.extract(exchange.trace)
        operation = OPERATIONS.get(exchange.request.endpoint, exchange.request.endpoint)
        span = self._tracer.start_span(
            f"{operation} {exchange.request.route}",
            context=parent,
            kind=SpanKind.CLIENT,
            start_time=_nanoseconds(exchange.started_at),
        )
        self._spans[id(exchange)] = span
        context = span.get_span_context()
        exchange.trace["traceparent"] = (
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        )

    def end(self, exchange: Exchange) -> None:
        """End its span with what has become of it."""
        span = self._spans.pop(id(exchange), None)
        if span is None:
            return
        if span.is_recording():
            span.set_attributes(attributes(exchange))
            if exchange.status == "failed":
                span.set_status(StatusCode.ERROR, exchange.error_type or exchange.status)
            if self._has_content:
                span.set_attributes(content(exchange))
        span.end(_nanoseconds(exchange.started_at) + int(exchange.duration_seconds * 1e9))

    def close(self) -> None:
        """Send what waits, for a bounded time."""
        self._provider.shutdown()


def attributes(exchange: Exchange) -> dict[str, Attribute]:
    """What a span says of an ended exchange (pure)."""
    request, answer = exchange.request, exchange.answer
    said: dict[str, Attribute | None] = {
        "gen_ai.operation.name": OPERATIONS.get(request.endpoint),
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": request.route,
        "gen_ai.response.model": exchange.deployment.model,
        "gen_ai.usage.input_tokens": answer.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.completion_tokens,
        "gen_ai.response.finish_reasons": [reason or "" for reason in answer.finish_reasons],
        "http.response.status_code": exchange.http_status,
        "error.type": exchange.error_type or answer.error_type,
        "retort.exchange_id": exchange.exchange_id,
        "retort.deployment": exchange.deployment.name,
        "retort.role": exchange.role,
        "retort.status": exchange.status,
    }
    for name, theirs in PARAMS.items():
        value = request.parsed.get(name)
        if isinstance(value, int | float):
            said[f"gen_ai.request.{theirs}"] = value
    return {name: value for name, value in said.items() if value is not None}


def content(exchange: Exchange) -> dict[str, Attribute]:
    """The text of an exchange, as far as the log may hold it (pure)."""
    text = exchange.keeping.text(exchange.request.body, exchange.request.parsed, exchange.answer)
    if text.request == "null":
        return {}
    return {
        "gen_ai.input.messages": text.request,
        "gen_ai.output.messages": orjson.dumps(text.response_text).decode(),
    }


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1e9)
